"""The recurrent mixers' kernels for runs of tokens on a processor: all sequences of a step at once, each run in pieces.

A task takes a part of one sequence's state, a head or some channels, from its slot into the nearest cache, goes over
all tokens, and puts it into the slot that follows each piece: nothing is copied besides, and short prompts cost no more
than their tokens. Tasks of one part are neighbours, so that sequences of different lengths share all threads evenly.

It imports numba at its top, so only what has made sure of numba may import it.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numba import prange
from torch import Tensor

from models.batch import FRESH, Runs
from models.kernels.numba_scalars import (
    array,
    exp,
    flat,
    floats,
    kernel,
    narrow,
    rows_of,
    task,
    use_torch_threads,
    widen,
)
from models.kernels.recurrent_numba import (
    ZERO,
    add_product,
    bias_row,
    decay_and_add,
    delta_token,
    rows_at,
    silu_row,
    ssd_head,
)

CONVOLVED, BLOCK = 128, 32  # channels of a convolution's task, and tokens between two looks at its state
CHANNELS = 64  # of a selective scan's task: its states fit into the nearest cache


@task
def _take(state, pool, place):
    """A piece of a state (p, n), from a pool's memory on."""
    rows = rows_at(pool, place, state.shape[0], state.shape[1])
    for p in range(state.shape[0]):
        for n in range(state.shape[1]):
            state[p, n] = widen(rows[p, n])


@task
def _leave(pool, place, state):
    """Put it there, and go on from what was kept, as others will who take it up."""
    rows = rows_at(pool, place, state.shape[0], state.shape[1])
    for p in range(state.shape[0]):
        for n in range(state.shape[1]):
            kept = narrow(state[p, n], rows[p, n])
            rows[p, n] = kept
            state[p, n] = widen(kept)


@task
def _convolve_tokens(y, x, x_stride, window, weight, bias, start, stop, first):
    """Tokens start .. stop of some channels from `first` on. window (k - 1 + BLOCK, count): in its first rows what came
    before them, and in the end what comes before `stop`.
    """
    width, count, sums = weight.shape[0], window.shape[1], np.empty(window.shape[1], np.float32)
    for t in range(start, stop):
        row, now = x[t * x_stride + first : t * x_stride + first + count], window[t - start + width - 1]
        for c in range(count):
            now[c] = widen(row[c])
        sums[:] = bias[first : first + count]
        for k in range(width):
            taps, inputs = weight[k, first : first + count], window[t - start + k]
            for c in range(count):
                sums[c] = add_product(sums[c], taps[c], inputs[c])
        silu_row(sums)
        for c in range(count):
            y[t, first + c] = narrow(sums[c], y[t, first + c])
    for k in range(width - 1):
        window[k] = window[stop - start + k]


@task
def _convolve_run(y, x, x_stride, pool, stride, weight, bias, pieces, first):
    """Some channels from `first` on of one sequence: y (t, c), x: the memory of rows (c,), each `x_stride` behind the
    last, weight (k, c), bias (c,), pool: the memory of rows (c, k - 1), pieces as in `Runs`.
    """
    channels, kept = weight.shape[1], weight.shape[0] - 1
    count = min(CONVOLVED, channels - first)
    window = np.zeros((kept + BLOCK, count), np.float32)
    if pieces[0, 2] != FRESH:
        window[:kept] = rows_at(pool, pieces[0, 2] * stride, channels, kept)[first : first + count].T
    for piece in range(pieces.shape[0]):
        for start in range(pieces[piece, 0], pieces[piece, 1], BLOCK):
            stop = min(start + BLOCK, pieces[piece, 1])
            _convolve_tokens(y, x, x_stride, window, weight, bias, start, stop, first)
        rows_at(pool, pieces[piece, 3] * stride, channels, kept)[first : first + count] = window[:kept].T


@kernel
def _convolve_runs(y, x, x_stride, pool, stride, weight, bias, pieces, starts):
    runs, tiles = starts.shape[0] - 1, (weight.shape[1] + CONVOLVED - 1) // CONVOLVED
    for i in prange(runs * tiles):
        r, first = i % runs, i // runs * CONVOLVED
        mine = pieces[starts[r] : starts[r + 1]]
        _convolve_run(y, x, x_stride, pool, stride, weight, bias, mine, first)


@task
def _ssd_run(y, x, dt, rate, B, C, pool, stride, pieces, h, g):
    """Head h, of group g, of one sequence: y, x (t, h, p), dt (t, h), B, C (t, g, n), pool: the memory of rows
    (h, p, n).
    """
    rows, columns = x.shape[2], B.shape[2]
    state, place = np.zeros((rows, columns), np.float32), h * rows * columns
    if pieces[0, 2] != FRESH:
        _take(state, pool, pieces[0, 2] * stride + place)
    for piece in range(pieces.shape[0]):
        for t in range(pieces[piece, 0], pieces[piece, 1]):
            ssd_head(y[t, h], x[t, h], dt[t, h], rate, B[t, g], C[t, g], state)
        _leave(pool, pieces[piece, 3] * stride + place, state)


@kernel
def _ssd_runs(y, x, dt, A, B, C, pool, stride, pieces, starts):
    """y, x (t, h, p), dt (t, h), A (h,), B, C (t, g, n)."""
    runs, heads = starts.shape[0] - 1, x.shape[1]
    per_group = heads // B.shape[1]
    for i in prange(runs * heads):
        r, h = i % runs, i // runs
        mine = pieces[starts[r] : starts[r + 1]]
        _ssd_run(y, x, dt, A[h], B, C, pool, stride, mine, h, h // per_group)


@task
def _selective_token(y, x, dt, A, B, C, state):
    """One token of some channels: y, x, dt (d,), A, state (n, d), B, C (n,)."""
    channels = y.shape[0]
    for d in range(channels):
        y[d] = ZERO
    for n in range(A.shape[0]):
        rates, row, into, out = A[n], state[n], B[n], C[n]
        for d in range(channels):
            new = decay_and_add(row[d], dt[d], rates[d], dt[d] * x[d], into)
            row[d] = new
            y[d] = add_product(y[d], new, out)


@task
def _selective_run(y, x, dt, A, B, C, pool, stride, pieces, first):
    """Some channels from `first` on of one sequence: y, x, dt (t, d), A (n, d), B, C (t, n), pool: the memory of rows
    (d, n).
    """
    columns, stop = A.shape[0], min(first + CHANNELS, x.shape[1])
    rates, state = A[:, first:stop].copy(), np.zeros((stop - first, columns), np.float32)
    if pieces[0, 2] != FRESH:
        _take(state, pool, pieces[0, 2] * stride + first * columns)
    held = state.T.copy()
    for piece in range(pieces.shape[0]):
        for t in range(pieces[piece, 0], pieces[piece, 1]):
            _selective_token(y[t, first:stop], x[t, first:stop], dt[t, first:stop], rates, B[t], C[t], held)
        state[:] = held.T
        _leave(pool, pieces[piece, 3] * stride + first * columns, state)
        held[:] = state.T


@kernel
def _selective_runs(y, x, dt, A, B, C, pool, stride, pieces, starts):
    runs, tiles = starts.shape[0] - 1, (x.shape[1] + CHANNELS - 1) // CHANNELS
    for i in prange(runs * tiles):
        r, first = i % runs, i // runs * CHANNELS
        _selective_run(y, x, dt, A, B, C, pool, stride, pieces[starts[r] : starts[r + 1]], first)


@task
def _delta_run(y, q, k, v, log_decay, beta, pool, stride, pieces, h, g):
    """Head h, with keys g, of one sequence: y, v (t, h, n), q, k (t, g, p), log_decay, beta (t, h), pool: the memory of
    rows (h, p, n).
    """
    rows, columns = k.shape[2], v.shape[2]
    state, place = np.zeros((rows, columns), np.float32), h * rows * columns
    new = np.empty(columns, np.float32)
    if pieces[0, 2] != FRESH:
        _take(state, pool, pieces[0, 2] * stride + place)
    for piece in range(pieces.shape[0]):
        for t in range(pieces[piece, 0], pieces[piece, 1]):
            delta_token(y[t, h], q[t, g], k[t, g], v[t, h], exp(log_decay[t, h]), beta[t, h], state, new)
        _leave(pool, pieces[piece, 3] * stride + place, state)


@kernel
def _delta_runs(y, q, k, v, log_decay, beta, pool, stride, pieces, starts):
    """y, v (t, h, n), q, k (t, g, p), log_decay, beta (t, h)."""
    runs, heads = starts.shape[0] - 1, v.shape[1]
    per_key = heads // k.shape[1]
    for i in prange(runs * heads):
        r, h = i % runs, i // runs
        mine = pieces[starts[r] : starts[r + 1]]
        _delta_run(y, q, k, v, log_decay, beta, pool, stride, mine, h, h // per_key)


def convolve_runs(x: Tensor, pool: Tensor, runs: Runs, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (t, channels), pool (s, channels, kernel - 1) float32."""
    y = torch.empty(x.shape, dtype=x.dtype)
    use_torch_threads()
    taps, added = floats(weight.squeeze(1).T), bias_row(bias, x.shape[1])
    _convolve_runs(array(y), *rows_of(x), flat(pool), pool.stride(0), taps, added, *runs.arrays)
    return y


def ssd_runs(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, *, pool: Tensor, runs: Runs) -> Tensor:
    """x (t, h, p), dt (t, h), A (h,), B, C (t, g, n), pool (s, h, p, n)."""
    return _recur(_ssd_runs, x, (x, dt, A, B, C), pool, runs)


def selective_runs(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, *, pool: Tensor, runs: Runs) -> Tensor:
    """x, dt (t, d), A (d, n), B, C (t, n), pool (s, d, n)."""
    return _recur(_selective_runs, x, (x, dt, A.T, B, C), pool, runs)


def delta_runs(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, *, pool: Tensor, runs: Runs) -> Tensor:
    """q, k (t, g, p), v (t, h, n), log_decay, beta (t, h), pool (s, h, p, n)."""
    return _recur(_delta_runs, v, (q, k, v, log_decay, beta), pool, runs)


def _recur(compiled: Callable[..., None], like: Tensor, inputs: Sequence[Tensor], pool: Tensor, runs: Runs) -> Tensor:
    y = torch.empty(like.shape)
    use_torch_threads()
    compiled(y.numpy(), *map(floats, inputs), flat(pool), pool.stride(0), *runs.arrays)
    return y


def convolve(x: Tensor, state: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """As in plain torch: x (b, l, channels), state (b, channels, kernel - 1)."""
    pool = state.float().clone(memory_format=torch.contiguous_format)
    y = convolve_runs(x.flatten(0, 1), pool, Runs.whole(*x.shape[:2]), weight, bias)
    return y.view(x.shape), pool.to(x.dtype)


def ssd_scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, *, state: Tensor) -> tuple[Tensor, Tensor]:
    """As in plain torch: x (b, l, h, p), dt (b, l, h), A (h,), B, C (b, l, g, n), state (b, h, p, n)."""
    return _scan(ssd_runs, (x, dt, A, B, C), state, rates=2)


def selective_scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, *, state: Tensor) -> tuple[Tensor, Tensor]:
    """As in plain torch: x, dt (b, l, d), A (d, n), B, C (b, l, n), state (b, d, n)."""
    return _scan(selective_runs, (x, dt, A, B, C), state, rates=2)


def delta_scan(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, *, state: Tensor
) -> tuple[Tensor, Tensor]:
    """As in plain torch: q, k (b, l, g, p), v (b, l, h, n), log_decay, beta (b, l, h), state (b, h, p, n)."""
    return _scan(delta_runs, (q, k, v, log_decay, beta), state, rates=None)


def _scan(
    scan_runs: Callable[..., Tensor], inputs: Sequence[Tensor], state: Tensor, *, rates: int | None
) -> tuple[Tensor, Tensor]:
    """rates: which of the inputs is the same for all tokens."""
    pool = state.clone(memory_format=torch.contiguous_format)
    flattened = [each if number == rates else each.flatten(0, 1) for number, each in enumerate(inputs)]
    batch = inputs[0].shape[:2]
    y = scan_runs(*flattened, pool=pool, runs=Runs.whole(*batch))
    return y.unflatten(0, batch), pool
