"""What stands between a mixer's products, compiled by numba: right, and the same bits in any company and any layout."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from poison import among_poison, poisoned_memory
from torch import Tensor

from models.activations import PLAIN, Activations

pytest.importorskip("numba", reason="numba is an extra")

from models.kernels.activations_numba import ACTIVATIONS
from models.kernels.functions_numba import SHARE

ROWS, SIZE = 700, 96
Compute = Callable[..., Tensor]


def gated_norm(functions: Activations, x: Tensor, gate: Tensor, weight: Tensor, *, groups: int, first: bool) -> Tensor:
    return functions.gated_norm(x, gate, weight, 1e-5, num_groups=groups, norm_first=first)


def wide_skip(functions: Activations, y: Tensor, x: Tensor, factors: Tensor) -> Tensor:
    return functions.skip(y.to(torch.promote_types(y.dtype, torch.float32)), x, factors, x.dtype)


def wide_skip_gate(functions: Activations, y: Tensor, x: Tensor, gate: Tensor, factors: Tensor) -> Tensor:
    return functions.skip_gate(y.to(torch.promote_types(y.dtype, torch.float32)), x, factors, gate)


# How it is called, how many inputs of rows it takes before the one of a row's size, and whether it gives float32.
CASES: dict[str, tuple[Compute, int, bool]] = {
    "steps": (lambda functions, dt, bias: functions.time_steps(dt, bias), 1, True),
    "bounded steps": (lambda functions, dt, bias: functions.time_steps(dt, bias, 0.5, 2.0), 1, True),
    "skip": (wide_skip, 2, False),
    "gated skip": (wide_skip_gate, 3, False),
    "norm": (partial(gated_norm, groups=1, first=False), 2, False),
    "norm of groups": (partial(gated_norm, groups=4, first=False), 2, False),
    "norm first": (partial(gated_norm, groups=2, first=True), 2, False),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", CASES)
def test_rows(name, dtype):
    assert ROWS * SIZE > 2 * SHARE
    compute, count, is_wide = CASES[name]
    generator = torch.Generator().manual_seed(4)
    *rows, one = (3 * torch.randn(ROWS, SIZE, generator=generator) for _ in range(count + 1))
    rows, one = [x.to(dtype) for x in rows], one[0].to(dtype)
    with torch.no_grad(), poisoned_memory():
        y = compute(ACTIVATIONS, *rows, one)
        apart = compute(ACTIVATIONS, *map(among_poison, rows), one)
        parts = [compute(ACTIVATIONS, *(x[i : i + 3] for x in rows), one) for i in range(0, ROWS, 99)]
    wanted = compute(PLAIN, *(x.double() for x in rows), one.double())
    assert y.dtype == (torch.float32 if is_wide else dtype)
    # Of bfloat16 what is rounded on the way to the norm's end is up to three times.
    tolerance = 2e-5 if dtype == torch.float32 or is_wide else 2e-2
    torch.testing.assert_close(y.double(), wanted.double(), rtol=tolerance, atol=tolerance / 4)
    assert torch.equal(apart, y)
    for i, part in zip(range(0, ROWS, 99), parts, strict=True):
        assert torch.equal(part, y[i : i + 3])


def test_steps_that_are_no_numbers_stay_none():
    dt = torch.tensor([[math.nan, 100.0, -100.0]])
    with torch.no_grad():
        steps = ACTIVATIONS.time_steps(dt, torch.zeros(3), 0.01, 7.0)
    assert steps[0, 0].isnan()
    assert steps[0, 1:].tolist() == [7.0, pytest.approx(0.01)]


@pytest.mark.parametrize("dtypes", [(torch.float32,) * 2, (torch.bfloat16,) * 2, (torch.float32, torch.bfloat16)])
@pytest.mark.parametrize("rows", [3, 1000])
def test_sums_are_torchs(dtypes, rows):
    x, y = (torch.randn(rows, 40).to(dtype) for dtype in dtypes)
    with torch.no_grad():
        assert torch.equal(ACTIVATIONS.add(x, y), x + y)


@pytest.mark.parametrize("name", CASES)
def test_gradients_where_they_are_wanted(name):
    compute, count, _ = CASES[name]
    rows = [torch.randn(2, SIZE, requires_grad=True) for _ in range(count)]
    compute(ACTIVATIONS, *rows, torch.randn(SIZE)).sum().backward()
    assert all(x.grad is not None for x in rows)
