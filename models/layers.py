"""The small parts that every layer is made of: RMS norms, rotary positions, the gated MLP."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.config import MLPSpec


class RMSNorm(nn.Module):
    """x / rms(x) * weight, computed in float32.

    Shapes: x (..., d) -> (..., d), in x's dtype. Source: arXiv:1910.07467.
    """

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), (x.shape[-1],), eps=self.eps).to(x.dtype) * self.weight


class GatedRMSNorm(nn.Module):
    """RMS norm of x * silu(gate) over each of the groups, as Mamba-2 applies it before its output projection.

    Shapes: x, gate (..., d) -> (..., d), in x's dtype. Source: arXiv:2405.21060, section 7.
    """

    def __init__(self, size: int, eps: float, num_groups: int = 1) -> None:
        super().__init__()
        self.eps = eps
        self.num_groups = num_groups
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        gated = (x.float() * F.silu(gate.float())).unflatten(-1, (self.num_groups, -1))
        return F.rms_norm(gated, gated.shape[-1:], eps=self.eps).flatten(-2).to(x.dtype) * self.weight


class GatedMLP(nn.Module):
    """down(silu(gate(x)) * up(x)). Shapes: (..., hidden) -> (..., hidden)."""

    def __init__(self, hidden_size: int, spec: MLPSpec) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, spec.intermediate_size, bias=spec.bias)
        self.up_proj = nn.Linear(hidden_size, spec.intermediate_size, bias=spec.bias)
        self.down_proj = nn.Linear(spec.intermediate_size, hidden_size, bias=spec.bias)

    def forward(self, x: Tensor) -> Tensor:
        down: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return down


def rotary_table(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary angles at `positions`.

    Angles are computed in float32; at positions beyond 2**24 they would lose whole steps.

    Args:
        positions: (...,) int64.
    Returns:
        cos, sin: (..., head_dim) float32; the second half repeats the first.
    Source: arXiv:2104.09864, in the half-split layout of the published Llama checkpoints.
    """
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device) / head_dim
    angles = positions.float().unsqueeze(-1) * theta**-exponent
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each head of x (..., heads, head_dim) by cos, sin (..., head_dim); returns x's dtype."""
    first, second = x.float().chunk(2, dim=-1)
    rotated = torch.cat((-second, first), dim=-1)
    return (x.float() * cos.unsqueeze(-2) + rotated * sin.unsqueeze(-2)).to(x.dtype)
