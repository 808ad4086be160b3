"""Functions of single numbers for a processor, compiled by numba: the same bits wherever a number lies.

Torch computes whole vectors of numbers in one way and what remains at the end of a thread's share in another, so that
a row has other bits in other company. Here both are the same arithmetic, without leave to reorder any of it.

It imports numba at its top, so only what has made sure of numba may import it.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numba import prange
from torch import Tensor

from models import activations
from models.activations import Activations
from models.kernels.numba_scalars import array, exp, flat, fma, kernel, narrow, strict, task, use_torch_threads, widen

ZERO, ONE, TWO = np.float32(0), np.float32(1), np.float32(2)
# 2 * sqrt(2 / pi), and the same times 0.044715, as the approximation of GELU by tanh has them.
GELU, GELU_CUBED = np.float32(1.5957691216057308), np.float32(0.07135481627159193)
SHARE = 1 << 15  # numbers of a task: fewer are done before a second thread is awake
SILU, SIGMOID, SOFTPLUS, GELU_TANH = range(4)
DTYPES = (torch.float32, torch.bfloat16)


@strict
def _sigmoid(x):
    return ONE / (ONE + exp(-x))


@strict
def _silu(x):
    return x / (ONE + exp(-x))


@strict
def _softplus(x):
    """max(x, 0) + log(1 + u), u = e^-|x|: of the logarithm eight terms in u / (2 + u), which is at most a third."""
    u = exp(-abs(x))
    s = u / (TWO + u)
    square = s * s
    total = fma(square, np.float32(1.0 / 15), np.float32(1.0 / 13))
    total = fma(total, square, np.float32(1.0 / 11))
    total = fma(total, square, np.float32(1.0 / 9))
    total = fma(total, square, np.float32(1.0 / 7))
    total = fma(total, square, np.float32(1.0 / 5))
    total = fma(total, square, np.float32(1.0 / 3))
    total = fma(total, square, ONE)
    return max(x, ZERO) + TWO * s * total


@strict
def _gelu_tanh(x):
    return x * _sigmoid(x * (GELU + GELU_CUBED * (x * x)))


@task
def _apply_to(y, x, kind):
    if kind == SILU:
        for i in range(x.shape[0]):
            y[i] = narrow(_silu(widen(x[i])), y[i])
    elif kind == SIGMOID:
        for i in range(x.shape[0]):
            y[i] = narrow(_sigmoid(widen(x[i])), y[i])
    elif kind == SOFTPLUS:
        for i in range(x.shape[0]):
            y[i] = narrow(_softplus(widen(x[i])), y[i])
    else:
        for i in range(x.shape[0]):
            y[i] = narrow(_gelu_tanh(widen(x[i])), y[i])


@task
def _apply_to_rows(y, x, stride, size, kind, first, stop):
    """Rows first .. stop: of y (rows * size,), and of x's memory, where each begins `stride` numbers after the last."""
    for row in range(first, stop):
        _apply_to(y[row * size : (row + 1) * size], x[row * stride : row * stride + size], kind)


@task
def _gate_rows(y, gate, gate_stride, up, up_stride, size, first, stop):
    for row in range(first, stop):
        into = y[row * size : (row + 1) * size]
        gates, ups = gate[row * gate_stride : row * gate_stride + size], up[row * up_stride : row * up_stride + size]
        for i in range(size):
            into[i] = narrow(_silu(widen(gates[i])) * widen(ups[i]), into[i])


@kernel
def _apply_to_shares(y, x, stride, size, kind, share):
    rows = y.shape[0] // size
    for i in prange((rows + share - 1) // share):
        _apply_to_rows(y, x, stride, size, kind, i * share, min((i + 1) * share, rows))


@kernel
def _gate_shares(y, gate, gate_stride, up, up_stride, size, share):
    rows = y.shape[0] // size
    for i in prange((rows + share - 1) // share):
        _gate_rows(y, gate, gate_stride, up, up_stride, size, i * share, min((i + 1) * share, rows))


def _serves(x: Tensor) -> bool:
    """Not where gradients may be wanted."""
    return x.dtype in DTYPES and x.numel() > 0 and not torch.is_grad_enabled()


def _rows(x: Tensor) -> tuple[np.ndarray[Any, Any], int]:
    """The memory of rows x (..., d), and how many numbers after the last each of them begins."""
    rows = x.reshape(-1, x.shape[-1])
    if rows.stride(1) != 1 or rows.stride(0) < rows.shape[1]:
        rows = rows.contiguous()
    return flat(rows), rows.stride(0)


def _apply(x: Tensor, kind: int) -> Tensor:
    y, size = torch.empty(x.shape, dtype=x.dtype), x.shape[-1]
    memory, stride = _rows(x)
    if x.numel() <= SHARE:
        _apply_to_rows(array(y).reshape(-1), memory, stride, size, kind, 0, x.numel() // size)
    else:
        use_torch_threads()
        _apply_to_shares(array(y).reshape(-1), memory, stride, size, kind, max(1, SHARE // size))
    return y


def silu(x: Tensor) -> Tensor:
    return _apply(x, SILU) if _serves(x) else F.silu(x)


def sigmoid(x: Tensor) -> Tensor:
    return _apply(x, SIGMOID) if _serves(x) else torch.sigmoid(x)


def softplus(x: Tensor) -> Tensor:
    return _apply(x, SOFTPLUS) if _serves(x) else F.softplus(x)


def gelu(x: Tensor) -> Tensor:
    """Torch's own, which computes all numbers alike where they lie side by side."""
    return F.gelu(x.contiguous())


def gelu_tanh(x: Tensor) -> Tensor:
    return _apply(x, GELU_TANH) if _serves(x) else activations.gelu_tanh(x)


def gate_silu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, in the gate's memory where its rows lie side by side."""
    if not _serves(gate) or gate.dtype != up.dtype:
        return activations.gate_silu(gate, up)
    y, size = gate if gate.is_contiguous() else torch.empty(gate.shape, dtype=gate.dtype), gate.shape[-1]
    inputs = *_rows(gate), *_rows(up), size
    if gate.numel() <= SHARE:
        _gate_rows(array(y).reshape(-1), *inputs, 0, gate.numel() // size)
    else:
        use_torch_threads()
        _gate_shares(array(y).reshape(-1), *inputs, max(1, SHARE // size))
    return y


ACTIVATIONS = Activations(silu, sigmoid, softplus, gelu, gelu_tanh, gate_silu)
