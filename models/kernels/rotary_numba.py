"""Rotary positions, and the writing of keys and values, for a processor, compiled by numba.

Plain torch makes a dozen passes of them, each of which costs a step of few tokens more than its arithmetic.

It imports numba at its top, so only what has made sure of numba may import it.
"""

import torch
from numba import prange
from torch import Tensor

from models.cache import KVCache
from models.kernels.numba_scalars import array, in_place, kernel, narrow, strict, task, use_torch_threads, widen

RUN = 16  # tokens of a task
SMALL = 1 << 14  # numbers: fewer are done before a second thread is awake


@strict
def _turned(value, cosine, other, sine):
    return value * cosine + other * sine


@task
def _rotate(y, x, cos, sin):
    """y, x (t, heads, size), cos and sin (t, rotary size): pairs of the two halves of the first entries are turned."""
    half = cos.shape[1] // 2
    for t in range(x.shape[0]):
        for h in range(x.shape[1]):
            row, out = x[t, h], y[t, h]
            for i in range(half):
                first, second = widen(row[i]), widen(row[half + i])
                out[i] = narrow(_turned(first, cos[t, i], second, -sin[t, i]), out[i])
                out[half + i] = narrow(_turned(second, cos[t, i], first, sin[t, i]), out[half + i])
            for i in range(2 * half, row.shape[0]):
                out[i] = row[i]


@kernel
def _rotate_many(y, x, cos, sin):
    for i in prange((x.shape[0] + RUN - 1) // RUN):
        rows = slice(i * RUN, min((i + 1) * RUN, x.shape[0]))
        _rotate(y[rows], x[rows], cos[rows], sin[rows])


@task
def _write(keys, values, k, v, slots):
    """k, v (t, heads, size) to their slots of keys, values (blocks, block size, heads, size); below 0 to none."""
    size = keys.shape[1]
    for t in range(len(slots)):
        if slots[t] >= 0:
            block, place = slots[t] // size, slots[t] % size
            for h in range(k.shape[1]):
                for d in range(k.shape[2]):
                    keys[block, place, h, d] = k[t, h, d]
                    values[block, place, h, d] = v[t, h, d]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """As in plain torch: x (..., heads, head_dim), cos and sin (..., rotary_dim) float32 -> x's shape and dtype."""
    y = torch.empty(x.shape, dtype=x.dtype)
    out, rows = (array(tensor).reshape(-1, *x.shape[-2:]) for tensor in (y, x))
    cosines, sines = (table.contiguous().numpy().reshape(len(rows), -1) for table in (cos, sin))
    if rows.size <= SMALL:
        _rotate(out, rows, cosines, sines)
    else:
        use_torch_threads()
        _rotate_many(out, rows, cosines, sines)
    return y


def write_kv(cache: KVCache, keys: Tensor, values: Tensor, slot_mapping: Tensor) -> None:
    """As in plain torch, of which it makes one pass."""
    dtype = cache.keys.dtype
    _write(
        in_place(cache.keys),
        in_place(cache.values),
        array(keys.to(dtype)),
        array(values.to(dtype)),
        slot_mapping.contiguous().numpy(),
    )
