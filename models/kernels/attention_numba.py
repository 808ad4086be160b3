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
from models.kernels.attention_forms_numba import (
    comes_in_pairs,
    depth_of,
    queries,
    read_tile,
    room,
    scale_of_scores,
    weights_of,
)
from models.kernels.attention_steps_numba import attend_steps
from models.kernels.attention_tile_numba import NOTHING, ONE, ZERO, cap_score, find, finish, join_tiles
from models.kernels.attention_torch import PLAIN
from models.kernels.attention_vectors_numba import (
    TILE,
    multiply_1_by_1,
    multiply_1_by_4,
    multiply_4_by_1,
    multiply_4_by_4,
    peak_of,
    weigh,
)
from models.kernels.interface import AttentionKernels
from models.kernels.numba_scalars import array, flat, floats, in_place, kernel, task, use_torch_threads
from models.kernels.rotary_numba import rotate, write_kv
from models.kernels.vectors_numba import WIDTH

ROWS = 16  # of queries that meet a tile at once
NEAR = 4 * WIDTH  # positions that they meet one after the other
ALL = 1 << 62  # positions: a window as wide as any context
# Rows of queries of a task, for which a tile is read once: fewer where threads would have less than TASKS each.
MOST, LEAST, TASKS = 512, 64, 4


def _scoring(height: int, multiply: Any) -> Any:
    """What multiplies blocks of so many rows of queries by a tile's keys."""

    @task
    def score(scores, q, row, blocks, keys_turned, firsts, stops, size, padded):
        depth = depth_of(q)
        each, last = padded // depth, stops[blocks * height - 1]
        for column in range(0, last, NEAR):
            for b in range(blocks):
                if firsts[b * height] < column + NEAR and column < stops[(b + 1) * height - 1]:
                    multiply(
                        scores, b * height * TILE + column, TILE, q, (row + b * height) * each, each,
                        keys_turned, column, TILE, size // depth, False,
                    )  # fmt: skip

    return score


def _adding(multiply_wide: Any, multiply_narrow: Any) -> Any:
    """What sums some of a tile's values for a block of rows; keeps: adding to what is there."""

    @task
    def add(part, part_at, weights, at, tile, values_read, first, count, keeps):
        padded, column = part.shape[0] // ROWS, 0
        while column + 4 * WIDTH <= padded:
            place = first * padded + column
            multiply_wide(part, part_at + column, padded, weights, at, tile, values_read, place, padded, count, keeps)
            column += 4 * WIDTH
        while column < padded:
            place = first * padded + column
            multiply_narrow(part, part_at + column, padded, weights, at, tile, values_read, place, padded, count, keeps)
            column += WIDTH

    return add


def _meeting(height: int, score: Any, add: Any) -> Any:
    """What meets a tile with blocks of so many rows."""

    @task
    def meet(part, scores, words, found, q, row, blocks, keys_turned, values_read, firsts, stops, size, scale, cap):
        """Rows of q (rows, padded size) from `row` on, `blocks` blocks, with a tile's positions firsts .. stops, each
        row its own, none before those of the row before.

        part (ROWS, padded size): sums of the values, found (2, rows): the largest score and the sum of the weights.
        words: for the weights, where they need room. All blocks read some positions before the next are read: they
        stay in the nearest cache.
        """
        depth, padded, rows = depth_of(q), part.shape[0] // ROWS, blocks * height
        score(scores, q, row, blocks, keys_turned, firsts, stops, size, padded)
        if cap > ZERO:
            for i in range(rows * TILE):
                scores[i] = cap_score(scores[i] * scale, cap)
            scale = ONE
        for r in range(rows):
            found[0, r] = peak_of(scores, r * TILE, firsts[r], stops[r], scale)
        for r in range(rows):
            found[1, r] = weigh(scores, r * TILE, firsts[r], stops[r], scale, found[0, r])
        weights, tile = weights_of(words, scores, rows), TILE // depth
        for begin in range(0, TILE, NEAR):
            for b in range(blocks):
                first = max(firsts[b * height], begin) // depth
                stop = (min(stops[(b + 1) * height - 1], begin + NEAR) + depth - 1) // depth
                if begin == 0 or first < stop:
                    at, into = b * height * tile + first, b * height * padded
                    add(part, into, weights, at, tile, values_read, first, stop - first, begin > 0)

    return meet


_meet_fours = _meeting(4, _scoring(4, multiply_4_by_4), _adding(multiply_4_by_4, multiply_4_by_1))
_meet_ones = _meeting(1, _scoring(1, multiply_1_by_4), _adding(multiply_1_by_4, multiply_1_by_1))


@task
def _meet_rows(sums, ends, memory, words, q, keys_turned, values_read, seen, heads, window, size, scale, cap):
    """All rows of q (rows, padded size), flat, with a tile: sums (rows, padded size), ends (2, rows).

    seen: of the tile's positions, those up to the first query's own; `heads` rows are one query. memory: for scores
    (ROWS, TILE) and sums (ROWS, padded size). words: for weights (ROWS, TILE) in the form of q.
    """
    rows, padded = sums.shape
    scores, part, found = memory[: ROWS * TILE], memory[ROWS * TILE :], np.empty((2, ROWS), np.float32)
    firsts, stops = np.empty(ROWS, np.int64), np.empty(ROWS, np.int64)
    row = 0
    while row < rows:
        step = min(ROWS, rows - row)
        step = step // 4 * 4 if step >= 4 else step
        for r in range(step):
            stop = seen + (row + r) // heads
            firsts[r], stops[r] = max(0, stop - window), min(TILE, stop)
        if stops[step - 1] > 0 and firsts[0] < TILE:
            if step >= 4:
                _meet_fours(
                    part, scores, words, found, q, row, step // 4, keys_turned, values_read, firsts, stops, size,
                    scale, cap,
                )  # fmt: skip
            else:
                _meet_ones(
                    part, scores, words, found, q, row, step, keys_turned, values_read, firsts, stops, size, scale, cap
                )
            join_tiles(sums[row : row + step], ends[:, row : row + step], part.reshape((ROWS, padded)), found)
        row += step


@task
def _attend_run(out, q, keys, values, layout, table, group, position, window, scale, cap, sinks):
    """One key head and some queries: out (n, r, size), at the positions from `position` on; sinks (r,).

    q: of the same shape, or of pairs. keys, values, layout: the memory of two pools and where positions lie in it, as
    `find` has it. table (m,).
    """
    count, heads, size = out.shape
    padded = (size + WIDTH - 1) // WIDTH * WIDTH
    rows, scale = queries(q, padded, scale), scale_of_scores(q, scale)
    sums, ends = np.zeros((count * heads, padded), np.float32), np.zeros((2, count * heads), np.float32)
    ends[0] = NOTHING
    depth, whole = depth_of(q), TILE * padded
    keys_turned, values_read, words = room(q, whole // depth), room(q, whole // depth), room(q, ROWS * TILE // depth)
    read_first = np.zeros(whole if depth == 1 else 0, np.float32)
    memory, places = np.zeros(ROWS * (TILE + padded), np.float32), np.empty(TILE, np.int64)
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
        finish(out[row // heads, row % heads], sums[row], ends[:, row], sinks[row % heads])


@kernel
def _attend_runs(out, q, keys, values, layout, table, position, window, scale, cap, sinks, each):
    """out, q (n, g, r, size), the latter perhaps in pairs; sinks (g, r); each: queries of a task."""
    count, groups = q.shape[:2]
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
        max(1, min(MOST, max(LEAST, count * heads // (TASKS * torch.get_num_threads()))) // rows),
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
