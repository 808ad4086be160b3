"""The chunked delta rule against the recurrence written as a loop."""

import pytest
import torch

from models.kernels import delta_rule_torch
from models.kernels.delta_rule_torch import delta_loop, delta_scan


@pytest.mark.parametrize("length", [1, 5, 16, 17, 50])
@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_scan_equals_loop(monkeypatch, length, key_heads):
    monkeypatch.setattr(delta_rule_torch, "CHUNK", 16)
    generator = torch.Generator().manual_seed(length)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    q, k, v = random(2, length, key_heads, 5), random(2, length, key_heads, 5), random(2, length, 4, 3)
    k = k / k.norm(dim=-1, keepdim=True)
    log_decay, beta, state = -random(2, length, 4).abs(), random(2, length, 4).sigmoid(), random(2, 4, 5, 3)
    fast, fast_state = delta_scan(q, k, v, log_decay, beta, state=state)
    slow, slow_state = delta_loop(q, k, v, log_decay, beta, state=state)
    torch.testing.assert_close(fast, slow)
    torch.testing.assert_close(fast_state, slow_state)


def test_strong_decay_is_finite_forwards_and_backwards():
    q = k = torch.nn.functional.normalize(torch.randn(1, 64, 1, 3), dim=-1)
    v = torch.randn(1, 64, 1, 2, requires_grad=True)
    log_decay, beta = torch.full((1, 64, 1), -800.0), torch.full((1, 64, 1), 0.9)
    y, state = delta_scan(q, k, v, log_decay, beta, state=torch.zeros(1, 1, 3, 2))
    y.sum().backward()
    assert torch.isfinite(y).all()
    assert torch.isfinite(state).all()
    assert torch.isfinite(v.grad).all()
