"""What stands between a mixer's products, compiled by numba: one pass over a row, where plain torch makes up to nine.

Prompts and single tokens take the same arithmetic in the same order, number by number, so that they agree to the bit.

It imports numba at its top, so only what has made sure of numba may import it.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numba import prange
from torch import Tensor

from models import activations
from models.kernels.functions_numba import ONE, SHARE, ZERO, serves, silu_of, softplus_of
from models.kernels.numba_scalars import (
    array,
    floats,
    fma,
    kernel,
    narrow,
    rows_of,
    strict,
    task,
    use_torch_threads,
    widen,
)


@strict
def _plus(x, y):
    return x + y


@strict
def _times(x, y):
    return x * y


@strict
def _time_step(x, bias, low, high):
    step = softplus_of(x + bias)
    if step < low:  # what is no number stays none
        return low
    return high if step > high else step


@strict
def _skipped(y, x, factor):
    return fma(x, factor, y)


@strict
def _skipped_and_gated(y, x, factor, gate):
    return fma(x, factor, y) * silu_of(gate)


@task
def _add(out, x, y):
    for i in range(out.shape[0]):
        out[i] = narrow(_plus(widen(x[i]), widen(y[i])), out[i])


@task
def _time_step_rows(out, dt, stride, bias, low, high, first, stop):
    """Rows first .. stop: of out (rows * size,), and of dt's memory, where each begins `stride` after the last."""
    size = bias.shape[0]
    for row in range(first, stop):
        into, given = out[row * size : (row + 1) * size], dt[row * stride : row * stride + size]
        for i in range(size):
            into[i] = _time_step(widen(given[i]), bias[i], low, high)


@kernel
def _time_step_shares(out, dt, stride, bias, low, high, share):
    rows = out.shape[0] // bias.shape[0]
    for i in prange((rows + share - 1) // share):
        _time_step_rows(out, dt, stride, bias, low, high, i * share, min((i + 1) * share, rows))


@task
def _skip_rows(out, y, y_stride, x, x_stride, D, first, stop):
    size = D.shape[0]
    for row in range(first, stop):
        into, ys = out[row * size : (row + 1) * size], y[row * y_stride : row * y_stride + size]
        xs = x[row * x_stride : row * x_stride + size]
        for i in range(size):
            into[i] = narrow(_skipped(ys[i], widen(xs[i]), D[i]), into[i])


@kernel
def _skip_shares(out, y, y_stride, x, x_stride, D, share):
    rows = out.shape[0] // D.shape[0]
    for i in prange((rows + share - 1) // share):
        _skip_rows(out, y, y_stride, x, x_stride, D, i * share, min((i + 1) * share, rows))


@task
def _skip_gate_rows(out, y, y_stride, x, x_stride, gate, gate_stride, D, first, stop):
    size = D.shape[0]
    for row in range(first, stop):
        into, ys = out[row * size : (row + 1) * size], y[row * y_stride : row * y_stride + size]
        xs, gates = x[row * x_stride : row * x_stride + size], gate[row * gate_stride : row * gate_stride + size]
        for i in range(size):
            into[i] = narrow(_skipped_and_gated(ys[i], widen(xs[i]), D[i], widen(gates[i])), into[i])


@kernel
def _skip_gate_shares(out, y, y_stride, x, x_stride, gate, gate_stride, D, share):
    rows = out.shape[0] // D.shape[0]
    for i in prange((rows + share - 1) // share):
        _skip_gate_rows(out, y, y_stride, x, x_stride, gate, gate_stride, D, i * share, min((i + 1) * share, rows))


@task
def _scale_of(values, eps):
    total = ZERO
    for value in values:
        total += value * value
    return ONE / np.sqrt(total / np.float32(values.shape[0]) + eps)


@task
def _gated_norm_rows(out, x, x_stride, gate, gate_stride, weight, eps, num_groups, norm_first, first, stop):
    """Rows first .. stop of out (rows * size,), rounded where plain torch rounds."""
    size = weight.shape[0]
    each, values = size // num_groups, np.empty(size, np.float32)
    for row in range(first, stop):
        into, gates = out[row * size : (row + 1) * size], gate[row * gate_stride : row * gate_stride + size]
        given = x[row * x_stride : row * x_stride + size]
        for i in range(size):
            values[i] = widen(given[i])
            if not norm_first:
                values[i] = _times(values[i], silu_of(widen(gates[i])))
        for begin in range(0, size, each):
            scale = _scale_of(values[begin : begin + each], eps)
            for i in range(begin, begin + each):
                into[i] = narrow(_times(values[i], scale), into[i])
        for i in range(size):
            into[i] = narrow(_times(widen(into[i]), widen(weight[i])), into[i])
        if norm_first:
            for i in range(size):
                into[i] = narrow(_times(widen(into[i]), silu_of(widen(gates[i]))), into[i])


@kernel
def _gated_norm_shares(out, x, x_stride, gate, gate_stride, weight, eps, num_groups, norm_first, share):
    rows = out.shape[0] // weight.shape[0]
    for i in prange((rows + share - 1) // share):
        _gated_norm_rows(
            out, x, x_stride, gate, gate_stride, weight, eps, num_groups, norm_first,
            i * share, min((i + 1) * share, rows),
        )  # fmt: skip


def _run(rows_kernel: Callable[..., Any], shares: Callable[..., Any], out: Tensor, *inputs: Any) -> Tensor:
    size = out.shape[-1]
    if out.numel() <= SHARE:
        rows_kernel(array(out).reshape(-1), *inputs, 0, out.numel() // size)
    else:
        use_torch_threads()
        shares(array(out).reshape(-1), *inputs, max(1, SHARE // size))
    return out


def add(x: Tensor, y: Tensor) -> Tensor:
    """x + y of one shape; torch's own where they are many."""
    if not (serves(x) and serves(y) and x.shape == y.shape) or x.numel() > SHARE:
        return x + y
    out = torch.empty(x.shape, dtype=torch.promote_types(x.dtype, y.dtype))
    _add(*(array(tensor).reshape(-1) for tensor in (out, x, y)))
    return out


def time_steps(dt: Tensor, bias: Tensor, low: float = 0.0, high: float = math.inf) -> Tensor:
    """softplus(dt + bias) between low and high: dt (..., d), bias (d,) -> (..., d) float32."""
    if not serves(dt):
        return activations.time_steps(dt, bias, low, high)
    bounds = np.float32(low), np.float32(high)
    return _run(_time_step_rows, _time_step_shares, torch.empty(dt.shape), *rows_of(dt), floats(bias), *bounds)


def skip(y: Tensor, x: Tensor, D: Tensor, dtype: torch.dtype) -> Tensor:
    """y + D * x in a dtype: y (..., d) float32, x (..., d), D (d,) -> (..., d)."""
    out = torch.empty(y.shape, dtype=dtype)
    if not (serves(out) and serves(x)):
        return activations.skip(y, x, D, dtype)
    return _run(_skip_rows, _skip_shares, out, *rows_of(y), *rows_of(x), floats(D))


def skip_gate(y: Tensor, x: Tensor, D: Tensor, gate: Tensor) -> Tensor:
    """(y + D * x) * silu(gate): y (..., d) float32, x, gate (..., d), D (d,) -> (..., d) in the gate's dtype."""
    if not (serves(gate) and serves(x)):
        return activations.skip_gate(y, x, D, gate)
    out = torch.empty(gate.shape, dtype=gate.dtype)
    return _run(_skip_gate_rows, _skip_gate_shares, out, *rows_of(y), *rows_of(x), *rows_of(gate), floats(D))


def gated_norm(x: Tensor, gate: Tensor, weight: Tensor, eps: float, *, num_groups: int, norm_first: bool) -> Tensor:
    """As in plain torch: x, gate (..., d), weight (d,) -> (..., d) in x's dtype."""
    if not serves(x) or gate.dtype != x.dtype or weight.dtype != x.dtype:
        return activations.gated_norm(x, gate, weight, eps, num_groups=num_groups, norm_first=norm_first)
    how = array(weight), np.float32(eps), num_groups, norm_first
    return _run(
        _gated_norm_rows, _gated_norm_shares, torch.empty(x.shape, dtype=x.dtype), *rows_of(x), *rows_of(gate), *how
    )
