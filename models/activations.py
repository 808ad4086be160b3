"""Functions of single numbers between the products: whoever applies one does it through what a backend may replace."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Activations:
    """Each but the last: x -> a new tensor of its shape and dtype. gate_silu: gate, up -> silu(gate) * up, which may
    take the gate's memory.
    """

    silu: Callable[[Tensor], Tensor]
    sigmoid: Callable[[Tensor], Tensor]
    softplus: Callable[[Tensor], Tensor]
    gelu: Callable[[Tensor], Tensor]
    gelu_tanh: Callable[[Tensor], Tensor]
    gate_silu: Callable[[Tensor, Tensor], Tensor]


def gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def gate_silu(gate: Tensor, up: Tensor) -> Tensor:
    if torch.is_grad_enabled():
        return F.silu(gate) * up
    # In place: new memory of this size costs a processor more than the arithmetic.
    return F.silu(gate, inplace=True).mul_(up)


PLAIN = Activations(F.silu, torch.sigmoid, F.softplus, F.gelu, gelu_tanh, gate_silu)


class Activating(nn.Module):
    """A module that applies such functions. `functions` has them: torch's own, until kernels are chosen."""

    functions: Activations = PLAIN
