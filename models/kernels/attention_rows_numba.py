"""Vector code of attention for single queries, which reads keys and values where the cache holds them.

The operations and their order are those of a run (attention_vectors_numba.py): a score is summed over the numbers of a
head one by one, with positions side by side in a vector; a value's number over the positions one by one. Heads do not
meet, so some are computed at once: one alone would wait for each of its sums.

Places in pools are numbers from their begin. It imports numba at its top, so only what has made sure of numba may
import it.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from models.kernels import vectors_numba as v
from models.kernels.attention_vectors_numba import TILE, add_products
from models.kernels.vectors_numba import INTS, VECTOR, WIDTH, everywhere

ROUND = 2 * WIDTH  # numbers of a head, of which there must be a multiple
HEADS = 4  # at once
TRUE = ir.Constant(ir.IntType(1), 1)
SECOND, LINE = 2, 64  # of the processor's caches the second, and bytes of a line


def _build_turn(typing, out, out_at, stride, keys, at, places, first, size):
    """The keys' `size` numbers from `at` on behind each of WIDTH places, turned, as they are stored: rows of WIDTH, one
    every `stride`.

    Of 16 bits two numbers that follow each other stay together, and a row is of such pairs. What lies behind the next
    WIDTH places is asked for.
    """

    def build(context, builder, signature, arguments):
        out, keys, places = (v.memory(context, builder, signature.args[i], arguments[i]) for i in (0, 3, 5))
        out_at, stride, at, first, size = (arguments[i] for i in (1, 2, 4, 6, 7))
        long, each = at.type, WIDTH if isinstance(signature.args[3].dtype, types.Float) else ROUND
        rows = [builder.load(builder.gep(places, [builder.add(first, long(i))])) for i in range(2 * WIDTH)]
        rows = [builder.gep(keys, [builder.add(row, at)]) for row in rows]

        def turn(number: Any, held: list[Any]) -> list[Any]:
            offset = builder.mul(number, long(each))
            content = [v.load(builder, builder.gep(row, [offset]), INTS, 2) for row in rows[:WIDTH]]
            for row in rows[WIDTH:]:
                v.prefetch(builder, builder.gep(row, [offset]), SECOND)
            row = builder.mul(number, long(WIDTH))
            for i, vector in enumerate(v.transposed(builder, content)):
                into = builder.add(out_at, builder.mul(builder.add(row, long(i)), stride))
                v.store(builder, vector, builder.gep(out, [into]))
            return held

        v.loop(builder, builder.sdiv(size, long(each)), [], turn)
        return context.get_dummy_value()

    place = types.int64
    return types.void(out, place, place, keys, place, places, place, place), build


turn: Any = intrinsic(_build_turn)


def _scorer(heads: int, *, shares: bool) -> Any:
    """Scores of so many heads' queries against what `turn` gave for each; shares: for all of them together."""

    def score(typing, scores, scores_at, q, q_at, turned, stride, keys, size):
        """scores (heads, TILE) at `scores_at`, WIDTH of each; turned: one every `stride`.

        q (heads, size) at `q_at`, in float32 or, if the keys are bfloat16, in pairs: then `size` counts those.
        """

        def build(context, builder, signature, arguments):
            scores, q, turned = (v.memory(context, builder, signature.args[i], arguments[i]) for i in (0, 2, 4))
            scores_at, q_at, stride, size = (arguments[i] for i in (1, 3, 5, 7))
            kind, long = signature.args[6].dtype, size.type
            pairs = not isinstance(signature.args[2].dtype, types.Float)
            depth = 1 if pairs or isinstance(kind, types.Float) else 2
            sources = [builder.gep(turned, [builder.mul(stride, long(h))]) for h in range(1 if shares else heads)]
            queries = [builder.gep(q, [builder.add(q_at, builder.mul(size, long(h)))]) for h in range(heads)]

            def read(source: Any, number: Any) -> tuple[Any, ...]:
                address = builder.gep(source, [builder.mul(number, long(WIDTH))])
                if depth == 1:
                    return (v.load(builder, address, INTS if pairs else VECTOR, 4),)
                return v.of_pairs(builder, v.load(builder, address, INTS, 4), kind)

            def add(step: Any, sums: list[Any]) -> list[Any]:
                content = [read(source, step) for source in sources] * (heads // len(sources))
                begin = builder.mul(step, long(depth))
                for d in range(depth):
                    places = [builder.gep(query, [builder.add(begin, long(d))]) for query in queries]
                    numbers = [builder.load(place, align=4) for place in places]
                    spread = [v.spread(builder, number, content[0][0].type) for number in numbers]
                    sums = [v.multiply_add(builder, spread[h], content[h][d], sums[h]) for h in range(heads)]
                return sums

            sums = v.loop(builder, builder.sdiv(size, long(depth)), [everywhere(0)] * heads, add)
            for h, vector in enumerate(sums):
                v.store(builder, vector, builder.gep(scores, [builder.add(scores_at, long(h * TILE))]))
            return context.get_dummy_value()

        place = types.int64
        return types.void(scores, place, q, place, turned, place, keys, place), build

    return intrinsic(score)


score_each: Any = _scorer(HEADS, shares=False)
score_shared: Any = _scorer(HEADS, shares=True)
score_one: Any = _scorer(1, shares=True)


def _adder(heads: int, vectors: int) -> Any:
    """Adds to sums of so many heads the values at some places, weighed: so many vectors of each."""

    def add_values(typing, sums, sums_at, stride, weights, weights_at, values, at, places, first, count):
        """sums: a row every `stride` from `sums_at` on. weights (heads, TILE) at `weights_at`, for the places first ..
        first + count, behind each of which the values begin at `at`.

        The weights are float32 or, if the values are bfloat16, pairs: then `weights_at`, `first` and `count` are too.
        """

        def build(context, builder, signature, arguments):
            numbers = (0, 3, 5, 7)
            sums, weights, values, places = (
                v.memory(context, builder, signature.args[i], arguments[i]) for i in numbers
            )
            sums_at, stride, weights_at, at, first, count = (arguments[i] for i in (1, 2, 4, 6, 8, 9))
            kind, long = signature.args[5].dtype, count.type
            depth = 1 if isinstance(signature.args[3].dtype, types.Float) else 2
            starts = [builder.add(sums_at, builder.mul(stride, long(h))) for h in range(heads)]
            columns = [long(c * WIDTH) for c in range(vectors)]
            into = [builder.gep(sums, [builder.add(start, column)]) for start in starts for column in columns]

            def row(place: Any, offset: int) -> Any:
                start = builder.load(builder.gep(places, [builder.add(place, long(offset))]))
                return builder.gep(values, [builder.add(start, at)])

            def operands(k: Any) -> tuple[list[Any], list[Any]]:
                place = builder.mul(builder.add(first, k), long(depth))
                rows = [row(place, offset) for offset in range(depth)]
                addresses = [[builder.gep(start, [column]) for start in rows] for column in columns]
                if depth == 1:
                    right = [v.load_numbers(builder, address, kind) for (address,) in addresses]
                else:
                    right = [v.load_pairs(builder, *pair) for pair in addresses]
                for ahead in [row(place, offset + WIDTH) for offset in range(depth)]:
                    for column in columns[:: max(1, LINE * 8 // kind.bitwidth // WIDTH)]:
                        v.prefetch(builder, builder.gep(ahead, [column]), SECOND)
                places = [builder.add(builder.add(weights_at, long(h * TILE // depth)), k) for h in range(heads)]
                left = [builder.load(builder.gep(weights, [place]), align=4) for place in places]
                return [v.spread(builder, weight, right[0].type) for weight in left], right

            add_products(builder, into, TRUE, count, operands)
            return context.get_dummy_value()

        place = types.int64
        return types.void(sums, place, place, weights, place, values, place, places, place, place), build

    return intrinsic(add_values)


VECTORS = 4  # of a head at once
add_one: Any = _adder(1, VECTORS)
add_some: Any = _adder(HEADS, VECTORS)
add_one_narrow: Any = _adder(1, 2)
add_some_narrow: Any = _adder(HEADS, 2)
