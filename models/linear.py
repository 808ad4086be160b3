"""Matrices of weights: whoever multiplies by one does it through a function that a backend may replace."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, slots=True, eq=False)
class Panels:
    """A matrix of weights (outputs, inputs) as a processor reads it for a product: in one run, some outputs at a time.

    Attributes:
        content: (panels, steps, width, depth): [p, s, o, d] is the weight of output p * width + o and input
            s * depth + d, or 0 where there is none.
        scales: (outputs,) float32, times which the content is meant, if it is of integers. dtype: of the weights.
    """

    content: Tensor
    outputs: int
    inputs: int
    dtype: torch.dtype
    scales: Tensor | None = None

    @staticmethod
    def of(weight: Tensor, width: int, depth: int) -> "Panels":
        outputs, inputs = weight.shape
        panels, steps = -(-outputs // width), -(-inputs // depth)
        padded = F.pad(weight, (0, steps * depth - inputs, 0, panels * width - outputs))
        return Panels(
            padded.view(panels, width, steps, depth).transpose(1, 2).contiguous(), outputs, inputs, weight.dtype
        )

    def rows(self, outputs: Tensor) -> Tensor:
        """The weights of some outputs (...,) int64 -> (..., inputs)."""
        width = self.content.shape[2]
        found = self.content[outputs // width, :, outputs % width].flatten(-2)[..., : self.inputs]
        return found if self.scales is None else (found * self.scales[outputs].unsqueeze(-1)).to(self.dtype)

    def unpack(self) -> Tensor:
        """(outputs, inputs), a copy."""
        weights = self.content.transpose(1, 2).flatten(2).flatten(0, 1)[: self.outputs, : self.inputs]
        return weights if self.scales is None else (weights * self.scales.unsqueeze(-1)).to(self.dtype)


Weight = Tensor | Panels
LayOut = Callable[[Tensor], Panels]


class LinearKernel(Protocol):
    """x (..., in) -> x @ weight.T + bias, (..., out), in x's dtype. weight: (out, in); bias: (out,) or None."""

    def __call__(self, x: Tensor, weight: Weight, bias: Tensor | None = None, /) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class LinearKernels:
    """multiply: the product. lay_out: what makes of a matrix what the product reads fastest; None: as it is.

    lay_out_int8: the same, in integers of 8 bits with a scale for each output; None: that is not there.
    """

    multiply: LinearKernel
    lay_out: LayOut | None = None
    lay_out_int8: LayOut | None = None


def multiply(x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
    """torch's own product."""
    return F.linear(x, weight if isinstance(weight, Tensor) else weight.unpack(), bias)


PLAIN = LinearKernels(multiply)


class Projecting(nn.Module):
    """A module that multiplies by matrices of weights. `linear` does it: torch's own, until kernels are chosen."""

    linear: LinearKernel = staticmethod(multiply)

    def lay_out(self, lay_out: LayOut) -> None:
        """Lay the weights out as the kernel reads them, once; they must not change afterwards."""


def give_back(parameter: Tensor) -> None:
    """Free the memory of weights that lie in panels: there is to be no second copy."""
    parameter.data = parameter.data.new_empty(0, *parameter.shape[1:])


def laid_out(parameter: Tensor, lay_out: LayOut) -> Panels:
    """A parameter's weights in panels; its own memory is given back."""
    panels = lay_out(parameter.data)
    give_back(parameter)
    return panels


class Linear(nn.Linear, Projecting):
    """torch's own, but for the kernel."""

    panels: Panels | None = None
    is_joined = False  # its weights lie with others', and it is asked for nothing alone

    @property
    def matrix(self) -> Weight:
        """As the kernel wants it."""
        return self.weight if self.panels is None else self.panels

    def lay_out(self, lay_out: LayOut) -> None:
        if self.panels is None and not self.is_joined:
            self.panels = laid_out(self.weight, lay_out)

    def forward(self, input: Tensor) -> Tensor:
        return self.linear(input, self.matrix, self.bias)


class Joined:
    """Several `Linear` that read the same input: one product, once their weights lie together.

    The kernel must give a product the same bits whichever matrix its weights are in.
    """

    def __init__(self, parts: Sequence[Linear]) -> None:
        self._parts = tuple(parts)
        self._sizes = [part.out_features for part in parts]
        self._panels: Panels | None = None
        self._bias: Tensor | None = None

    def lay_out(self, lay_out: LayOut) -> None:
        """Lay the weights out together, of which no second copy is kept. They must not change afterwards."""
        if self._panels is not None:
            return
        self._panels = lay_out(torch.cat([part.weight.data for part in self._parts]))
        biases: list[Tensor] = [part.bias for part in self._parts if part.bias is not None]
        self._bias = torch.cat(biases) if biases else None
        for part in self._parts:
            give_back(part.weight)
            part.is_joined = True

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """x (..., in) -> what each part makes of it, (..., its outputs)."""
        if self._panels is None:
            return tuple(part(x) for part in self._parts)
        return self._parts[0].linear(x, self._panels, self._bias).split(self._sizes, dim=-1)
