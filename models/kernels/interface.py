"""What a mixer asks of a backend: one set of functions per operation, whatever computes them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from models.batch import ForwardBatch, Runs
from models.cache import KVCache
from models.config import ScoreSpec
from models.rope import apply_rotary

Operation = Literal[
    "linear",
    "norm",
    "activations",
    "attention",
    "convolution",
    "convolution step",
    "selective scan",
    "selective step",
    "SSD scan",
    "SSD step",
    "delta scan",
    "delta step",
]


class Attend(Protocol):
    """Causal attention of a mixed batch's new tokens over what their sequences have written, themselves included.

    q (t, heads, head_dim), rotated -> the same shape. sinks: (heads,), a logit of each head that gives nothing.
    """

    def __call__(
        self, q: Tensor, cache: KVCache, batch: ForwardBatch, *, scores: ScoreSpec, sinks: Tensor | None
    ) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class AttentionKernels:
    """Paged attention. write: new keys and values (t, kv_heads, head_dim) go to their slots (t,); -1 = dropped.

    rotate: x (..., heads, head_dim) by cosines and sines (..., rotary_dim) float32, to the same shape and dtype.
    """

    write: Callable[[KVCache, Tensor, Tensor, Tensor], None]
    attend: Attend
    rotate: Callable[[Tensor, Tensor, Tensor], Tensor] = apply_rotary


class Convolve(Protocol):
    """SiLU of the causal convolution over runs of tokens: x (b, l, channels) and the inputs before, (b, channels,
    kernel - 1) -> the same shapes. weight: (channels, 1, kernel); bias: (channels,) or None.
    """

    def __call__(self, x: Tensor, state: Tensor, weight: Tensor, bias: Tensor | None, /) -> tuple[Tensor, Tensor]: ...


class ConvolveStep(Protocol):
    """The same for one token of each sequence: x (b, channels) -> (b, channels); rows `slots` of the pool (s, channels,
    kernel - 1) change in place.
    """

    def __call__(self, x: Tensor, pool: Tensor, slots: Tensor, weight: Tensor, bias: Tensor | None, /) -> Tensor: ...


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


class ConvolveRuns(Protocol):
    """The same for runs of any lengths, in pieces: x (t, channels) -> (t, channels), and the states to the slots that
    the pieces name. Rows of other sequences hold anything.
    """

    def __call__(self, x: Tensor, pool: Tensor, runs: Runs, weight: Tensor, bias: Tensor | None, /) -> Tensor: ...


class ScanRuns(Protocol):
    """A recurrence over runs of any lengths, in pieces: inputs (t, ...) -> y, likewise."""

    def __call__(
        self, a: Tensor, b: Tensor, c: Tensor, d: Tensor, e: Tensor, /, *, pool: Tensor, runs: Runs
    ) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class RecurrentKernels:
    """What a recurrent mixer computes with. Which inputs scan and step take is what those in plain torch say.

    convolve_runs, scan_runs: the same for all runs of a step at once; None: they are taken one by one.
    """

    convolve: Convolve
    convolve_step: ConvolveStep
    scan: Scan
    step: Step
    convolve_runs: ConvolveRuns | None = None
    scan_runs: ScanRuns | None = None
