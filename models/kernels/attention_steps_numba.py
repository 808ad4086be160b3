"""Attention of single queries for a processor, compiled by numba: all threads read tiles, which are then joined.

A head of so many numbers that they fill vectors is read where the cache holds it, others by way of a copy in float32.

It imports numba at its top, so only what has made sure of numba may import it.
"""

import numpy as np
from numba import prange

from models.kernels.attention_forms_numba import depth_of, queries, room, scale_of_scores, weights_of
from models.kernels.attention_rows_numba import (
    HEADS,
    ROUND,
    VECTORS,
    add_one,
    add_one_narrow,
    add_some,
    add_some_narrow,
    score_each,
    score_one,
    score_shared,
    turn,
)
from models.kernels.attention_tile_numba import NOTHING, ONE, ZERO, cap_score, find, finish, join_tile, read
from models.kernels.attention_vectors_numba import TILE, peak_of, weigh
from models.kernels.numba_scalars import kernel, task
from models.kernels.vectors_numba import WIDTH

SMALL = 1 << 18  # products of queries and keys: fewer are done before a second thread is awake


@task
def _score(scores, at, q, keys, apart, places, place, memory, size):
    """scores (g, r, TILE) from `at` on, of WIDTH places from `place` on.

    q: in the form of the kernel. memory: for HEADS * size * WIDTH numbers.
    """
    groups, heads = scores.shape[0], scores.shape[1]
    scores, each, length = scores.reshape(groups * heads * TILE), size * WIDTH, size // depth_of(q)
    group = 0
    while heads == 1 and group + HEADS <= groups:
        for g in range(HEADS):
            turn(memory, g * each, WIDTH, keys, (group + g) * apart, places, place, size)
        score_each(scores, group * TILE + at, q, group * length, memory, each, keys, length)
        group += HEADS
    while group < groups:
        turn(memory, 0, WIDTH, keys, group * apart, places, place, size)
        head, last = group * heads, (group + 1) * heads
        while head + HEADS <= last:
            score_shared(scores, head * TILE + at, q, head * length, memory, 0, keys, length)
            head += HEADS
        while head < last:
            score_one(scores, head * TILE + at, q, head * length, memory, 0, keys, length)
            head += 1
        group += 1


@task
def _add(parts, weights, at, values, apart, places, place, count):
    """Add to parts (g, r, size) the values at `count` places from `place` on, weighed: weights (g * r * TILE), flat,
    from `at` on in each row.

    Places and weights are counted in elements of the form.
    """
    groups, heads, size = parts.shape
    parts, tile = parts.reshape(parts.size), len(weights) // (groups * heads)
    for group in range(groups):
        head, last = group * heads, (group + 1) * heads
        while head < last:
            many = head + HEADS <= last
            for column in range(0, size, VECTORS * WIDTH):
                into, row, begin = head * size + column, head * tile + at, group * apart + column
                wide = column + VECTORS * WIDTH <= size
                if many and wide:
                    add_some(parts, into, size, weights, row, values, begin, places, place, count)
                elif many:
                    add_some_narrow(parts, into, size, weights, row, values, begin, places, place, count)
                elif wide:
                    add_one(parts, into, size, weights, row, values, begin, places, place, count)
                else:
                    add_one_narrow(parts, into, size, weights, row, values, begin, places, place, count)
            head += HEADS if many else 1


@task
def _places(layout, table, tile, stop):
    """Where a tile's positions are, and those behind it that are read next.

    Behind `stop`, if that is before its end, the last one again: what is read of it does not count.
    """
    places = np.empty(TILE + WIDTH, np.int64)
    known = min(len(places), len(table) * layout[0] - tile) if stop == TILE else stop
    find(places[:known], layout, table, tile)
    places[known:] = places[stop - 1]
    return places


@task
def _weigh_all(found, scores, first, stop, scale, cap):
    """Scores (g, r, TILE) become weights; found (g, r, 2)."""
    for group in range(scores.shape[0]):
        for r in range(scores.shape[1]):
            row, factor = scores[group, r], scale
            if cap > ZERO:
                for i in range(TILE):
                    row[i] = cap_score(row[i] * scale, cap)
                factor = ONE
            found[group, r, 0] = peak_of(row, 0, first, stop, factor)
            found[group, r, 1] = weigh(row, 0, first, stop, factor, found[group, r, 0])


@task
def _copy(rows, pool, places, first, stop, size, padded):
    """Heads first .. stop of some positions, padded: rows (stop - first, WIDTH, padded size), flat."""
    for group in range(first, stop):
        begin = (group - first) * WIDTH * padded
        read(rows[begin : begin + len(places) * padded], pool, places, group * size, size)


@task
def _score_copied(scores, at, q, keys, places, copied, copies, memory, size, padded):
    """As `_score`, of all `places`, by way of copies."""
    groups, heads = scores.shape[0], scores.shape[1]
    for first in range(0, groups, HEADS):
        stop = min(first + HEADS, groups)
        _copy(copied, keys, places, first, stop, size, padded)
        _score(scores[first:stop], at, q[first * heads * padded :], copied, WIDTH * padded, copies, 0, memory, padded)


@task
def _add_copied(parts, weights, at, values, places, copied, copies, size):
    """As `_add`, of all `places`, by way of copies."""
    groups, heads, padded = parts.shape
    tile = len(weights) // (groups * heads)
    for first in range(0, groups, HEADS):
        stop = min(first + HEADS, groups)
        _copy(copied, values, places, first, stop, size, padded)
        mine = weights[first * heads * tile : stop * heads * tile]
        _add(parts[first:stop], mine, at, copied, WIDTH * padded, copies, 0, len(places))


@task
def _attend_tile(parts, found, q, keys, values, layout, table, tile, first, stop, scale, cap):
    """One query and the places first .. stop of a tile: parts (g, r, padded size), found (g, r, 2), q (g, r, size) or
    in pairs.

    All heads read some positions before the next: what lies side by side in memory is read once, in its order.
    """
    groups, heads, padded = parts.shape
    depth, rows, places = depth_of(q), queries(q, padded, scale), _places(layout, table, tile, stop)
    places[:first] = places[first]
    size, count = q.shape[2] * depth, groups * heads
    lies_whole = size == padded
    copied = np.zeros(0 if lies_whole else WIDTH * HEADS * padded, np.float32)
    copies = np.arange(2 * WIDTH) % WIDTH * padded
    scores, memory = np.zeros((groups, heads, TILE), np.float32), np.empty(HEADS * padded * WIDTH, np.float32)
    for at in range(first // WIDTH * WIDTH, stop, WIDTH):
        if lies_whole:
            _score(scores, at, rows, keys, size, places, at, memory, padded)
        else:
            mine = places[at : at + WIDTH]
            _score_copied(scores, at, rows, keys, mine, copied, copies, memory, size, padded)
    _weigh_all(found, scores, first, stop, scale_of_scores(q, scale), cap)
    words = room(q, count * TILE // depth if depth > 1 else 0)
    weights = weights_of(words, scores.reshape(count * TILE), count)
    parts[:] = ZERO
    for begin in range(first // WIDTH * WIDTH, stop, WIDTH):
        at, end = max(first, begin) // depth, (min(begin + WIDTH, stop) + depth - 1) // depth
        if lies_whole:
            _add(parts, weights, at, values, size, places, at, end - at)
        else:
            _add_copied(parts, weights, at, values, places[at:end], copied, copies, size)


@task
def _longest_and_all(lengths):
    """In a loop of one thread: what numba makes of a library's sums in a kernel wakes all of them."""
    longest = total = 0
    for length in lengths:
        longest, total = max(longest, length), total + length
    return longest, total


@task
def _attend_place(parts, found, q, keys, values, layout, tables, lengths, i, window, scale, cap):
    """Tile i of all sequences' tiles: parts (b, tiles, g, r, padded size), found (b, tiles, g, r, 2)."""
    b, tile = i // parts.shape[1], i % parts.shape[1]
    begin = tile * TILE
    first, stop = max(0, lengths[b] - window - begin), min(TILE, lengths[b] - begin)
    if first < stop:
        _attend_tile(
            parts[b, tile], found[b, tile], q[b], keys, values, layout, tables[b], begin, first, stop, scale, cap
        )  # fmt: skip
    else:
        found[b, tile, :, :, 0] = NOTHING


@task
def _join_tiles(out, parts, found, sinks, i):
    """Head i of all sequences' heads: out (b, g, r, size) from what the tiles gave; sinks (g, r)."""
    groups, heads = out.shape[1], out.shape[2]
    b, group, r = i // (groups * heads), i // heads % groups, i % heads
    sums, ends = np.zeros(parts.shape[4], np.float32), np.zeros(2, np.float32)
    ends[0] = NOTHING
    for tile in range(parts.shape[1]):
        join_tile(sums, ends, parts[b, tile, group, r], found[b, tile, group, r])
    finish(out[b, group, r], sums, ends, sinks[group, r])


@kernel
def attend_steps(out, q, keys, values, layout, tables, lengths, window, scale, cap, sinks):
    """out, q (b, g, r, size), the latter perhaps in pairs; tables (b, m), lengths (b,), sinks (g, r).

    How many tiles there are is known here alone, so that the call is the same however long the sequences have become.
    """
    batch, groups, heads, size = out.shape
    longest, total = _longest_and_all(lengths)
    tiles, padded = (longest + TILE - 1) // TILE, (size + ROUND - 1) // ROUND * ROUND
    parts = np.empty((batch, tiles, groups, heads, padded), np.float32)
    found = np.empty((batch, tiles, groups, heads, 2), np.float32)
    if total * groups * heads * size <= SMALL:
        for i in range(batch * tiles):
            _attend_place(parts, found, q, keys, values, layout, tables, lengths, i, window, scale, cap)
        for i in range(batch * groups * heads):
            _join_tiles(out, parts, found, sinks, i)
    else:
        for i in prange(batch * tiles):
            _attend_place(parts, found, q, keys, values, layout, tables, lengths, i, window, scale, cap)
        for i in prange(batch * groups * heads):
            _join_tiles(out, parts, found, sinks, i)
