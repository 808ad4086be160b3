"""The recurrent mixers' kernels for steps on a processor, compiled by numba: each state is read and written once.

In plain torch a step passes over all states three times, to let them decay, to add to them and to read them. Here a
task holds a piece of one sequence's state in the processor's cache and does all of it. No result depends on what else
is in the batch. A step's pool may hold bfloat16 or float16, which it rounds to once it has computed in float32.

It imports numba at its top, so only what has made sure of numba may import it.
"""

from typing import Any

import numpy as np
import torch
from numba import prange
from torch import Tensor

from models.kernels.numba_scalars import (
    array,
    exp,
    flat,
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

ZERO, ONE = np.float32(0), np.float32(1)
FEW_CHANNELS = 1 << 13  # of a step's convolution: fewer are done before a second thread is awake
FEW_NUMBERS = 1 << 16  # of a selective step's states, likewise
CHANNELS = 64  # of a selective step's task


@strict
def add_product(total, factor, x):
    """In the order of the calls, unlike what stands in a task: a run and a step then agree."""
    return fma(factor, x, total)


@task
def rows_at(pool, start, rows, columns):
    """(rows, columns) numbers of a pool's memory."""
    return pool[start : start + rows * columns].reshape((rows, columns))


@task
def silu_row(row):
    for c in range(row.shape[0]):
        row[c] = row[c] / (ONE + exp(-row[c]))


@task
def _convolve_token(y, x, states, weight, bias):
    """y, x, bias (c,), states (c, k - 1), weight (c, k)."""
    last, row = weight.shape[1] - 1, np.empty(weight.shape[0], np.float32)
    for c in range(weight.shape[0]):
        new = widen(x[c])
        total = bias[c]
        for k in range(last):
            total = add_product(total, weight[c, k], states[c, k])
        total = add_product(total, weight[c, last], new)
        for k in range(last - 1):
            states[c, k] = states[c, k + 1]
        states[c, last - 1] = new
        row[c] = total
    silu_row(row)
    for c in range(weight.shape[0]):
        y[c] = narrow(row[c], y[c])


@task
def _convolve_tokens(y, x, x_stride, pool, stride, slots, weight, bias, first, stop):
    """Sequences first .. stop of y (b, c); x, pool: memory of rows (c,), (c, k - 1), each `stride` after the last."""
    channels, last = weight.shape[0], weight.shape[1] - 1
    for b in range(first, stop):
        states = rows_at(pool, slots[b] * stride, channels, last)
        _convolve_token(y[b], x[b * x_stride : b * x_stride + channels], states, weight, bias)


@kernel
def _convolve_step(y, x, x_stride, pool, stride, slots, weight, bias):
    for b in prange(y.shape[0]):
        _convolve_tokens(y, x, x_stride, pool, stride, slots, weight, bias, b, b + 1)


@task
def ssd_head(y, x, dt, rate, B, C, state):
    """One head: y, x (p,), B, C (n,), state (p, n)."""
    decay = exp(dt * rate)
    for p in range(state.shape[0]):
        added, total = x[p] * dt, ZERO
        row = state[p]
        for n in range(state.shape[1]):
            new = widen(row[n]) * decay + added * B[n]
            row[n] = narrow(new, row[n])
            total += new * C[n]
        y[p] = total


@task
def _widened(x):
    y = np.empty(x.shape[0], np.float32)
    for i in range(x.shape[0]):
        y[i] = widen(x[i])
    return y


@kernel
def _ssd_step(y, x, x_stride, dt, A, B, B_stride, C, C_stride, groups, pool, stride, slots, columns):
    """y (b, h, p), dt (b, h), A (h,), x, B, C: the memory of rows (h * p,), (g * n,), each `stride` after the last."""
    _, heads, rows = y.shape
    per_group = heads // groups
    for i in prange(y.shape[0] * heads):
        b, h = i // heads, i % heads
        g = h // per_group
        state = rows_at(pool, slots[b] * stride + h * rows * columns, rows, columns)
        xs, into = b * x_stride + h * rows, b * B_stride + g * columns
        out = b * C_stride + g * columns
        ssd_head(
            y[b, h], _widened(x[xs : xs + rows]), dt[b, h], A[h], _widened(B[into : into + columns]),
            _widened(C[out : out + columns]), state,
        )  # fmt: skip


@strict
def decay_and_add(held, dt, rate, added, into):
    """The same."""
    return fma(added, into, held * exp(dt * rate))


@task
def _selective_state(y, x, dt, A, B, C, state, first):
    """One token of the channels from `first` on: y, x, dt (d,), A, state (d, n), B, C (n,)."""
    new = np.empty(state.shape[1], np.float32)
    for d in range(first, min(first + CHANNELS, x.shape[0])):
        row, rates, step, total = state[d], A[d], dt[d], ZERO
        added = step * x[d]
        for n in range(row.shape[0]):
            new[n] = decay_and_add(widen(row[n]), step, rates[n], added, B[n])
            row[n] = narrow(new[n], row[n])
        for n in range(row.shape[0]):  # in the order of a scan, where vectors hold channels
            total = add_product(total, new[n], C[n])
        y[d] = total


@task
def _selective_tiles(y, x, dt, A, B, B_stride, C, C_stride, pool, stride, slots, first, stop):
    """Tiles first .. stop of all sequences' channels: y, x, dt (b, d), A (d, n), B, C, pool: the memory of rows (n,),
    (d, n), each `stride` after the last.
    """
    tiles, size = (x.shape[1] + CHANNELS - 1) // CHANNELS, A.shape[1]
    for i in range(first, stop):
        b = i // tiles
        state = rows_at(pool, slots[b] * stride, A.shape[0], size)
        into, out = B[b * B_stride : b * B_stride + size], C[b * C_stride : b * C_stride + size]
        _selective_state(y[b], x[b], dt[b], A, into, out, state, (i % tiles) * CHANNELS)


@kernel
def _selective_step(y, x, dt, A, B, B_stride, C, C_stride, pool, stride, slots, tiles):
    for i in prange(tiles):
        _selective_tiles(y, x, dt, A, B, B_stride, C, C_stride, pool, stride, slots, i, i + 1)


@task
def delta_token(y, q, k, v, decay, beta, state, new):
    """One token of one head: y, v, new (n,), q, k (p,), state (p, n)."""
    rows, columns = state.shape
    for n in range(columns):
        new[n] = ZERO
        y[n] = ZERO
    for p in range(rows):
        row, factor = state[p], k[p]
        for n in range(columns):
            new[n] += factor * widen(row[n])
    for n in range(columns):
        new[n] = beta * (v[n] - decay * new[n])
    for p in range(rows):
        row, into, out = state[p], k[p], q[p]
        for n in range(columns):
            now = widen(row[n]) * decay + into * new[n]
            row[n] = narrow(now, row[n])
            y[n] += out * now


@kernel
def _delta_step(y, q, k, v, log_decay, beta, pool, stride, slots):
    """y, v (b, h, n), q, k (b, g, p), log_decay, beta (b, h), pool: the memory of rows (h, p, n)."""
    _, heads, columns = v.shape
    per_key, rows = heads // k.shape[1], k.shape[2]
    for i in prange(v.shape[0] * heads):
        b, h = i // heads, i % heads
        g, new = h // per_key, np.empty(v.shape[2], np.float32)
        decay = exp(log_decay[b, h])
        state = rows_at(pool, slots[b] * stride + h * rows * columns, rows, columns)
        delta_token(y[b, h], q[b, g], k[b, g], v[b, h], decay, beta[b, h], state, new)


def bias_row(bias: Tensor | None, channels: int) -> np.ndarray[Any, Any]:
    return np.zeros(channels, np.float32) if bias is None else floats(bias)


def conv_step(x: Tensor, pool: Tensor, slots: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """As in plain torch: x (b, channels), rows `slots` of pool (s, channels, kernel - 1) change in place."""
    y = torch.empty(x.shape, dtype=x.dtype)
    inputs = array(y), *rows_of(x), flat(pool), pool.stride(0), slots.numpy(), floats(weight.squeeze(1))
    added = bias_row(bias, x.shape[1])
    if x.numel() <= FEW_CHANNELS:
        _convolve_tokens(*inputs, added, 0, len(x))
    else:
        use_torch_threads()
        _convolve_step(*inputs, added)
    return y


def ssd_step(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, *, pool: Tensor, slots: Tensor) -> Tensor:
    """As in plain torch: x (b, h, p), dt (b, h), A (h,), B, C (b, g, n), pool (s, h, p, n)."""
    y = torch.empty(x.shape)
    use_torch_threads()
    _ssd_step(
        y.numpy(),
        *rows_of(x.flatten(1)),
        floats(dt),
        floats(A),
        *rows_of(B.flatten(1)),
        *rows_of(C.flatten(1)),
        B.shape[1],
        flat(pool),
        pool.stride(0),
        slots.numpy(),
        B.shape[2],
    )
    return y


def selective_step(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, *, pool: Tensor, slots: Tensor) -> Tensor:
    """As in plain torch: x, dt (b, d), A (d, n), B, C (b, n), pool (s, d, n)."""
    y = torch.empty(x.shape)
    sides = *rows_of(B.float()), *rows_of(C.float())
    inputs = y.numpy(), *map(floats, (x, dt, A)), *sides, flat(pool), pool.stride(0), slots.numpy()
    tiles = len(x) * -(-x.shape[1] // CHANNELS)
    if x.numel() * A.shape[1] <= FEW_NUMBERS:
        _selective_tiles(*inputs, 0, tiles)
    else:
        use_torch_threads()
        _selective_step(*inputs, tiles)
    return y


def delta_step(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, *, pool: Tensor, slots: Tensor
) -> Tensor:
    """As in plain torch: q, k (b, g, p), v (b, h, n), log_decay, beta (b, h), pool (s, h, p, n)."""
    y = torch.empty(v.shape)
    use_torch_threads()
    _delta_step(y.numpy(), *map(floats, (q, k, v, log_decay, beta)), flat(pool), pool.stride(0), slots.numpy())
    return y
