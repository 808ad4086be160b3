"""The rule by which each operation gets its backend. Plain values in, plain values out: no torch, no GPU needed.

The first candidate of an operation that does not refuse is taken. Plain torch comes last and never refuses.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from models.config import (
    AttentionSpec,
    DeltaNetSpec,
    LayerSpec,
    Mamba1Spec,
    Mamba2Spec,
    RecurrentSpec,
    simple_mixers,
)
from models.kernels.environment import Environment
from models.kernels.interface import Operation

HALF = ("bfloat16", "float16")
COMPILED_FOR_CPU = ("float32", "bfloat16")
SMALL_BLOCK, LARGE_BLOCK = 16, 256
FLASH_HEAD_DIM = 256
CONVOLUTION_WIDTHS = (2, 3, 4)


@dataclass(frozen=True, slots=True)
class Need:
    """What a mixer asks of an operation beyond its inputs; only what some backend refuses.

    state_dtype: in which a recurrence's states are kept between steps.
    """

    dtype: str
    block_size: int = LARGE_BLOCK
    head_dim: int = 0
    softcap: bool = False
    sinks: bool = False
    width: int = 0
    state_dtype: str = "float32"


@dataclass(frozen=True, slots=True)
class Choice:
    """The backend of an operation, and why each better one was passed over: (its name, the reason)."""

    operation: Operation
    backend: str
    passed_over: tuple[tuple[str, str], ...]


Refusal = Callable[[Environment, Need], str | None]


def _package(environment: Environment, name: str) -> str | None:
    if not environment.is_gpu:
        return "needs a GPU"
    package = environment.packages.get(name)
    if package is None or package.version is None:
        return f"not installed: pip install {name}"
    return package.problem


def _flash(environment: Environment, need: Need) -> str | None:
    """What both libraries of FlashAttention-2 kernels refuse."""
    if environment.capability is not None and environment.capability < (8, 0):
        return "needs a GPU of compute capability 8.0 or newer"
    if need.dtype not in HALF:
        return f"computes in {' or '.join(HALF)}, not in {need.dtype}"
    if need.head_dim > FLASH_HEAD_DIM or need.head_dim % 8:
        return f"head_dim {need.head_dim} is above {FLASH_HEAD_DIM} or no multiple of 8"
    if need.sinks:
        return "knows no attention sinks"
    if need.block_size % LARGE_BLOCK:
        return f"needs --block-size to be a multiple of {LARGE_BLOCK}, not {need.block_size}"
    return None


def _flash_attn(environment: Environment, need: Need) -> str | None:
    return _package(environment, "flash-attn") or _flash(environment, need)


def _varlen_attn(environment: Environment, need: Need) -> str | None:
    if not environment.is_gpu:
        return "needs a GPU"
    if not environment.has_paged_varlen:
        return f"torch {environment.torch_version} has no block table in varlen_attn: needs 2.13"
    return "knows no soft cap" if need.softcap else _flash(environment, need)


def _triton(environment: Environment, need: Need) -> str | None:
    del need
    return _package(environment, "triton")


def _mamba_ssm(environment: Environment, need: Need) -> str | None:
    del need
    return _package(environment, "mamba-ssm")


def _causal_conv1d(environment: Environment, need: Need) -> str | None:
    if need.width not in CONVOLUTION_WIDTHS:
        return f"computes kernels of {', '.join(map(str, CONVOLUTION_WIDTHS))} inputs, not of {need.width}"
    return _package(environment, "causal-conv1d")


def _numba(environment: Environment, need: Need) -> str | None:
    if environment.is_gpu:
        return "needs a processor"
    if need.dtype not in COMPILED_FOR_CPU:
        return f"computes in {' or '.join(COMPILED_FOR_CPU)}, not in {need.dtype}"
    if need.state_dtype == "float16" and not environment.converts_half:
        return "this processor converts no float16, which --state-dtype asks for"
    package = environment.packages.get("numba")
    if package is None or package.version is None:
        return "not installed: pip install numba"
    return package.problem


def _never(environment: Environment, need: Need) -> None:
    del environment, need


NUMBA, TORCH = ("numba", _numba), ("torch", _never)
# mamba-ssm's selective scan cannot begin with a state, as every chunk of a prompt but the first does; its step writes
# where padding points to. So both are our own, as are all steps: they leave padding alone.
CANDIDATES: dict[Operation, tuple[tuple[str, Refusal], ...]] = {
    "linear": (NUMBA, TORCH),
    "norm": (NUMBA, TORCH),
    "activations": (NUMBA, TORCH),
    "attention": (("flash-attn", _flash_attn), ("varlen_attn", _varlen_attn), ("triton", _triton), NUMBA, TORCH),
    "convolution": (("causal-conv1d", _causal_conv1d), NUMBA, TORCH),
    "convolution step": (("triton", _triton), NUMBA, TORCH),
    "selective scan": (("triton", _triton), NUMBA, TORCH),
    "selective step": (("triton", _triton), NUMBA, TORCH),
    "SSD scan": (("mamba-ssm", _mamba_ssm), NUMBA, TORCH),
    "SSD step": (("triton", _triton), NUMBA, TORCH),
    "delta scan": (NUMBA, TORCH),
    "delta step": (("triton", _triton), NUMBA, TORCH),
}


EVERYWHERE: tuple[Operation, ...] = ("linear", "norm", "activations")  # what every model asks for


def choose(operation: Operation, environment: Environment, need: Need) -> Choice:
    """The first of an operation's candidates that does not refuse."""
    passed_over: list[tuple[str, str]] = []
    for name, refusal in CANDIDATES[operation]:
        reason = refusal(environment, need)
        if reason is None:
            return Choice(operation, name, tuple(passed_over))
        passed_over.append((name, reason))
    raise AssertionError(f"{operation} has no backend that serves everywhere")


def attention_need(spec: AttentionSpec, dtype: str, block_size: int) -> Need:
    return Need(
        dtype, block_size, head_dim=spec.head_dim, softcap=spec.scores.softcap is not None, sinks=bool(spec.sinks)
    )


def recurrent_operations(spec: RecurrentSpec) -> tuple[Operation, Operation]:
    """The scan and the step of a recurrent mixer."""
    if isinstance(spec, Mamba1Spec):
        return "selective scan", "selective step"
    if isinstance(spec, Mamba2Spec):
        return "SSD scan", "SSD step"
    assert isinstance(spec, DeltaNetSpec)
    return "delta scan", "delta step"


def operations_of(
    mixer: AttentionSpec | RecurrentSpec, dtype: str, block_size: int, state_dtype: str = "float32"
) -> Iterable[tuple[Operation, Need]]:
    """What a mixer asks for."""
    if isinstance(mixer, AttentionSpec):
        yield "attention", attention_need(mixer, dtype, block_size)
        return
    width = Need(dtype, width=mixer.conv_kernel)
    yield "convolution", width
    yield "convolution step", width
    scan, step = recurrent_operations(mixer)
    yield scan, width  # of states that were widened before
    yield step, replace(width, state_dtype=state_dtype)


def choices_for(
    layers: Iterable[LayerSpec], environment: Environment, dtype: str, block_size: int, state_dtype: str = "float32"
) -> tuple[Choice, ...]:
    """What a model's layers get, each different choice once, in the order of the layers."""
    chosen: dict[Choice, None] = dict.fromkeys(choose(name, environment, Need(dtype)) for name in EVERYWHERE)
    for mixer in simple_mixers(layers):
        for operation, need in operations_of(mixer, dtype, block_size, state_dtype):
            chosen[choose(operation, environment, need)] = None
    return tuple(chosen)


def preferred_block_size(layers: Iterable[LayerSpec], environment: Environment, dtype: str) -> int:
    """Tokens per KV block: large where a kernel that wants it so would then serve every attention layer, else small."""
    choices = choices_for(layers, environment, dtype, LARGE_BLOCK)
    backends = {choice.backend for choice in choices if choice.operation == "attention"}
    return LARGE_BLOCK if backends and backends <= {"flash-attn", "varlen_attn"} else SMALL_BLOCK
