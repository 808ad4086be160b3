"""The chunked selective scan against the recurrence written as a loop."""

import pytest
import torch

from models.kernels import selective_scan_torch
from models.kernels.selective_scan_torch import selective_loop, selective_scan


@pytest.mark.parametrize("length", [1, 2, 3, 16, 17, 50])
@pytest.mark.parametrize("block_elements", [1, 1 << 22], ids=["blocks-of-16", "one-block"])
def test_scan_equals_loop(monkeypatch, length, block_elements):
    monkeypatch.setattr(selective_scan_torch, "BLOCK_ELEMENTS", block_elements)
    generator = torch.Generator().manual_seed(length)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x, dt, A = random(2, length, 7), random(2, length, 7).abs(), -random(7, 5).abs()
    B, C, state = random(2, length, 5), random(2, length, 5), random(2, 7, 5)
    fast, fast_state = selective_scan(x, dt, A, B, C, state=state)
    slow, slow_state = selective_loop(x, dt, A, B, C, state=state)
    torch.testing.assert_close(fast, slow)
    torch.testing.assert_close(fast_state, slow_state)


def test_strong_decay_is_finite_forwards_and_backwards():
    x = torch.randn(1, 64, 2, requires_grad=True)
    dt, A = torch.full((1, 64, 2), 50.0), torch.full((2, 3), -16.0)
    B = C = torch.randn(1, 64, 3)
    y, state = selective_scan(x, dt, A, B, C, state=torch.zeros(1, 2, 3))
    y.sum().backward()
    assert torch.isfinite(y).all()
    assert torch.isfinite(state).all()
    assert torch.isfinite(x.grad).all()
