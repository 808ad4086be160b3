"""Matrices of weights: whoever multiplies by one does it through a function that a backend may replace."""

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEW = 16  # rows of inputs: a product of more is large by itself


class LinearKernel(Protocol):
    """x (..., in) -> x @ weight.T + bias, (..., out), in x's dtype. weight: (out, in); bias: (out,) or None."""

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None = None, /) -> Tensor: ...


class Projecting(nn.Module):
    """A module that multiplies by matrices of weights. `linear` does it: torch's own, until kernels are chosen."""

    linear: LinearKernel = staticmethod(F.linear)


class Linear(nn.Linear, Projecting):
    """torch's own, but for the kernel."""

    def forward(self, input: Tensor) -> Tensor:
        return self.linear(input, self.weight, self.bias)


class Joined:
    """Several `Linear` that read the same input: for few rows one product, once their weights lie one behind the other.

    The kernel must give a product the same bits whichever matrix its weights are in.
    """

    def __init__(self, parts: Sequence[Linear]) -> None:
        self._parts = tuple(parts)
        self._sizes = [part.out_features for part in parts]
        self._weight: Tensor | None = None
        self._bias: Tensor | None = None

    def prepare(self) -> None:
        """Lay the weights out, of which no second copy is kept. They must not change afterwards."""
        self._weight = self._lay_out([part.weight for part in self._parts])
        biases: list[Tensor] = [part.bias for part in self._parts if part.bias is not None]
        self._bias = self._lay_out(biases) if biases else None

    def _lay_out(self, parameters: Sequence[Tensor]) -> Tensor:
        together = torch.cat([parameter.data for parameter in parameters])
        for parameter, rows in zip(parameters, together.split(self._sizes), strict=True):
            parameter.data = rows
        return together

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """x (..., in) -> what each part makes of it, (..., its outputs)."""
        if self._weight is None or torch.is_grad_enabled() or x.numel() > FEW * x.shape[-1]:
            return tuple(part(x) for part in self._parts)
        return self._parts[0].linear(x, self._weight, self._bias).split(self._sizes, dim=-1)
