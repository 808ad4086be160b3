"""Attention of single queries for a processor, compiled by numba: keys and values are read where the cache holds them.

Plain torch has SDPA, which wants the blocks of a sequence gathered side by side, padded and in float32: all of a
context is then read, written and read again for each token. Here a task walks over a span of one sequence's blocks for
all heads, and the spans are put together after. The spans lie at fixed positions, so
that no result depends on what else is in the batch.

It imports numba at its top, so only what has made sure of numba may import it.
Source: the softmax whose sum is corrected as its maximum grows, arXiv:2112.05682.
"""

import numpy as np
import torch
from numba import prange
from torch import Tensor

from models.batch import ForwardBatch
from models.cache import KVCache
from models.config import ScoreSpec
from models.kernels import attention_torch
from models.kernels.attention_torch import PLAIN
from models.kernels.interface import AttentionKernels
from models.kernels.numba_scalars import exp, flat, floats, kernel, task, use_torch_threads, widen

ZERO, ONE, TWO, NOTHING = np.float32(0), np.float32(1), np.float32(2), np.float32(-np.inf)
SPAN = 256  # positions of a task, of which a context then has enough for all threads
TILE = 32  # positions whose scores are held at once


@task
def _find_tile(places, table, first, stop, layout):
    """Where the positions first .. stop begin in a pool's memory: places (TILE,)."""
    block_size, block_stride, row_size = layout
    block, row = first // block_size, first % block_size
    for i in range(stop - first):
        places[i] = table[block] * block_stride + row * row_size
        row += 1
        if row == block_size:
            block, row = block + 1, 0


@task
def _score_tile(scores, q, keys, places, head, count, scale):
    """scores (r, TILE) of a tile's positions for one key head; q (r, d), keys: a pool's memory."""
    size = q.shape[1]
    for i in range(count):
        start = places[i] + head * size
        row = keys[start : start + size]
        for r in range(q.shape[0]):
            total = ZERO
            for d in range(size):
                total += q[r, d] * widen(row[d])
            scores[r, i] = total * scale


@task
def _cap_tile(scores, cap):
    for r in range(scores.shape[0]):
        for i in range(scores.shape[1]):
            scores[r, i] = cap * (ONE - TWO / (exp(TWO / cap * scores[r, i]) + ONE))


@task
def _weigh_tile(sums, peaks, totals, scores, count):
    """Turn scores into weights against the highest seen so far; what was summed before is brought down to it."""
    for r in range(sums.shape[0]):
        peak = peaks[r]
        for i in range(count):
            peak = max(peak, scores[r, i])
        correction = exp(peaks[r] - peak) if peaks[r] > NOTHING else ZERO
        total = ZERO
        for i in range(count):
            scores[r, i] = exp(scores[r, i] - peak)
        for i in range(count):
            total += scores[r, i]
        totals[r] = totals[r] * correction + total
        peaks[r] = peak
        if correction != ONE:
            for d in range(sums.shape[1]):
                sums[r, d] *= correction


@task
def _add_values(sums, weights, values, places, head, count):
    size = sums.shape[1]
    for i in range(count):
        start = places[i] + head * size
        row = values[start : start + size]
        for r in range(sums.shape[0]):
            weight = weights[r, i]
            for d in range(size):
                sums[r, d] += weight * widen(row[d])


@task
def _attend_span(
    sums, peaks, totals, q, keys, values, layout, table, first, stop, scale, cap,
):  # fmt: skip
    """The positions first .. stop of a sequence -> sums (g, r, d), peaks and totals (g, r); q (g, r, d).

    keys, values: the memory of a pool, and its layout: block size, numbers between blocks and between positions.

    All heads read a tile before the next: what lies side by side in memory is read once, in its order.
    """
    scores, places = np.empty((q.shape[1], TILE), np.float32), np.empty(TILE, np.int64)
    sums[:] = ZERO
    peaks[:] = NOTHING
    totals[:] = ZERO
    for start in range(first, stop, TILE):
        count = min(start + TILE, stop) - start
        _find_tile(places, table, start, start + count, layout)
        for g in range(q.shape[0]):
            _score_tile(scores, q[g], keys, places, g, count, scale)
            if cap > ZERO:
                _cap_tile(scores[:, :count], cap)
            _weigh_tile(sums[g], peaks[g], totals[g], scores, count)
            _add_values(sums[g], scores, values, places, g, count)


@kernel
def _attend_spans(
    sums, peaks, totals, q, keys, values, layout, tables, lengths, window,
    scale, cap,
):  # fmt: skip
    """sums (b, spans, g, r, d), peaks and totals (b, spans, g, r), q (b, g, r, d), tables (b, m), lengths (b,)."""
    spans = sums.shape[1]
    for i in prange(sums.shape[0] * spans):
        b, span = i // spans, i % spans
        first = max(span * SPAN, lengths[b] - window)
        stop = min((span + 1) * SPAN, lengths[b])
        _attend_span(
            sums[b, span], peaks[b, span], totals[b, span], q[b], keys, values, layout, tables[b], first, stop,
            scale, cap,
        )  # fmt: skip


@kernel
def _join_spans(out, sums, peaks, totals, sinks):
    """out (b, g, r, d) from what the spans found; sinks (g, r), -inf for none."""
    groups, rows = out.shape[1], out.shape[2]
    for i in prange(out.shape[0] * groups * rows):
        b, g, r = i // (groups * rows), i // rows % groups, i % rows
        peak = sinks[g, r]
        for span in range(sums.shape[1]):
            peak = max(peak, peaks[b, span, g, r])
        total = exp(sinks[g, r] - peak) if sinks[g, r] > NOTHING else ZERO
        row = out[b, g, r]
        row[:] = ZERO
        for span in range(sums.shape[1]):
            if peaks[b, span, g, r] > NOTHING:
                factor = exp(peaks[b, span, g, r] - peak)
                total += totals[b, span, g, r] * factor
                for d in range(row.shape[0]):
                    row[d] += sums[b, span, g, r, d] * factor
        for d in range(row.shape[0]):
            row[d] /= total


def attend_decode(
    q: Tensor,
    cache: KVCache,
    block_tables: Tensor,
    lengths: Tensor,
    *,
    scores: ScoreSpec = PLAIN,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attention of one new token per sequence, as in plain torch.

    Args:
        q: (b, heads, head_dim), rotated. block_tables: (b, m) int64, -1 = padding.
        lengths: (b,) int64, positions written, the new token's own included.
        sinks: (heads,), a logit of each head that takes weight and gives nothing.
    Returns:
        (b, heads, head_dim) in q's dtype.
    """
    batch, heads, head_dim = q.shape
    groups, longest = cache.keys.shape[2], int(lengths.max())
    rows, spans = heads // groups, -(-longest // SPAN)
    sums = np.empty((batch, spans, groups, rows, head_dim), np.float32)
    peaks, totals = np.empty((2, batch, spans, groups, rows), np.float32)
    out = torch.empty(batch, groups, rows, head_dim)
    scale = head_dim**-0.5 if scores.scale is None else scores.scale
    sink_rows = np.full((groups, rows), NOTHING) if sinks is None else floats(sinks).reshape(groups, rows)
    use_torch_threads()
    _attend_spans(
        sums,
        peaks,
        totals,
        floats(q).reshape(batch, groups, rows, head_dim),
        flat(cache.keys),
        flat(cache.values),
        (cache.keys.shape[1], cache.keys.stride(0), cache.keys.stride(1)),
        block_tables.contiguous().numpy(),
        lengths.numpy(),
        longest if scores.window is None else scores.window,
        np.float32(scale),
        np.float32(scores.softcap or 0),
    )
    _join_spans(out.numpy(), sums, peaks, totals, sink_rows)
    return out.view(batch, heads, head_dim).to(q.dtype)


def attend(q: Tensor, cache: KVCache, batch: ForwardBatch, *, scores: ScoreSpec, sinks: Tensor | None) -> Tensor:
    """Decodes by these kernels, runs of queries by plain torch."""
    return attention_torch.attend(q, cache, batch, scores=scores, sinks=sinks, decode=attend_decode)


ATTENTION = AttentionKernels(attention_torch.write_kv, attend)
