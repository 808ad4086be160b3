"""Attention of single queries for a processor, compiled by numba: keys and values are read where the cache holds them.

Plain torch has SDPA, which wants the blocks of a sequence gathered side by side, padded and in float32: all of a
context is then read, written and read again for each token. Here a task walks over a span of one sequence's blocks for
one key head and all queries that share it, and the spans are put together after. The spans lie at fixed positions, so
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
from models.kernels.numba_scalars import array, exp, floats, kernel, task, use_torch_threads, widen

ZERO, ONE, TWO, NOTHING = np.float32(0), np.float32(1), np.float32(2), np.float32(-np.inf)
SPAN = 1024  # positions of a task, of which a long context then has enough for all threads
TILE = 32  # positions whose scores are held at once


@task
def _score_tile(scores, q, keys, table, head, first, stop, scale):
    """scores (r, TILE) of the positions first .. stop; q (r, d), keys (blocks, block_size, heads, d)."""
    block_size, size = keys.shape[1], keys.shape[3]
    for position in range(first, stop):
        row = keys[table[position // block_size], position % block_size, head]
        for r in range(q.shape[0]):
            total = ZERO
            for d in range(size):
                total += q[r, d] * widen(row[d])
            scores[r, position - first] = total * scale


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
def _add_values(sums, weights, values, table, head, first, stop):
    block_size, size = values.shape[1], values.shape[3]
    for position in range(first, stop):
        row = values[table[position // block_size], position % block_size, head]
        for r in range(sums.shape[0]):
            weight = weights[r, position - first]
            for d in range(size):
                sums[r, d] += weight * widen(row[d])


@task
def _attend_span(
    sums, peaks, totals, q, keys, values, table, head, first, stop,
    scale, cap,
):  # fmt: skip
    """One key head, its queries q (r, d) and the positions first .. stop -> sums (r, d), peaks and totals (r,)."""
    scores = np.empty((q.shape[0], TILE), np.float32)
    sums[:] = ZERO
    peaks[:] = NOTHING
    totals[:] = ZERO
    for start in range(first, stop, TILE):
        end = min(start + TILE, stop)
        _score_tile(scores, q, keys, table, head, start, end, scale)
        if cap > ZERO:
            _cap_tile(scores[:, : end - start], cap)
        _weigh_tile(sums, peaks, totals, scores, end - start)
        _add_values(sums, scores, values, table, head, start, end)


@kernel
def _attend_spans(
    sums, peaks, totals, q, keys, values, tables, lengths, window,
    scale, cap,
):  # fmt: skip
    """sums (b, g, spans, r, d), peaks and totals (b, g, spans, r), q (b, g, r, d), tables (b, m), lengths (b,)."""
    groups, spans = sums.shape[1], sums.shape[2]
    for i in prange(sums.shape[0] * groups * spans):
        b, g, span = i // (groups * spans), i // spans % groups, i % spans
        length = lengths[b]
        first = max(span * SPAN, length - window)
        stop = min((span + 1) * SPAN, length)
        place = (b, g, span)
        _attend_span(
            sums[place], peaks[place], totals[place], q[b, g], keys, values, tables[b], g, first, stop, scale, cap
        )  # fmt: skip


@kernel
def _join_spans(out, sums, peaks, totals, sinks):
    """out (b, g, r, d) from what the spans found; sinks (g, r), -inf for none."""
    groups, rows = out.shape[1], out.shape[2]
    for i in prange(out.shape[0] * groups * rows):
        b, g, r = i // (groups * rows), i // rows % groups, i % rows
        peak = sinks[g, r]
        for span in range(sums.shape[2]):
            peak = max(peak, peaks[b, g, span, r])
        total = exp(sinks[g, r] - peak) if sinks[g, r] > NOTHING else ZERO
        row = out[b, g, r]
        row[:] = ZERO
        for span in range(sums.shape[2]):
            if peaks[b, g, span, r] > NOTHING:
                factor = exp(peaks[b, g, span, r] - peak)
                total += totals[b, g, span, r] * factor
                for d in range(row.shape[0]):
                    row[d] += sums[b, g, span, r, d] * factor
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
    sums = np.empty((batch, groups, spans, rows, head_dim), np.float32)
    peaks, totals = np.empty((2, batch, groups, spans, rows), np.float32)
    out = torch.empty(batch, groups, rows, head_dim)
    scale = head_dim**-0.5 if scores.scale is None else scores.scale
    sink_rows = np.full((groups, rows), NOTHING) if sinks is None else floats(sinks).reshape(groups, rows)
    use_torch_threads()
    _attend_spans(
        sums,
        peaks,
        totals,
        floats(q).reshape(batch, groups, rows, head_dim),
        array(cache.keys),
        array(cache.values),
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
