"""What the kernels' tests need to see a read or a write that should not be."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """torch.empty gives NaN, so that what a kernel leaves unwritten shows."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def among_poison(tensor: torch.Tensor) -> torch.Tensor:
    """The same values as a piece of a wider last dimension, as a split gives it, between NaN."""
    size = tensor.shape[-1]
    wide = tensor.new_full((*tensor.shape[:-1], size + 6), float("nan"))
    wide[..., 3 : 3 + size] = tensor
    return wide[..., 3 : 3 + size]


def rows_apart(tensor: torch.Tensor) -> torch.Tensor:
    """The same rows (n, ...) with NaN before, between and after them, as those of a layer lie in a buffer of all."""
    rows = tensor.flatten(1)
    wide = rows.new_full((len(rows), rows.shape[1] + 48), float("nan"))
    wide[:, 16:-32] = rows
    return wide[:, 16:-32].unflatten(1, tensor.shape[1:])


def num_poisoned(tensor: torch.Tensor) -> int:
    """How many numbers are NaN in all the memory that a tensor is a part of."""
    whole = torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(tensor.untyped_storage())
    return int(whole.isnan().sum())


def skip_unless_triton_runs_on(device: torch.device) -> None:
    """Triton compiles for a GPU; on the CPU it has its interpreter, which is chosen when triton is imported."""
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("Triton's interpreter is off where there is a GPU")
