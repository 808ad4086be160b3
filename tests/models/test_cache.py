"""Rows of caches as bytes: what is read from some is the same in others, whatever the number format."""

import pytest
import torch

from models.cache import (
    KVCache,
    ParallelCache,
    StateCache,
    block_tensors,
    read_rows,
    row_layout,
    state_tensors,
    write_rows,
)


def caches(dtype: torch.dtype, state_dtype: torch.dtype = torch.float32) -> list[ParallelCache | StateCache | None]:
    torch.manual_seed(0)
    keys, values = (torch.randn(6, 4, 2, 8).to(dtype) for _ in range(2))
    states = [StateCache(torch.randn(5, 7, 3), torch.randn(5, 7, 3).to(state_dtype)) for _ in range(2)]
    return [ParallelCache(KVCache(keys, values), states[0]), None, states[1]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_are_the_same_elsewhere(dtype):
    """Where states are narrower than what lies beside them, too: an odd number of them."""
    cache = caches(dtype, dtype)
    for tensors, rows, others in ((block_tensors(cache), [4, 1], [0, 3]), (state_tensors(cache), [2], [4])):
        before = [tensor.clone() for tensor in tensors]
        # At an address that suits no number.
        content = memoryview(bytearray(b"x") + read_rows(tensors, rows))[1:]
        write_rows(tensors, others, content)
        for tensor, old in zip(tensors, before, strict=True):
            assert torch.equal(tensor[others], old[rows])
            kept = [row for row in range(len(old)) if row not in others]
            assert torch.equal(tensor[kept], old[kept])


def test_rows_of_another_size_are_refused():
    tensors = block_tensors(caches(torch.float32))
    with pytest.raises(ValueError, match="512 bytes for rows of 1,024 bytes"):
        write_rows(tensors, [0, 1], read_rows(tensors, [0]))


def test_a_layout_tells_number_formats_and_shapes_apart():
    assert row_layout(caches(torch.float32)) != row_layout(caches(torch.bfloat16))
    assert row_layout(caches(torch.float32)) != row_layout(caches(torch.float32)[1:])
    layouts = {row_layout(caches(torch.float32, state)) for state in (torch.float32, torch.bfloat16, torch.float16)}
    assert len(layouts) == 3
