"""The small parts that every layer is made of: RMS norms, the gated MLP, the mixture of them, the soft cap."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.config import Activation, ExpertsSpec, MLPSpec
from models.kernels.experts_torch import run_experts


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {"silu": F.silu, "gelu_tanh": _gelu_tanh}


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
        return rms_normalised(x, self.eps) * self.weight


def rms_normalised(x: Tensor, eps: float) -> Tensor:
    """x / rms(x) over the last dimension, computed in float32, in x's dtype."""
    return F.rms_norm(x.float(), (x.shape[-1],), eps=eps).to(x.dtype)


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
        self.activation = ACTIVATIONS[spec.activation]
        self.gate_proj = nn.Linear(hidden_size, spec.intermediate_size, bias=spec.bias)
        self.up_proj = nn.Linear(hidden_size, spec.intermediate_size, bias=spec.bias)
        self.down_proj = nn.Linear(spec.intermediate_size, hidden_size, bias=spec.bias)

    def forward(self, x: Tensor) -> Tensor:
        down: Tensor = self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))
        return down


class Experts(nn.Module):
    """The matrices of a mixture's MLPs, one behind the other."""

    def __init__(self, hidden_size: int, spec: ExpertsSpec) -> None:
        super().__init__()
        inner = (spec.num_experts, spec.intermediate_size, hidden_size)
        self.gate_proj = nn.Parameter(torch.empty(inner))
        self.up_proj = nn.Parameter(torch.empty(inner))
        self.down_proj = nn.Parameter(torch.empty(spec.num_experts, hidden_size, spec.intermediate_size))


class MixtureOfExperts(nn.Module):
    """A router, and for each token the weighted MLPs that it chooses. Shapes: (..., hidden) -> (..., hidden)."""

    def __init__(self, hidden_size: int, spec: ExpertsSpec) -> None:
        super().__init__()
        self.spec = spec
        self.router = nn.Linear(hidden_size, spec.num_experts, bias=False)
        self.experts = Experts(hidden_size, spec)

    def _route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (t, hidden) -> the experts chosen (t, top_k) and their weights, float32."""
        weights, chosen = self.router(x).float().softmax(-1).topk(self.spec.top_k, dim=-1)
        return chosen, weights / weights.sum(-1, keepdim=True) if self.spec.renormalise else weights

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        chosen, weights = self._route(rows)
        matrices = (self.experts.gate_proj, self.experts.up_proj, self.experts.down_proj)
        mixed = run_experts(rows, chosen, weights, matrices, activation=ACTIVATIONS[self.spec.activation])
        return mixed.view(x.shape)


def build_mlp(hidden_size: int, spec: MLPSpec | ExpertsSpec) -> GatedMLP | MixtureOfExperts:
    return GatedMLP(hidden_size, spec) if isinstance(spec, MLPSpec) else MixtureOfExperts(hidden_size, spec)


def soft_cap(x: Tensor, cap: float) -> Tensor:
    """cap * tanh(x / cap): close to x where it is small, never beyond the cap."""
    return torch.tanh(x / cap) * cap
