"""Vector code of attention over runs: small products held in registers, and what softmax needs.

Each function works on flat arrays, at places and with strides in their numbers, and has one order of its operations
whatever stands beside it: a row of a product gets the same bits in a block of four as alone. Arrays are of float32, or
of integers of 32 bits that are pairs of bfloat16.

It imports numba at its top, so only what has made sure of numba may import it.
"""

from collections.abc import Callable
from typing import Any

from numba import types
from numba.extending import intrinsic

from models.kernels import vectors_numba as v
from models.kernels.numba_scalars import LEAST, LN2_HIGH, LN2_LOW, LOG2E
from models.kernels.vectors_numba import FLOAT, INT, INTS, VECTOR, WIDTH, everywhere

TILE = 128  # numbers of a row of weights
TERMS = (1.0 / 5040, 1.0 / 720, 1.0 / 120, 1.0 / 24, 1.0 / 6, 0.5, 1.0, 1.0)  # of e^x


def _exp(builder: Any, x: Any) -> Any:
    """As `numba_scalars.exp`, of numbers up to 0."""
    x = builder.select(builder.fcmp_ordered("<", x, everywhere(LEAST)), everywhere(LEAST), x)
    power = builder.fptosi(v.fused(builder, x, everywhere(LOG2E), everywhere(128.5)), INTS)
    power = builder.sub(power, everywhere(128, INTS))
    whole = builder.sitofp(power, VECTOR)
    r = v.fused(builder, whole, everywhere(-LN2_LOW), v.fused(builder, whole, everywhere(-LN2_HIGH), x))
    p = everywhere(TERMS[0])
    for term in TERMS[1:]:
        p = v.fused(builder, p, r, everywhere(term))
    bits = builder.shl(builder.add(power, everywhere(127, INTS)), everywhere(23, INTS))
    return builder.fmul(p, builder.bitcast(bits, VECTOR))


def _larger(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", b, a), b, a)


def _sum(builder: Any, a: Any, b: Any) -> Any:
    return builder.fadd(a, b)


def add_products(
    builder: Any,
    into: list[Any],
    keeps: Any,
    count: Any,
    operands: Callable[[Any], tuple[list[Any], list[Any]]],
) -> None:
    """Add to the vectors at the addresses `into`, a row's after the other, `count` outer products, in order.

    operands: what to multiply in a round, a vector for each row and for each column. keeps: whether what is at the
    addresses counts, else the sums begin with nothing.
    """

    def add(k: Any, sums: list[Any]) -> list[Any]:
        left, right = operands(k)
        pairs = [(x, y) for x in left for y in right]
        return [v.multiply_add(builder, *pair, total) for pair, total in zip(pairs, sums, strict=True)]

    begin = [builder.select(keeps, v.load(builder, place, VECTOR, 4), everywhere(0)) for place in into]
    for result, place in zip(v.loop(builder, count, begin, add), into, strict=True):
        v.store(builder, result, place)


def _multiplier(rows: int, vectors: int) -> Any:
    """out (rows, vectors * WIDTH) = a (rows, count) b (count, vectors * WIDTH); keeps: added to what is there.

    out is float32, a and b are that or pairs, both.
    """

    def multiply(typing, out, out_at, out_stride, a, a_at, a_stride, b, b_at, b_stride, count, keeps):
        def build(context, builder, signature, arguments):
            out, a, b = (v.memory(context, builder, signature.args[i], arguments[i]) for i in (0, 3, 6))
            out_at, out_stride, a_at, a_stride, b_at, b_stride, count = (arguments[i] for i in (1, 2, 4, 5, 7, 8, 9))
            long, number = count.type, FLOAT if isinstance(signature.args[3].dtype, types.Float) else INT
            vector = VECTOR if number == FLOAT else INTS
            starts = [builder.add(a_at, builder.mul(a_stride, long(r))) for r in range(rows)]
            ends = [builder.add(out_at, builder.mul(out_stride, long(r))) for r in range(rows)]
            into = [builder.gep(out, [builder.add(end, long(c * WIDTH))]) for end in ends for c in range(vectors)]

            def operands(k: Any) -> tuple[list[Any], list[Any]]:
                at = builder.add(b_at, builder.mul(b_stride, k))
                columns = [builder.gep(b, [builder.add(at, long(c * WIDTH))]) for c in range(vectors)]
                right = [v.load(builder, place, vector, 4) for place in columns]
                places = [builder.gep(a, [builder.add(start, k)]) for start in starts]
                return [v.spread(builder, v.load(builder, place, number, 4), vector) for place in places], right

            add_products(builder, into, arguments[10], count, operands)
            return context.get_dummy_value()

        place = types.int64
        return types.void(out, place, place, a, place, place, b, place, place, place, types.boolean), build

    return intrinsic(multiply)


multiply_4_by_4: Any = _multiplier(4, 4)
multiply_4_by_1: Any = _multiplier(4, 1)
multiply_1_by_4: Any = _multiplier(1, 4)
multiply_1_by_1: Any = _multiplier(1, 1)


def _build_widen_vectors(typing, out, out_at, source, at, count):
    """So many vectors of stored numbers, as `numba_scalars.widen` has each."""

    def build(context, builder, signature, arguments):
        out, source = (v.memory(context, builder, signature.args[i], arguments[i]) for i in (0, 2))
        kind, out_at, at, long = signature.args[2].dtype, arguments[1], arguments[3], arguments[1].type

        def widen(number: Any, held: list[Any]) -> list[Any]:
            offset = builder.mul(number, long(WIDTH))
            vector = v.load_numbers(builder, builder.gep(source, [builder.add(at, offset)]), kind)
            v.store(builder, vector, builder.gep(out, [builder.add(out_at, offset)]))
            return held

        v.loop(builder, arguments[4], [], widen)
        return context.get_dummy_value()

    return types.void(out, types.int64, source, types.int64, types.int64), build


widen_vectors: Any = intrinsic(_build_widen_vectors)


def _build_transpose(typing, out, out_at, out_stride, source, at, stride):
    """WIDTH rows of WIDTH numbers, turned."""

    def build(context, builder, signature, arguments):
        out, source = (v.memory(context, builder, signature.args[i], arguments[i]) for i in (0, 3))
        out_at, out_stride, at, stride = (arguments[i] for i in (1, 2, 4, 5))
        long = at.type

        def place(base: Any, start: Any, step: Any, number: int) -> Any:
            return builder.gep(base, [builder.add(start, builder.mul(step, long(number)))])

        rows = [v.load(builder, place(source, at, stride, i), VECTOR, 4) for i in range(WIDTH)]
        for i, row in enumerate(v.transposed(builder, rows)):
            v.store(builder, row, place(out, out_at, out_stride, i))
        return context.get_dummy_value()

    place = types.int64
    return types.void(out, place, place, source, place, place), build


transpose: Any = intrinsic(_build_transpose)


def _scores_of_row(context, builder, signature, arguments):
    """Where the vectors of a row of TILE scores are, which lanes lie in first .. stop, and the scaled scores."""
    scores = v.memory(context, builder, signature.args[0], arguments[0])
    at, scale = arguments[1], v.spread(builder, arguments[4])
    low, high = (v.spread(builder, builder.trunc(arguments[i], INT), INTS) for i in (2, 3))
    places = [builder.gep(scores, [builder.add(at, at.type(i * WIDTH))]) for i in range(TILE // WIDTH)]
    numbers = [builder.add(v.LANES, everywhere(i * WIDTH, INTS)) for i in range(TILE // WIDTH)]
    inside = [
        builder.and_(builder.icmp_signed(">=", lanes, low), builder.icmp_signed("<", lanes, high)) for lanes in numbers
    ]
    return places, inside, [builder.fmul(v.load(builder, place, VECTOR, 4), scale) for place in places]


def _build_peak_of(typing, scores, at, first, stop, scale):
    """The largest score of the places first .. stop of a row of TILE, times scale; -inf where there is none."""

    def build(context, builder, signature, arguments):
        _, inside, found = _scores_of_row(context, builder, signature, arguments)
        peaks = [
            builder.select(mask, vector, everywhere(float("-inf"))) for mask, vector in zip(inside, found, strict=True)
        ]
        while len(peaks) > 1:
            peaks = [_larger(builder, *peaks[i : i + 2]) for i in range(0, len(peaks), 2)]
        return v.fold(builder, peaks[0], _larger)

    return types.float32(scores, types.int64, types.int64, types.int64, types.float32), build


def _build_weigh(typing, scores, at, first, stop, scale, peak):
    """Turn the scores of the places first .. stop, times scale, into e^(score - peak), all others of the row into 0;
    -> the sum.
    """

    def build(context, builder, signature, arguments):
        places, inside, found = _scores_of_row(context, builder, signature, arguments)
        against, total = v.spread(builder, arguments[5]), everywhere(0)
        for vector, mask, place in zip(found, inside, places, strict=True):
            weights = builder.select(mask, _exp(builder, builder.fsub(vector, against)), everywhere(0))
            v.store(builder, weights, place)
            total = builder.fadd(total, weights)
        return v.fold(builder, total, _sum)

    kinds = (types.int64, types.int64, types.int64, types.float32, types.float32)
    return types.float32(scores, *kinds), build


peak_of: Any = intrinsic(_build_peak_of)
weigh: Any = intrinsic(_build_weigh)


def _build_pair_up(typing, words, scores, rows):
    """Rows of TILE numbers, rounded to bfloat16: their neighbours become pairs, rows of half as many words."""

    def build(context, builder, signature, arguments):
        words, scores = (v.memory(context, builder, signature.args[i], arguments[i]) for i in (0, 1))
        long = arguments[2].type

        def pair_up(number: Any, held: list[Any]) -> list[Any]:
            places = [builder.mul(number, long(2 * WIDTH)) for _ in range(2)]
            places[1] = builder.add(places[1], long(WIDTH))
            both = [v.load(builder, builder.gep(scores, [place]), VECTOR, 4) for place in places]
            into = builder.gep(words, [builder.mul(number, long(WIDTH))])
            v.store(builder, v.as_pairs(builder, *both) if v.HAS_PAIRS else everywhere(0, INTS), into)
            return held

        v.loop(builder, builder.mul(arguments[2], long(TILE // WIDTH // 2)), [], pair_up)
        return context.get_dummy_value()

    return types.void(words, scores, types.int64), build


pair_up: Any = intrinsic(_build_pair_up)
