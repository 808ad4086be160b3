"""The two forms in which attention multiplies: numbers in float32, and pairs of bfloat16 that stay as they are stored.

A processor that multiplies pairs and adds both products in one instruction does twice as much in that form; keys and
values are not even widened. The weights are then rounded to bfloat16, as they are in FlashAttention. A kernel is
compiled in the form in which its queries come: pairs are integers of 32 bits.

It imports numba at its top, so only what has made sure of numba may import it.
"""

from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic, overload

from models.kernels import vectors_numba as v
from models.kernels.attention_rows_numba import ROUND, turn
from models.kernels.attention_tile_numba import ONE, pad, read
from models.kernels.attention_vectors_numba import TILE, pair_up, transpose
from models.kernels.numba_scalars import task
from models.kernels.vectors_numba import WIDTH


def _in_pairs(q):
    return q.dtype == types.int32


def depth_of(q):
    """Numbers that an element has of this form. For kernels only, as all below."""
    raise NotImplementedError


def room(q, count):
    """Zeros, so many elements."""
    raise NotImplementedError


def queries(q, padded, scale):
    """All rows of q, flat, each padded to so many numbers and scaled; pairs stay as they are."""
    raise NotImplementedError


def scale_of_scores(q, scale):
    """What is left to scale by once `queries` has had its turn."""
    raise NotImplementedError


def read_tile(keys_turned, values_read, memory, keys, values, places, low, start, size):
    """Read the positions at `places` of one head, which begins at `start` in each.

    keys_turned (padded size, TILE), in elements of the form; values_read (TILE, padded size), or (TILE / 2, padded
    size) of pairs of positions. memory: for a tile in float32. low: how many of the places nobody wants, who may be
    anything.
    """
    raise NotImplementedError


def weights_of(words, scores, rows):
    """Rows of weights (TILE) in the form: as they are, or pairs of them, for which `words` has room."""
    raise NotImplementedError


@overload(depth_of, inline="always")
def _depth_of(q):
    return (lambda q: 2) if _in_pairs(q) else lambda q: 1


@overload(room)
def _room(q, count):
    if _in_pairs(q):
        return lambda q, count: np.zeros(count, np.int32)
    return lambda q, count: np.zeros(count, np.float32)


@overload(queries)
def _queries(q, padded, scale):
    if _in_pairs(q):
        return lambda q, padded, scale: q.copy().reshape(q.size)
    return lambda q, padded, scale: pad(q.copy().reshape((q.size // q.shape[-1], q.shape[-1])), padded, scale)


@overload(scale_of_scores, inline="always")
def _scale_of_scores(q, scale):
    return (lambda q, scale: scale) if _in_pairs(q) else lambda q, scale: ONE


@overload(weights_of)
def _weights_of(words, scores, rows):
    if not _in_pairs(words):
        return lambda words, scores, rows: scores

    def pair(words, scores, rows):
        pair_up(words, scores, rows)
        return words

    return pair


def _build_pair_values(typing, out, out_at, values, at, places, first, size):
    """The values' `size` numbers from `at` on behind two places, a number of each in every pair: out (size,)."""

    def build(context, builder, signature, arguments):
        out, values, places = (v.memory(context, builder, signature.args[i], arguments[i]) for i in (0, 2, 4))
        out_at, at, first, size = (arguments[i] for i in (1, 3, 5, 6))
        long = at.type
        rows = [builder.load(builder.gep(places, [builder.add(first, long(i))])) for i in range(2)]
        rows = [builder.gep(values, [builder.add(row, at)]) for row in rows]

        def pair(number, held):
            offset = builder.mul(number, long(WIDTH))
            words = v.load_pairs(builder, *(builder.gep(row, [offset]) for row in rows))
            v.store(builder, words, builder.gep(out, [builder.add(out_at, offset)]))
            return held

        v.loop(builder, builder.sdiv(size, long(WIDTH)), [], pair)
        return context.get_dummy_value()

    place = types.int64
    return types.void(out, place, values, place, places, place, place), build


_pair_values: Any = intrinsic(_build_pair_values)


@task
def _read_pairs(keys_turned, values_read, keys, values, places, low, start, size):
    around = np.empty(TILE + WIDTH, np.int64)
    around[: len(places)], around[len(places) :] = places, places[-1]
    around[:low] = places[min(low, len(places) - 1)]
    for i in range(0, len(places), WIDTH):
        turn(keys_turned, i, TILE, keys, start, around, i, size)
    for i in range(0, len(places), 2):
        _pair_values(values_read, i // 2 * size, values, start, around, i, size)


@task
def _read_numbers(keys_turned, values_read, memory, keys, values, places, start, size):
    padded = memory.shape[0] // TILE
    read(memory[: len(places) * padded], keys, places, start, size)
    read(values_read[: len(places) * padded], values, places, start, size)
    for i in range(0, len(places), WIDTH):
        for d in range(0, padded, WIDTH):
            transpose(keys_turned, d * TILE + i, TILE, memory, i * padded + d, padded)


@overload(read_tile)
def _read_tile(keys_turned, values_read, memory, keys, values, places, low, start, size):
    if _in_pairs(keys_turned):
        return lambda keys_turned, values_read, memory, keys, values, places, low, start, size: _read_pairs(
            keys_turned, values_read, keys, values, places, low, start, size
        )
    return lambda keys_turned, values_read, memory, keys, values, places, low, start, size: _read_numbers(
        keys_turned, values_read, memory, keys, values, places, start, size
    )


def comes_in_pairs(size, dtype):
    """Whether queries of so many numbers, stored so, are to come as pairs."""
    return v.HAS_PAIRS and size % ROUND == 0 and dtype == np.uint16
