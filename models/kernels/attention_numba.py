"""Attention for a processor, compiled by numba: keys and values are read where the cache holds them.

Plain torch has SDPA, which wants the blocks of a sequence gathered side by side, padded and in float32, and gives a
query other bits in other company. Here each query meets the positions in tiles that lie at fixed places, one after the
other, each tile's sums begun anew and then joined to those before. Whether it comes alone or in a run, all by itself or
with others, it is the same arithmetic: a run of queries reads a tile once for many of them, single queries have the
tiles read by all threads and joined after.

It imports numba at its top, so only what has made sure of numba may import it.
Source: the softmax whose sum is corrected as its maximum grows, arXiv:2112.05682.
"""

from typing import Any

import numpy as np
import torch
from numba import prange
from torch import Tensor

from models.batch import ForwardBatch
from models.cache import KVCache
from models.config import ScoreSpec
from models.kernels import attention_torch
from models.kernels.attention_forms_numba import comes_in_pairs, depth_of, queries, read_tile, room, weights_of
from models.kernels.attention_steps_numba import attend_steps
from models.kernels.attention_tile_numba import NOTHING, ONE, ZERO, cap_score, find, finish, join_tile
from models.kernels.attention_torch import PLAIN
from models.kernels.attention_vectors_numba import (
    TILE,
    multiply_1_by_1,
    multiply_1_by_4,
    multiply_4_by_1,
    multiply_4_by_4,
    weigh,
)
from models.kernels.interface import AttentionKernels
from models.kernels.numba_scalars import array, flat, floats, in_place, kernel, task, use_torch_threads
from models.kernels.rotary_numba import rotate, write_kv
from models.kernels.vectors_numba import WIDTH

BLOCK = 4  # rows of queries that meet a tile at once
ALL = 1 << 62  # positions: a window as wide as any context
QUERIES = 256  # rows of queries of a task, for which a tile is read once


def _meeting(rows: int, multiply_wide: Any, multiply_narrow: Any) -> Any:
    """What meets a tile with so many rows at once, by products of as many rows and of four vectors or one."""

    @task
    def meet(part, scores, words, found, q, row, keys_turned, values_read, firsts, stops, size, scale, cap):
        """Rows of q (rows, padded size) from `row` on with a tile's positions firsts .. stops, each row its own.

        part (rows, padded size): sums of the values, found (rows, 2): the largest score and the sum of the weights.
        words: for the weights, where they need room.
        """
        depth = depth_of(q)
        padded = values_read.shape[0] // (TILE // depth)
        first, stop = firsts[0], stops[0]
        for r in range(1, rows):
            first, stop = min(first, firsts[r]), max(stop, stops[r])
        for column in range(0, stop, 4 * WIDTH):
            each = padded // depth
            multiply_wide(scores, column, TILE, q, row * each, each, keys_turned, column, TILE, size // depth)
        if cap > ZERO:
            for i in range(rows * TILE):
                scores[i] = cap_score(scores[i] * scale, cap)
            scale = ONE
        for r in range(rows):
            found[r, 0], found[r, 1] = weigh(scores, r * TILE, firsts[r], stops[r], scale)
        weights, row_of = weights_of(words, scores, rows), TILE // depth
        first //= depth
        column, begin, count = 0, first * padded, (stop + depth - 1) // depth - first
        while column + 4 * WIDTH <= padded:
            multiply_wide(part, column, padded, weights, first, row_of, values_read, begin + column, padded, count)
            column += 4 * WIDTH
        while column < padded:
            multiply_narrow(part, column, padded, weights, first, row_of, values_read, begin + column, padded, count)
            column += WIDTH

    return meet


_meet_four = _meeting(BLOCK, multiply_4_by_4, multiply_4_by_1)
_meet_one = _meeting(1, multiply_1_by_4, multiply_1_by_1)


@task
def _meet_rows(sums, ends, memory, words, q, keys_turned, values_read, seen, heads, window, size, scale, cap):
    """All rows of q (rows, padded size), flat, with a tile: sums (rows, padded size), ends (rows, 2).

    seen: of the tile's positions, those up to the first query's own; `heads` rows are one query. memory: for scores
    (BLOCK, TILE) and sums (BLOCK, padded size). words: for weights (BLOCK, TILE) in the form of q.
    """
    rows, padded = sums.shape
    scores, part, found = memory[: BLOCK * TILE], memory[BLOCK * TILE :], np.empty((BLOCK, 2), np.float32)
    firsts, stops = np.empty(BLOCK, np.int64), np.empty(BLOCK, np.int64)
    row = 0
    while row < rows:
        step = BLOCK if row + BLOCK <= rows else 1
        for r in range(step):
            stop = seen + (row + r) // heads
            firsts[r], stops[r] = max(0, stop - window), min(TILE, stop)
        if stops[step - 1] > 0 and firsts[0] < TILE:
            if step == BLOCK:
                _meet_four(
                    part, scores, words, found, q, row, keys_turned, values_read, firsts, stops, size, scale, cap
                )
            else:
                _meet_one(part, scores, words, found, q, row, keys_turned, values_read, firsts, stops, size, scale, cap)
            for r in range(step):
                join_tile(sums[row + r], ends[row + r], part[r * padded : (r + 1) * padded], found[r])
        row += step


@task
def _attend_run(out, q, keys, values, layout, table, group, position, window, scale, cap, sinks):
    """One key head and some queries: out (n, r, size), at the positions from `position` on; sinks (r,).

    q: of the same shape, or of pairs. keys, values, layout: the memory of two pools and where positions lie in it, as
    `find` has it. table (m,).
    """
    count, heads, size = out.shape
    padded = (size + WIDTH - 1) // WIDTH * WIDTH
    rows = queries(q, padded)
    sums, ends = np.zeros((count * heads, padded), np.float32), np.zeros((count * heads, 2), np.float32)
    ends[:, 0] = NOTHING
    depth, whole = depth_of(q), TILE * padded
    keys_turned, values_read, words = room(q, whole // depth), room(q, whole // depth), room(q, BLOCK * TILE // depth)
    read_first = np.zeros(whole if depth == 1 else 0, np.float32)
    memory, places = np.zeros(BLOCK * (TILE + padded), np.float32), np.empty(TILE, np.int64)
    last = position + count
    for tile in range(max(0, position + 1 - window) // TILE * TILE, last, TILE):
        there = places[: min(TILE, last - tile)]
        find(there, layout, table, tile)
        low = max(0, position + 1 - window - tile)
        read_tile(keys_turned, values_read, read_first, keys, values, there, low, group * size, size)
        _meet_rows(
            sums, ends, memory, words, rows, keys_turned, values_read, position + 1 - tile, heads, window, size, scale,
            cap,
        )  # fmt: skip
    for row in range(count * heads):
        finish(out[row // heads, row % heads], sums[row], ends[row], sinks[row % heads])


@kernel
def _attend_runs(out, q, keys, values, layout, table, position, window, scale, cap, sinks):
    """out, q (n, g, r, size), the latter perhaps in pairs; sinks (g, r)."""
    count, groups, heads = q.shape[:3]
    each = max(1, QUERIES // heads)
    pieces = (count + each - 1) // each
    for i in prange(groups * pieces):
        group, piece = i // pieces, i % pieces
        # One from the begin and one from the end by turns: later queries see more.
        piece = piece // 2 if piece % 2 == 0 else pieces - 1 - piece // 2
        first, stop = piece * each, min((piece + 1) * each, count)
        _attend_run(
            out[first:stop, group], q[first:stop, group], keys, values, layout, table, group, position + first, window,
            scale, cap, sinks[group],
        )  # fmt: skip


Plan = tuple[int, int, tuple[Any, ...], tuple[np.float32, np.float32], Any]


def _plan(cache: KVCache, heads: int, head_dim: int, scores: ScoreSpec, sinks: Tensor | None) -> Plan:
    """What kernels want: key heads, queries to each, the pools and their layout, scale and cap, sinks."""
    keys, groups = cache.keys, cache.keys.shape[2]
    scale, rows = head_dim**-0.5 if scores.scale is None else scores.scale, heads // groups
    sink_rows = np.full((groups, rows), NOTHING) if sinks is None else floats(sinks).reshape(groups, rows)
    pools = flat(keys), flat(cache.values), (keys.shape[1], keys.stride(0), keys.stride(1))
    return groups, rows, pools, (np.float32(scale), np.float32(scores.softcap or 0)), sink_rows


def _in_their_form(q: Tensor, shape: tuple[int, ...]) -> Any:
    """Queries as kernels want them: as they are stored, or as pairs."""
    numbers = array(q).reshape(shape)
    return numbers.view(np.int32) if comes_in_pairs(shape[-1], numbers.dtype) else numbers


def attend_prefill(
    q: Tensor,
    cache: KVCache,
    block_table: Tensor,
    context_len: int,
    *,
    scores: ScoreSpec = PLAIN,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attention of one sequence's new tokens, as in plain torch.

    Args:
        q: (n, heads, head_dim), rotated; the tokens at positions context_len .. context_len + n - 1.
        block_table: (m,) int64, covering at least context_len + n positions.
        sinks: (heads,), a logit of each head that takes weight and gives nothing.
    Returns:
        (n, heads, head_dim) in q's dtype.
    """
    count, heads, head_dim = q.shape
    groups, rows, pools, numbers, sink_rows = _plan(cache, heads, head_dim, scores, sinks)
    out = torch.empty(q.shape, dtype=torch.float32)
    shape = (count, groups, rows, head_dim)
    use_torch_threads()
    _attend_runs(
        out.numpy().reshape(shape),
        _in_their_form(q, shape),
        *pools,
        block_table.contiguous().numpy(),
        context_len,
        context_len + count if scores.window is None else scores.window,
        *numbers,
        sink_rows,
    )
    return out.to(q.dtype)


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
    groups, rows, pools, numbers, sink_rows = _plan(cache, heads, head_dim, scores, sinks)
    shape = (batch, groups, rows, head_dim)
    out = torch.empty(q.shape, dtype=q.dtype)
    use_torch_threads()
    attend_steps(
        in_place(out).reshape(shape),
        _in_their_form(q, shape),
        *pools,
        block_tables.contiguous().numpy(),
        lengths.numpy(),
        ALL if scores.window is None else scores.window,
        *numbers,
        sink_rows,
    )
    return out


def attend(q: Tensor, cache: KVCache, batch: ForwardBatch, *, scores: ScoreSpec, sinks: Tensor | None) -> Tensor:
    return attention_torch.attend(
        q, cache, batch, scores=scores, sinks=sinks, decode=attend_decode, prefill=attend_prefill
    )


ATTENTION = AttentionKernels(write_kv, attend, rotate)
