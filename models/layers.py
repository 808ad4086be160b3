"""The small parts that every layer is made of: RMS norms, the MLP, the soft cap."""

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.activations import Activating, Activations
from models.config import MLPSpec
from models.linear import Joined, Linear


def _relu2(x: Tensor) -> Tensor:
    return F.relu(x).square()


Combine = Callable[[Activations, Tensor | None, Tensor], Tensor]


def combine_of(spec: MLPSpec) -> Combine:
    """How what an MLP's gate projection gives, None without one, meets what its up projection gives."""
    clamp = spec.clamp

    def plain(functions: Activations, gate: Tensor | None, up: Tensor) -> Tensor:
        if gate is not None and spec.activation == "silu":
            return functions.gate_silu(gate, up)
        activation = _relu2 if spec.activation == "relu2" else getattr(functions, spec.activation)
        activated: Tensor = activation(up if gate is None else gate)
        return activated if gate is None else activated * up

    def clamped(functions: Activations, gate: Tensor | None, up: Tensor) -> Tensor:
        assert clamp is not None
        assert gate is not None
        gate, up = gate.clamp(max=clamp.limit), up.clamp(-clamp.limit, clamp.limit)
        return (up + 1) * (gate * functions.sigmoid(gate * clamp.slope))

    return plain if clamp is None else clamped


class NormKernel(Protocol):
    """x (..., d), weight (d,), eps, whether the factor is 1 + weight -> (..., d), in x's dtype."""

    def __call__(self, x: Tensor, weight: Tensor, eps: float, unit_offset: bool, /) -> Tensor: ...


def rms_norm(x: Tensor, weight: Tensor, eps: float, unit_offset: bool) -> Tensor:
    """The norm in plain torch."""
    if unit_offset:
        return F.rms_norm(x.float(), (x.shape[-1],), 1.0 + weight.float(), eps).to(x.dtype)
    if x.dtype == torch.float32:  # nothing is rounded on the way: one pass does both
        return F.rms_norm(x, (x.shape[-1],), weight, eps)
    return rms_normalised(x, eps) * weight


class Normalising(nn.Module):
    """A module that normalises. `kernel` does it: plain torch, until kernels are chosen."""

    kernel: NormKernel = staticmethod(rms_norm)


class RMSNorm(Normalising):
    """x / rms(x) * weight, computed in float32; with unit_offset * (1 + weight), rounded after that product only.

    Shapes: x (..., d) -> (..., d), in x's dtype. Source: arXiv:1910.07467.
    """

    def __init__(self, size: int, eps: float, unit_offset: bool = False) -> None:
        super().__init__()
        self.eps = eps
        self.unit_offset = unit_offset
        self.weight = nn.Parameter(torch.zeros(size) if unit_offset else torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled() and x.dtype == self.weight.dtype:
            return self.kernel(x, self.weight, self.eps, self.unit_offset)
        return rms_norm(x, self.weight, self.eps, self.unit_offset)


def rms_normalised(x: Tensor, eps: float) -> Tensor:
    """x / rms(x) over the last dimension, computed in float32, in x's dtype."""
    return F.rms_norm(x.float(), (x.shape[-1],), eps=eps).to(x.dtype)


class GatedRMSNorm(Activating):
    """RMS norm of x * silu(gate) over each of the groups, as Mamba-2 applies it before its output projection.

    norm_first: the norm of x, then times silu(gate). Shapes: x, gate (..., d) -> (..., d), in x's dtype.
    Source: arXiv:2405.21060, section 7.
    """

    def __init__(self, size: int, eps: float, num_groups: int = 1, *, norm_first: bool = False) -> None:
        super().__init__()
        self.eps = eps
        self.num_groups = num_groups
        self.norm_first = norm_first
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        return self.functions.gated_norm(
            x, gate, self.weight, self.eps, num_groups=self.num_groups, norm_first=self.norm_first
        )


class MLP(Activating):
    """down(activation(gate(x)) * up(x)), or down(activation(up(x))). Shapes: (..., hidden) -> (..., hidden)."""

    def __init__(self, hidden_size: int, spec: MLPSpec) -> None:
        super().__init__()
        self.combine = combine_of(spec)
        self.scales = spec.scales
        self.gate_proj = Linear(hidden_size, spec.intermediate_size, bias=spec.bias) if spec.gated else None
        self.up_proj = Linear(hidden_size, spec.intermediate_size, bias=spec.bias)
        self.down_proj = Linear(spec.intermediate_size, hidden_size, bias=spec.bias)
        opened = (self.up_proj,) if self.gate_proj is None else (self.up_proj, self.gate_proj)
        self.opening = Joined(opened)

    def forward(self, x: Tensor, extra: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """extra: what is added to what the gate and up projections give, from adapters."""
        gate_scale, down_scale = self.scales or (None, None)
        up, *others = self.opening(x)
        gate = others[0] if others else None
        if gate is not None and extra is not None:
            gate, up = gate + extra[0], up + extra[1]
        if gate is not None and gate_scale is not None:
            gate = gate * gate_scale
        down: Tensor = self.down_proj(self.combine(self.functions, gate, up))
        return down if down_scale is None else down * down_scale


def soft_cap(x: Tensor, cap: float) -> Tensor:
    """cap * tanh(x / cap): close to x where it is small, never beyond the cap."""
    return torch.tanh(x / cap) * cap
