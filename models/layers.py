"""The small parts that every layer is made of: RMS norms, the gated MLP, the soft cap."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.config import MLPSpec


class RMSNorm(nn.Module):
    """x / rms(x) * weight, computed in float32; with unit_offset * (1 + weight), rounded after that product only.

    Shapes: x (..., d) -> (..., d), in x's dtype. Source: arXiv:1910.07467.
    """

    def __init__(self, size: int, eps: float, unit_offset: bool = False) -> None:
        super().__init__()
        self.eps = eps
        self.unit_offset = unit_offset
        self.weight = nn.Parameter(torch.zeros(size) if unit_offset else torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        if self.unit_offset:
            return F.rms_norm(x.float(), (x.shape[-1],), 1.0 + self.weight.float(), self.eps).to(x.dtype)
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
    """down(activation(gate(x)) * up(x)). Shapes: (..., hidden) -> (..., hidden)."""

    def __init__(self, hidden_size: int, spec: MLPSpec) -> None:
        super().__init__()
        self.activation = spec.activation
        self.gate_proj = nn.Linear(hidden_size, spec.intermediate_size, bias=spec.bias)
        self.up_proj = nn.Linear(hidden_size, spec.intermediate_size, bias=spec.bias)
        self.down_proj = nn.Linear(spec.intermediate_size, hidden_size, bias=spec.bias)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate_proj(x)
        active = F.silu(gate) if self.activation == "silu" else F.gelu(gate, approximate="tanh")
        down: Tensor = self.down_proj(active * self.up_proj(x))
        return down


def soft_cap(x: Tensor, cap: float) -> Tensor:
    """cap * tanh(x / cap): close to x where it is small, never beyond the cap."""
    return torch.tanh(x / cap) * cap
