"""What runs of queries and single ones share of the attention compiled by numba: tiles read, and their sums joined.

It imports numba at its top, so only what has made sure of numba may import it.
"""

import numpy as np

from models.kernels.attention_vectors_numba import widen_vectors
from models.kernels.numba_scalars import exp, fma, narrow, strict, task, widen
from models.kernels.vectors_numba import WIDTH

ZERO, ONE, TWO, NOTHING = np.float32(0), np.float32(1), np.float32(2), np.float32(-np.inf)


@strict
def cap_score(score, cap):
    return cap * (ONE - TWO / (exp(TWO / cap * score) + ONE))


@strict
def _join(sums, factor, more, factor_of_more):
    return fma(more, factor_of_more, sums * factor)


@strict
def _share(sums, factor, total):
    return sums * factor / total


@task
def find(places, layout, table, first):
    """Where the positions from `first` on begin in a pool's memory; layout: block size, numbers between blocks, and
    between positions.
    """
    block_size, block_stride, row_stride = layout
    block, row = first // block_size, first % block_size
    for i in range(places.shape[0]):
        places[i] = table[block] * block_stride + row * row_stride
        row += 1
        if row == block_size:
            block, row = block + 1, 0


@task
def read(rows, pool, places, start, size):
    """rows (n, padded size): the `size` numbers at `start` in each of n positions."""
    padded = rows.shape[0] // places.shape[0] if places.shape[0] > 0 else 0
    for i in range(places.shape[0]):
        widen_vectors(rows, i * padded, pool, places[i] + start, size // WIDTH)
        for d in range(size - size % WIDTH, size):
            rows[i * padded + d] = widen(pool[places[i] + start + d])


@task
def join_tile(sums, ends, part, found):
    """Add a tile's sums (padded size,) to those before; ends, found (2,): the largest score, the sum of the weights."""
    if found[0] == NOTHING:
        return
    peak = max(ends[0], found[0])
    factor, factor_of_more = exp(ends[0] - peak), exp(found[0] - peak)
    ends[0] = peak
    ends[1] = _join(ends[1], factor, found[1], factor_of_more)
    for d in range(sums.shape[0]):
        sums[d] = _join(sums[d], factor, part[d], factor_of_more)


@task
def join_tiles(sums, ends, parts, found):
    """The same of rows at once: sums (rows, padded size), ends (2, rows), parts (.., padded size), found (2, ..)."""
    rows = sums.shape[0]
    factors = np.empty((3, rows), np.float32)
    for r in range(rows):
        factors[0, r] = peak = max(ends[0, r], found[0, r])
        factors[1, r] = exp(ends[0, r] - peak)
        factors[2, r] = exp(found[0, r] - peak)
    for r in range(rows):
        if found[0, r] == NOTHING:
            continue
        ends[0, r], factor, factor_of_more = factors[0, r], factors[1, r], factors[2, r]
        ends[1, r] = _join(ends[1, r], factor, found[1, r], factor_of_more)
        for d in range(sums.shape[1]):
            sums[r, d] = _join(sums[r, d], factor, parts[r, d], factor_of_more)


@task
def finish(out, sums, ends, sink):
    """out (size,) from all tiles' sums; sink: a logit that takes weight and gives nothing, -inf for none."""
    peak = max(ends[0], sink)
    factor = exp(ends[0] - peak)
    total = _join(ends[1], factor, exp(sink - peak) if sink > NOTHING else ZERO, ONE)
    for d in range(out.shape[0]):
        out[d] = narrow(_share(sums[d], factor, total), out[d])


@task
def pad(q, padded, scale):
    """q (rows, size) in float32, (rows * padded size,), scaled, with zeros behind each row."""
    out = np.zeros(q.shape[0] * padded, np.float32)
    for row in range(q.shape[0]):
        for d in range(q.shape[1]):
            out[row * padded + d] = widen(q[row, d]) * scale
    return out
