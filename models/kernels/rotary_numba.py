"""Rotary positions, and the writing of keys and values, for a processor, compiled by numba.

Plain torch makes a dozen passes of them, each of which costs a step of few tokens more than its arithmetic.

It imports numba at its top, so only what has made sure of numba may import it.
"""

import torch
from numba import prange
from torch import Tensor

from models.cache import KVCache
from models.kernels.numba_scalars import (
    array,
    in_place,
    kernel,
    narrow,
    rows_of,
    strict,
    task,
    use_torch_threads,
    widen,
)

RUN = 16  # tokens of a task
SMALL = 1 << 14  # numbers: fewer are done before a second thread is awake


@strict
def _turned(value, cosine, other, sine):
    return value * cosine + other * sine


@task
def _rotate(y, x, stride, cos, sin, first, stop):
    """Tokens first .. stop: y (t, heads, size), x: the memory of rows (heads * size,), each `stride` after the last,
    cos and sin (t, rotary size): pairs of the two halves of the first entries are turned.
    """
    half, size = cos.shape[1] // 2, y.shape[2]
    for t in range(first, stop):
        for h in range(y.shape[1]):
            begin = t * stride + h * size
            row, out = x[begin : begin + size], y[t, h]
            for i in range(half):
                one, other = widen(row[i]), widen(row[half + i])
                out[i] = narrow(_turned(one, cos[t, i], other, -sin[t, i]), out[i])
                out[half + i] = narrow(_turned(other, cos[t, i], one, sin[t, i]), out[half + i])
            for i in range(2 * half, size):
                out[i] = row[i]


@kernel
def _rotate_many(y, x, stride, cos, sin):
    for i in prange((y.shape[0] + RUN - 1) // RUN):
        _rotate(y, x, stride, cos, sin, i * RUN, min((i + 1) * RUN, y.shape[0]))


@task
def _write(keys, values, k, k_stride, v, v_stride, slots):
    """Rows of k, v (heads * size,), each `stride` after the last, to their slots of keys, values (blocks, block size,
    heads, size); below 0 to none.
    """
    block_size, heads, size = keys.shape[1], keys.shape[2], keys.shape[3]
    for t in range(len(slots)):
        if slots[t] >= 0:
            block, place = slots[t] // block_size, slots[t] % block_size
            for h in range(heads):
                key, value = k[t * k_stride + h * size :], v[t * v_stride + h * size :]
                for d in range(size):
                    keys[block, place, h, d] = key[d]
                    values[block, place, h, d] = value[d]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """As in plain torch: x (..., heads, head_dim), cos and sin (..., rotary_dim) float32 -> x's shape and dtype."""
    y = torch.empty(x.shape, dtype=x.dtype)
    out = array(y).reshape(-1, *x.shape[-2:])
    inputs = *rows_of(x.flatten(-2)), *(table.contiguous().numpy().reshape(len(out), -1) for table in (cos, sin))
    if out.size <= SMALL:
        _rotate(out, *inputs, 0, len(out))
    else:
        use_torch_threads()
        _rotate_many(out, *inputs)
    return y


def write_kv(cache: KVCache, keys: Tensor, values: Tensor, slot_mapping: Tensor) -> None:
    """As in plain torch, of which it makes one pass."""
    dtype = cache.keys.dtype
    _write(
        in_place(cache.keys),
        in_place(cache.values),
        *rows_of(keys.to(dtype).flatten(1)),
        *rows_of(values.to(dtype).flatten(1)),
        slot_mapping.contiguous().numpy(),
    )
