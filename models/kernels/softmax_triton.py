"""What the attention kernels in Triton share: one softmax carried on over the keys of a paged cache.

It imports triton at its top, so only what has made sure of triton may import it. All softmaxes are taken to the base of
two, which is what the hardware has.
"""

import triton
import triton.language as tl

LOG2E = 1.4426950408889634
PER_BASE_TWO: tl.constexpr = tl.constexpr(LOG2E)
FLOOR: tl.constexpr = tl.constexpr(-1e30)  # below every score, yet finite: -inf - -inf would be NaN


@triton.jit
def _capped(products, scale, SOFTCAP: tl.constexpr):
    """Products of queries and keys -> scores to the base of two.

    scale: on the products, to the base of two already where SOFTCAP is None, and divided by SOFTCAP where it is not.
    """
    x = products * scale
    if SOFTCAP is not None:
        # tanh by an exponential that cannot overflow, whatever the sign.
        shrunk = tl.exp2(tl.abs(x) * (-2 * PER_BASE_TWO))
        size = (1 - shrunk) / (1 + shrunk)
        x = tl.where(x < 0, -size, size) * (SOFTCAP * PER_BASE_TWO)
    return x


# The interpreter multiplies the bits of bfloat16 as if they were integers.
WIDENED: tl.constexpr = tl.constexpr(not isinstance(_capped, triton.JITFunction))


@triton.jit
def _dot(a, b, added):
    """a @ b + added in float32; float32 operands are not rounded to the tensor cores' tf32."""
    if WIDENED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, added, input_precision="ieee")


@triton.jit
def read_range(
    q, read, peak, total, positions, start, stop, table_ptr, keys_ptr, values_ptr, block_stride, scale,
    MASKED: tl.constexpr, SOFTCAP: tl.constexpr, WINDOW: tl.constexpr, HEAD_DIM: tl.constexpr, KV_HEADS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Carry a softmax on over the keys at positions start .. stop - 1 of one sequence and of one key head.

    MASKED: False where every row may look at all of them and there are whole tiles of them.

    Args:
        q: (rows, padded head_dim). read: float32 of that shape, weighted values so far. peak, total: (rows,) float32,
            largest score so far and sum of the weights, relative to it. positions: (rows,), of the queries.
        keys_ptr, values_ptr: at the key head in block 0.
    """
    dims = tl.arange(0, q.shape[1])
    for first in tl.range(start, stop, TILE):
        tokens = first + tl.arange(0, TILE)
        # A tile is longer than a block or shorter; each of its rows looks its block up.
        blocks = tl.load(table_ptr + tokens // BLOCK_SIZE, mask=tokens < stop, other=0).to(tl.int64)
        rows = blocks * block_stride + (tokens % BLOCK_SIZE) * (KV_HEADS * HEAD_DIM)
        offsets = rows[:, None] + dims[None, :]
        # What was not written is not read either: zero times NaN would be NaN.
        there = (tokens < stop)[:, None] & (dims < HEAD_DIM)[None, :]
        keys = tl.load(keys_ptr + offsets, mask=there, other=0.0).to(q.dtype)
        scores = _capped(_dot(q, tl.trans(keys), None), scale, SOFTCAP)
        if MASKED:
            visible = tokens[None, :] <= positions[:, None]
            if WINDOW is not None:
                visible = visible & (tokens[None, :] > positions[:, None] - WINDOW)
            scores = tl.where(visible, scores, -float("inf"))
        new_peak = tl.maximum(peak, tl.max(scores, axis=1))
        weights = tl.exp2(scores - new_peak[:, None])
        shrink = tl.exp2(peak - new_peak)
        total = total * shrink + tl.sum(weights, axis=1)
        values = tl.load(values_ptr + offsets, mask=there, other=0.0).to(q.dtype)
        read = _dot(weights.to(q.dtype), values, read * shrink[:, None])
        peak = new_peak
    return read, peak, total


@triton.jit
def with_sinks(peak, total, sinks_ptr, heads, mask):
    """What to scale and divide by, a sink's weight included: factor and divisor, each as peak and total."""
    new_peak = peak
    if sinks_ptr is not None:
        sinks = tl.load(sinks_ptr + heads, mask=mask, other=0.0).to(tl.float32) * PER_BASE_TWO
        new_peak = tl.maximum(peak, sinks)
        total = total * tl.exp2(peak - new_peak) + tl.exp2(sinks - new_peak)
    # Where nothing was read, what is divided is zero.
    return tl.exp2(peak - new_peak), tl.where(total > 0, total, 1.0)
