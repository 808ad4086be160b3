"""Matrices of weights: whoever multiplies by one does it through a function that a backend may replace."""

from typing import Protocol

import torch.nn.functional as F
from torch import Tensor, nn


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
