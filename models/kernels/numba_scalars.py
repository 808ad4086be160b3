"""What the kernels in numba compute with: numbers as their arrays hold them, and functions that become vector code.

It imports numba at its top, so only what has made sure of numba may import it.
"""

import platform
import threading
from collections.abc import Callable
from functools import update_wrapper
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import binding, ir
from numba import types
from numba.extending import intrinsic, overload, typeof_impl
from torch import Tensor

from models.kernels.noting import noting

numba_config: Any = numba.config
# Before the first parallel kernel: torch's own threads then run them too. A second pool beside them would wait for
# processors on which the first one spins.
numba_config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]

# Sums may be taken in any fixed order and a product joined to a sum, which vector code needs; NaN and inf stay right.
FAST = {"reassoc", "contract", "nsz", "arcp"}

LOG2E, LN2_HIGH, LN2_LOW = np.float32(1.4426950408889634), np.float32(0.693145751953125), np.float32(1.42860677e-06)
INT16, INT32 = ir.IntType(16), ir.IntType(32)
MOST_HALF = np.float32(65504)
HAS_FMA = platform.machine() not in ("x86_64", "AMD64") or binding.get_host_cpu_features().get("fma", False)
LEAST, MOST = np.float32(-87.0), np.float32(88.0)


class Compiled:
    """A compiled function, for Python and for others that are compiled. Python's calls are noted where one listens."""

    def __init__(self, function: Callable[..., Any], compiled: Callable[..., Any]) -> None:
        update_wrapper(self, function)
        self.compiled = compiled

    def __call__(self, *arguments: Any) -> Any:
        if noting.notes is not None:
            noting.notes.note(self.compiled, arguments)
        return self.compiled(*arguments)


@typeof_impl.register(Compiled)
def _type_of_compiled(value, context):
    """To those that are compiled it is what numba made."""
    return types.Dispatcher(value.compiled)


def _compile(function: Callable[..., Any], **options: Any) -> Compiled:
    """What was compiled is kept beside the source where it can be."""
    try:
        compiled = numba.njit(cache=True, fastmath=FAST, error_model="numpy", nogil=True, **options)(function)
    except RuntimeError:  # numba found no place to write to
        compiled = numba.njit(fastmath=FAST, error_model="numpy", nogil=True, **options)(function)
    return Compiled(function, compiled)


def task(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile what one thread does of a kernel."""
    return _compile(function)


def piece(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a piece of a task into its callers: what is called for little work is to cost no more than that."""
    return numba.njit(fastmath=FAST, error_model="numpy", nogil=True, forceinline=True)(function)


def exact_task(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile what is to be computed in the order in which it is written."""
    return Compiled(function, numba.njit(error_model="numpy", nogil=True)(function))


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a kernel, whose `prange` runs its tasks on all threads."""
    return _compile(function, parallel=True)


def _build_bits_as_float(typing, value):
    """bfloat16, by its 16 bits, as float32."""

    def build(context, builder, signature, arguments):
        bits = builder.shl(builder.zext(arguments[0], INT32), INT32(16))
        return builder.bitcast(bits, ir.FloatType())

    return types.float32(value), build


def _build_nearest_bits(typing, value):
    """The 16 bits of the bfloat16 nearest to a float32; halves go to the even neighbour."""

    def build(context, builder, signature, arguments):
        bits = builder.bitcast(arguments[0], INT32)
        odd = builder.and_(builder.lshr(bits, INT32(16)), INT32(1))
        rounded = builder.add(builder.add(bits, INT32(0x7FFF)), odd)
        return builder.trunc(builder.lshr(rounded, INT32(16)), INT16)

    return types.uint16(value), build


def _build_half_as_float(typing, value):
    """float16, by its 16 bits, as float32."""

    def build(context, builder, signature, arguments):
        return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.FloatType())

    return types.float32(value), build


def _build_nearest_half(typing, value):
    """The 16 bits of the float16 nearest to a float32."""

    def build(context, builder, signature, arguments):
        return builder.bitcast(builder.fptrunc(arguments[0], ir.HalfType()), INT16)

    return types.int16(value), build


# numba's types know nothing of a builder's first argument, which no caller gives.
_bits_as_float: Any = intrinsic(_build_bits_as_float)
_nearest_bits: Any = intrinsic(_build_nearest_bits)
_half_as_float: Any = intrinsic(_build_half_as_float)
_nearest_half: Any = intrinsic(_build_nearest_half)


def widen(value: Any) -> Any:
    """A stored number as float32: a float as it is, bfloat16 and float16 by their bits. For kernels only."""
    raise NotImplementedError


def narrow(value: Any, like: Any) -> Any:
    """float32 as a number is stored that is like another: as it is, or the bits of the nearest bfloat16 or float16.

    What is too large for a float16 becomes its largest number, with its sign. For kernels only.
    """
    raise NotImplementedError


@overload(widen, inline="always")
def _widen(value):
    if isinstance(value, types.Float):
        return lambda value: value
    return (lambda value: _half_as_float(value)) if value.signed else lambda value: _bits_as_float(value)


@overload(narrow, inline="always")
def _narrow(value, like):
    if isinstance(like, types.Float):
        return lambda value, like: value
    if like.signed:
        return lambda value, like: _nearest_half(min(max(value, -MOST_HALF), MOST_HALF))
    return lambda value, like: _nearest_bits(value)


def _build_fma(typing, factor, x, added):
    """factor * x + added, rounded once, where the processor does it in one instruction; else rounded twice."""

    def build(context, builder, signature, arguments):
        if HAS_FMA:
            return builder.fma(*arguments)
        return builder.fadd(builder.fmul(arguments[0], arguments[1]), arguments[2])

    return types.float32(types.float32, types.float32, types.float32), build


fma: Any = intrinsic(_build_fma)


def strict(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile what must give the same bits wherever it stands: no compiler may join or reorder its operations."""
    return numba.njit(fastmath=False, error_model="numpy")(function)


@strict
def exp(x):
    """e^x within 2 units in the last place, for loops that become vector code, where a library's function would not.

    Below -87 it stays at e^-87, above 88 at e^88.
    """
    x = min(max(x, LEAST), MOST)
    power = np.int32(np.int32(fma(x, LOG2E, np.float32(128.5))) - np.int32(128))
    whole = np.float32(power)
    r = fma(whole, -LN2_LOW, fma(whole, -LN2_HIGH, x))
    p = fma(np.float32(1.0 / 5040), r, np.float32(1.0 / 720))
    p = fma(p, r, np.float32(1.0 / 120))
    p = fma(p, r, np.float32(1.0 / 24))
    p = fma(p, r, np.float32(1.0 / 6))
    p = fma(p, r, np.float32(0.5))
    p = fma(p, r, np.float32(1.0))
    p = fma(p, r, np.float32(1.0))
    return p * np.int32((power + np.int32(127)) << np.int32(23)).view(np.float32)


# As what a kernel gets the numbers that numba does not know: by the sign it tells the two apart.
BITS = {torch.bfloat16: torch.uint16, torch.float16: torch.int16}


def in_place(tensor: Tensor) -> np.ndarray[Any, Any]:
    """A tensor's own memory for a kernel that changes it: float32 as it is, others as their 16 bits."""
    tensor = tensor.detach()
    return tensor.view(BITS.get(tensor.dtype, tensor.dtype)).numpy()


def array(tensor: Tensor) -> np.ndarray[Any, Any]:
    """A tensor's memory for a kernel, contiguous; the same for one that is not is a copy."""
    return in_place(tensor.contiguous())


def flat(tensor: Tensor) -> np.ndarray[Any, Any]:
    """All memory from a tensor's first number to its last for a kernel that knows the strides, never copied."""
    size = 1 + sum((count - 1) * stride for count, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return in_place(tensor.as_strided((size,), (1,)))


def rows_of(x: Tensor) -> tuple[np.ndarray[Any, Any], int]:
    """The memory of rows x (..., d), and how many numbers after the last each of them begins; a copy only where the
    rows lie in no such order, or their numbers not side by side.
    """
    rows = x.reshape(-1, x.shape[-1])
    if rows.stride(1) != 1 or rows.stride(0) < rows.shape[1]:
        rows = rows.contiguous()
    return flat(rows), rows.stride(0)


def floats(tensor: Tensor) -> np.ndarray[Any, Any]:
    """The same in float32 whatever it was."""
    array: np.ndarray[Any, Any] = tensor.detach().float().contiguous().numpy()
    return array


class _Threads(threading.local):
    """How many threads the kernels of this thread take."""

    count = 0


_threads = _Threads()


def use_torch_threads() -> None:
    """Kernels of this thread take as many threads as torch's operations do."""
    if noting.notes is not None:
        noting.notes.note(use_torch_threads, ())
    count = torch.get_num_threads()
    if count != _threads.count:  # telling numba costs as much as a small kernel
        numba.set_num_threads(max(1, min(count, int(numba_config.NUMBA_NUM_THREADS))))
        _threads.count = count
