"""Functions of single numbers between the products, and of rows: who applies one does it through a backend's."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TimeSteps(Protocol):
    """dt (..., d), bias (d,) -> softplus(dt + bias), no less than low and no more than high, float32."""

    def __call__(self, dt: Tensor, bias: Tensor, low: float = 0.0, high: float = math.inf) -> Tensor: ...


class GatedNorm(Protocol):
    """x, gate (..., d), weight (d,) -> the RMS norm, over each of the groups, of x * silu(gate), times weight; with
    norm_first that of x, times weight * silu(gate). In x's dtype.
    """

    def __call__(
        self, x: Tensor, gate: Tensor, weight: Tensor, eps: float, *, num_groups: int, norm_first: bool
    ) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Activations:
    """The first five: x -> a new tensor of its shape and dtype. gate_silu: gate, up -> silu(gate) * up, which may take
    the gate's memory. add: x + y, of one shape.

    skip: y (..., d) float32, x (..., d), D (d,), dtype -> y + D * x in that dtype. skip_gate: y, x, D, gate (..., d) ->
    (y + D * x) * silu(gate), in the gate's dtype.
    """

    silu: Callable[[Tensor], Tensor]
    sigmoid: Callable[[Tensor], Tensor]
    softplus: Callable[[Tensor], Tensor]
    gelu: Callable[[Tensor], Tensor]
    gelu_tanh: Callable[[Tensor], Tensor]
    gate_silu: Callable[[Tensor, Tensor], Tensor]
    add: Callable[[Tensor, Tensor], Tensor]
    time_steps: TimeSteps
    skip: Callable[[Tensor, Tensor, Tensor, torch.dtype], Tensor]
    skip_gate: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    gated_norm: GatedNorm


def gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def gate_silu(gate: Tensor, up: Tensor) -> Tensor:
    if torch.is_grad_enabled():
        return F.silu(gate) * up
    # In place: new memory of this size costs a processor more than the arithmetic.
    return F.silu(gate, inplace=True).mul_(up)


def time_steps(dt: Tensor, bias: Tensor, low: float = 0.0, high: float = math.inf) -> Tensor:
    steps = F.softplus(dt.float() + bias.float())
    return steps if (low, high) == (0.0, math.inf) else steps.clamp(low, high)


def skip(y: Tensor, x: Tensor, D: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.addcmul(y, x.to(y.dtype), D.float()).to(dtype)


def skip_gate(y: Tensor, x: Tensor, D: Tensor, gate: Tensor) -> Tensor:
    return (torch.addcmul(y, x.float(), D.float()) * F.silu(gate.float())).to(gate.dtype)


def gated_norm(x: Tensor, gate: Tensor, weight: Tensor, eps: float, *, num_groups: int, norm_first: bool) -> Tensor:
    open_gate = F.silu(gate.float())
    gated = x.float() if norm_first else x.float() * open_gate
    if x.dtype == torch.float32 and num_groups == 1 and not norm_first:
        return F.rms_norm(gated, (gated.shape[-1],), weight, eps)
    groups = gated.unflatten(-1, (num_groups, -1))
    normalised = F.rms_norm(groups, groups.shape[-1:], eps=eps).flatten(-2).to(x.dtype) * weight
    return (normalised * open_gate).to(x.dtype) if norm_first else normalised


PLAIN = Activations(
    F.silu,
    torch.sigmoid,
    F.softplus,
    F.gelu,
    gelu_tanh,
    gate_silu,
    torch.add,
    time_steps,
    skip,
    skip_gate,
    gated_norm,
)


class Activating(nn.Module):
    """A module that applies such functions. `functions` has them: torch's own, until kernels are chosen."""

    functions: Activations = PLAIN
