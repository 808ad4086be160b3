"""The chunked scan against the recurrence written as a loop."""

import pytest
import torch

from models.kernels.ssd_torch import ssd_loop, ssd_scan


@pytest.mark.parametrize("length", [1, 5, 16, 17, 50])
@pytest.mark.parametrize("groups", [1, 2])
def test_scan_equals_loop(length, groups):
    generator = torch.Generator().manual_seed(length)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x, dt, A = random(2, length, 4, 3), random(2, length, 4).abs(), -random(4).abs()
    B, C, state = random(2, length, groups, 5), random(2, length, groups, 5), random(2, 4, 3, 5)
    fast, fast_state = ssd_scan(x, dt, A, B, C, state=state, chunk_size=16)
    slow, slow_state = ssd_loop(x, dt, A, B, C, state=state)
    torch.testing.assert_close(fast, slow)
    torch.testing.assert_close(fast_state, slow_state)


def test_strong_decay_does_not_overflow():
    """A chunk whose decays sum far below exp's range gives zeros, not NaN, forwards and backwards."""
    x = torch.randn(1, 64, 1, 2, requires_grad=True)
    dt, A = torch.full((1, 64, 1), 50.0), torch.tensor([-16.0])
    B = C = torch.randn(1, 64, 1, 3)
    y, state = ssd_scan(x, dt, A, B, C, state=torch.zeros(1, 1, 2, 3), chunk_size=64)
    y.sum().backward()
    assert torch.isfinite(y).all()
    assert torch.isfinite(state).all()
    assert torch.isfinite(x.grad).all()
