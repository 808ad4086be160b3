"""What a mixer asks of a backend: one set of functions per operation, whatever computes them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from models.batch import ForwardBatch
from models.cache import KVCache
from models.config import ScoreSpec

Operation = Literal["attention", "convolution", "selective scan", "SSD", "delta rule"]
OPERATIONS: tuple[Operation, ...] = ("attention", "convolution", "selective scan", "SSD", "delta rule")


class Attend(Protocol):
    """Causal attention of a mixed batch's new tokens over what their sequences have written, themselves included.

    q (t, heads, head_dim), rotated -> the same shape. sinks: (heads,), a logit of each head that gives nothing.
    """

    def __call__(
        self, q: Tensor, cache: KVCache, batch: ForwardBatch, *, scores: ScoreSpec, sinks: Tensor | None
    ) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class AttentionKernels:
    """write: new keys and values (t, kv_heads, head_dim) go to their slots (t,); rows mapped to -1 are dropped."""

    name: str
    write: Callable[[KVCache, Tensor, Tensor, Tensor], None]
    attend: Attend


@dataclass(frozen=True, slots=True)
class ConvolutionKernels:
    """SiLU of the causal convolution, weight (channels, 1, kernel), bias (channels,) or None.

    scan(x (b, l, channels), state (b, channels, kernel - 1), weight, bias) -> the same shapes.
    step(x (b, channels), pool (s, channels, kernel - 1), slots (b,), weight, bias) -> (b, channels); the pool's rows
    change in place.
    """

    name: str
    scan: Callable[[Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]
    step: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor | None], Tensor]


class Scan(Protocol):
    """A recurrence over whole runs of tokens: its inputs (b, l, ...) and the state before -> y and the state after.

    They are five in each: x, dt, A, B, C, or q, k, v, log_decay, beta.
    """

    def __call__(
        self, a: Tensor, b: Tensor, c: Tensor, d: Tensor, e: Tensor, /, *, state: Tensor
    ) -> tuple[Tensor, Tensor]: ...


class Step(Protocol):
    """One token for each of b sequences: inputs (b, ...) -> y; rows of the pool change in place.

    slots: (b,) int64, distinct; a backend whose steps are captured in CUDA graphs takes -1 for a row to leave alone.
    """

    def __call__(
        self, a: Tensor, b: Tensor, c: Tensor, d: Tensor, e: Tensor, /, *, pool: Tensor, slots: Tensor
    ) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class RecurrenceKernels:
    """A recurrence; which inputs it takes, and in which shapes, is what its functions in plain torch say."""

    name: str
    scan: Scan
    step: Step


@dataclass(frozen=True, slots=True)
class MixerKernels:
    """What a recurrent mixer computes with."""

    convolution: ConvolutionKernels
    recurrence: RecurrenceKernels
