"""Rows of caches as bytes: what is read from some is the same in others, whatever the number format."""

import pytest
import torch

from models.cache import (
    ALIGNMENT,
    CacheShape,
    KVCache,
    ParallelCache,
    StateCache,
    allocate_caches,
    block_tensors,
    copy_rows,
    read_rows,
    row_bytes,
    row_layout,
    state_tensors,
    whole_rows,
    write_rows,
)
from models.config import AttentionSpec, LayerSpec, Mamba1Spec, ModelConfig, ParallelSpec


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


def hybrid() -> ModelConfig:
    """Of layers whose parts are no multiples of an alignment."""
    attention, mamba = AttentionSpec(6, 2, 5, None), Mamba1Spec(7, 3, 4, 3, True, False)
    mixers = (attention, mamba, ParallelSpec(attention, mamba))
    layers = tuple(LayerSpec(mixer, None) for mixer in (*mixers, None))
    return ModelConfig("x", 8, 10, layers, 1e-5, False, None, ())


def in_one_buffer(dtype: torch.dtype, num_blocks: int, num_slots: int, spare: int = 0):
    rows = row_bytes(hybrid(), 3, dtype, torch.float32)
    assert rows.block % ALIGNMENT == rows.slot % ALIGNMENT == 0
    size = max(num_blocks * rows.block, num_slots * rows.slot) + spare * ALIGNMENT
    shape = CacheShape(num_blocks, 3, num_slots, size)
    return allocate_caches(hybrid(), shape, dtype=dtype, device=torch.device("cpu")), rows, size


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_lie_at_the_begin_of_a_buffer_and_slots_at_its_end(dtype):
    """Each part of a row in the row's own bytes, and none in another's."""
    cache, rows, size = in_one_buffer(dtype, 9, 4, spare=1)
    blocks, slots = block_tensors(cache), state_tensors(cache)
    begin = min(tensor.data_ptr() for tensor in blocks)
    assert begin % ALIGNMENT == 0
    for tensors, count, start, row_size in (
        (blocks, 9, begin, rows.block),
        (slots, 4, begin + size - 4 * rows.slot, rows.slot),
    ):
        for row in range(count):
            parts = sorted((tensor[row].data_ptr(), tensor[row].numel() * tensor.itemsize) for tensor in tensors)
            ends = [place + length for place, length in parts]
            assert parts[0][0] == start + row * row_size
            assert all(end <= place for end, (place, _) in zip(ends, parts[1:], strict=False))
            assert ends[-1] <= start + (row + 1) * row_size
            assert all(tensor[row].is_contiguous() for tensor in tensors)


def test_a_buffer_that_does_not_hold_all_blocks_or_all_slots_is_refused():
    rows = row_bytes(hybrid(), 3, torch.float32, torch.float32)
    for shape in (
        CacheShape(3, 3, 1, 3 * rows.block - 64),
        CacheShape(1, 3, 2, rows.slot),
        CacheShape(1, 3, 1, 10_001),
    ):
        with pytest.raises(ValueError, match=f"{shape.arena_bytes:,} bytes are not for"):
            allocate_caches(hybrid(), shape, dtype=torch.float32, device=torch.device("cpu"))


@pytest.mark.parametrize("together", [True, False])
def test_copies_read_what_those_before_them_wrote(together):
    """Also where what is written was the other kind's."""
    cache = in_one_buffer(torch.float32, 8, 3)[0]
    if not together:
        shape = CacheShape(8, 3, 3)
        cache = allocate_caches(hybrid(), shape, dtype=torch.float32, device=torch.device("cpu"))
    blocks, slots = block_tensors(cache), state_tensors(cache)
    assert (len(whole_rows(blocks)), len(whole_rows(slots))) == ((1, 1) if together else (4, 4))
    for tensors, row in ((blocks, 0), (slots, 2)):
        for number, tensor in enumerate(tensors):
            tensor[row] = torch.randn(tensor.shape[1:], generator=torch.Generator().manual_seed(number))
    wanted = [[tensor[row].clone() for tensor in tensors] for tensors, row in ((blocks, 0), (slots, 2))]
    # Slot 0 lies where blocks are; what comes to slot 1 goes through it, and the blocks there are overwritten later.
    copy_rows(cache, [("slot", 2, 0), ("slot", 0, 1), ("block", 0, 1), ("block", 1, 2)])
    assert all(torch.equal(tensor[1], row) for tensor, row in zip(slots, wanted[1], strict=True))
    assert all(torch.equal(tensor[2], row) for tensor, row in zip(blocks, wanted[0], strict=True))
