"""Functions of single numbers for a processor, compiled by numba: the same bits wherever a number lies.

Torch computes whole vectors of numbers in one way and what remains at the end of a thread's share in another, so that
a row has other bits in other company. Here both are the same arithmetic, without leave to reorder any of it.

It imports numba at its top, so only what has made sure of numba may import it.
"""

import torch
import torch.nn.functional as F
from numba import prange
from torch import Tensor

from models import activations
from models.activations import Activations
from models.kernels import gates_numba
from models.kernels.functions_numba import SHARE, gelu_tanh_of, serves, sigmoid_of, silu_of, softplus_of
from models.kernels.numba_scalars import array, kernel, narrow, rows_of, task, use_torch_threads, widen

SILU, SIGMOID, SOFTPLUS, GELU_TANH = range(4)


@task
def _apply_to(y, x, kind):
    if kind == SILU:
        for i in range(x.shape[0]):
            y[i] = narrow(silu_of(widen(x[i])), y[i])
    elif kind == SIGMOID:
        for i in range(x.shape[0]):
            y[i] = narrow(sigmoid_of(widen(x[i])), y[i])
    elif kind == SOFTPLUS:
        for i in range(x.shape[0]):
            y[i] = narrow(softplus_of(widen(x[i])), y[i])
    else:
        for i in range(x.shape[0]):
            y[i] = narrow(gelu_tanh_of(widen(x[i])), y[i])


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
            into[i] = narrow(silu_of(widen(gates[i])) * widen(ups[i]), into[i])


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


def _apply(x: Tensor, kind: int) -> Tensor:
    y, size = torch.empty(x.shape, dtype=x.dtype), x.shape[-1]
    memory, stride = rows_of(x)
    if x.numel() <= SHARE:
        _apply_to_rows(array(y).reshape(-1), memory, stride, size, kind, 0, x.numel() // size)
    else:
        use_torch_threads()
        _apply_to_shares(array(y).reshape(-1), memory, stride, size, kind, max(1, SHARE // size))
    return y


def silu(x: Tensor) -> Tensor:
    return _apply(x, SILU) if serves(x) else F.silu(x)


def sigmoid(x: Tensor) -> Tensor:
    return _apply(x, SIGMOID) if serves(x) else torch.sigmoid(x)


def softplus(x: Tensor) -> Tensor:
    return _apply(x, SOFTPLUS) if serves(x) else F.softplus(x)


def gelu(x: Tensor) -> Tensor:
    """Torch's own, which computes all numbers alike where they lie side by side."""
    return F.gelu(x.contiguous())


def gelu_tanh(x: Tensor) -> Tensor:
    return _apply(x, GELU_TANH) if serves(x) else activations.gelu_tanh(x)


def gate_silu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, in the gate's memory where its rows lie side by side."""
    if not serves(gate) or gate.dtype != up.dtype:
        return activations.gate_silu(gate, up)
    y, size = gate if gate.is_contiguous() else torch.empty(gate.shape, dtype=gate.dtype), gate.shape[-1]
    inputs = *rows_of(gate), *rows_of(up), size
    if gate.numel() <= SHARE:
        _gate_rows(array(y).reshape(-1), *inputs, 0, gate.numel() // size)
    else:
        use_torch_threads()
        _gate_shares(array(y).reshape(-1), *inputs, max(1, SHARE // size))
    return y


ACTIVATIONS = Activations(
    silu,
    sigmoid,
    softplus,
    gelu,
    gelu_tanh,
    gate_silu,
    gates_numba.add,
    gates_numba.time_steps,
    gates_numba.skip,
    gates_numba.skip_gate,
    gates_numba.gated_norm,
)
