"""Vector code that numba's compiler would not find by itself: small products held in registers, and what softmax needs.

Each function works on flat float32 arrays, at places and with strides in numbers, and has one order of its operations
whatever stands beside it: a row of a product gets the same bits in a block of four as alone.

It imports numba at its top, so only what has made sure of numba may import it.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from models.kernels.numba_scalars import HAS_FMA, LEAST, LN2_HIGH, LN2_LOW, LOG2E

WIDTH = 16 if binding.get_host_cpu_features().get("avx512f") else 8  # numbers of a vector
TILE = 128  # numbers of a row of weights
FLOAT, INT = ir.FloatType(), ir.IntType(32)
VECTOR, INTS = ir.VectorType(FLOAT, WIDTH), ir.VectorType(INT, WIDTH)
LANES = ir.Constant(INTS, list(range(WIDTH)))
TERMS = (1.0 / 5040, 1.0 / 720, 1.0 / 120, 1.0 / 24, 1.0 / 6, 0.5, 1.0, 1.0)  # of e^x


def _all(value: Any) -> Any:
    return ir.Constant(VECTOR, [ir.Constant(FLOAT, float(value))] * WIDTH)


def _fma(builder: Any, factor: Any, x: Any, added: Any) -> Any:
    if not HAS_FMA:
        return builder.fadd(builder.fmul(factor, x), added)
    kind = ir.FunctionType(VECTOR, [VECTOR] * 3)
    return builder.call(
        cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{WIDTH}f32"), [factor, x, added]
    )


def _splat(builder: Any, value: Any, kind: Any = VECTOR) -> Any:
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), value, INT(0))
    return builder.shuffle_vector(first, ir.Constant(kind, ir.Undefined), ir.Constant(INTS, [0] * WIDTH))


def _place(builder: Any, base: Any, at: Any) -> Any:
    """Where the vector begins that lies at a number's place."""
    return builder.bitcast(builder.gep(base, [at]), VECTOR.as_pointer())


def _memory(context: Any, builder: Any, kind: Any, value: Any) -> Any:
    return context.make_array(kind)(context, builder, value).data


def _exp(builder: Any, x: Any) -> Any:
    """As `numba_scalars.exp`, of numbers up to 0."""
    x = builder.select(builder.fcmp_ordered("<", x, _all(LEAST)), _all(LEAST), x)
    power = builder.fptosi(_fma(builder, x, _all(LOG2E), _all(128.5)), INTS)
    power = builder.sub(power, ir.Constant(INTS, [128] * WIDTH))
    whole = builder.sitofp(power, VECTOR)
    r = _fma(builder, whole, _all(-LN2_LOW), _fma(builder, whole, _all(-LN2_HIGH), x))
    p = _all(TERMS[0])
    for term in TERMS[1:]:
        p = _fma(builder, p, r, _all(term))
    bits = builder.shl(builder.add(power, ir.Constant(INTS, [127] * WIDTH)), ir.Constant(INTS, [23] * WIDTH))
    return builder.fmul(p, builder.bitcast(bits, VECTOR))


def _fold(builder: Any, vector: Any, join: Callable[[Any, Any, Any], Any]) -> Any:
    """One number of a vector's, its halves joined until there is one."""
    width = WIDTH
    while width > 1:
        width //= 2
        turned = ir.Constant(INTS, [(lane + width) % WIDTH for lane in range(WIDTH)])
        vector = join(builder, vector, builder.shuffle_vector(vector, vector, turned))
    return builder.extract_element(vector, INT(0))


def _larger(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", b, a), b, a)


def _sum(builder: Any, a: Any, b: Any) -> Any:
    return builder.fadd(a, b)


def _loop(builder: Any, count: Any, begin: list[Any], body: Callable[[Any, list[Any]], list[Any]]) -> list[Any]:
    """What vectors become that begin as `begin` and are replaced by `body(number of the round, them)` count times."""
    long, before = count.type, builder.block
    loop, end = builder.append_basic_block("loop"), builder.append_basic_block("end")
    builder.cbranch(builder.icmp_signed("<", long(0), count), loop, end)
    builder.position_at_end(loop)
    number, held = builder.phi(long), [builder.phi(vector.type) for vector in begin]
    later = body(number, held)
    following = builder.add(number, long(1))
    builder.cbranch(builder.icmp_signed("<", following, count), loop, end)
    builder.position_at_end(end)
    results = [builder.phi(vector.type) for vector in begin]
    for phi, first, then in zip(
        [number, *held, *results], [long(0), *begin, *begin], [following, *later, *later], strict=True
    ):
        phi.add_incoming(first, before)
        phi.add_incoming(then, loop)
    return results


def _multiplier(rows: int, vectors: int, *, adds: bool = False) -> Any:
    """out (rows, vectors * WIDTH) = a (rows, count) b (count, vectors * WIDTH); adds: to what is there, in order."""

    def multiply(typing, out, out_at, out_stride, a, a_at, a_stride, b, b_at, b_stride, count):
        def build(context, builder, signature, arguments):
            out, a, b = (_memory(context, builder, signature.args[i], arguments[i]) for i in (0, 3, 6))
            out_at, out_stride, a_at, a_stride, b_at, b_stride, count = (arguments[i] for i in (1, 2, 4, 5, 7, 8, 9))
            long = count.type
            starts = [builder.add(a_at, builder.mul(a_stride, long(r))) for r in range(rows)]
            ends = [builder.add(out_at, builder.mul(out_stride, long(r))) for r in range(rows)]
            into = [_place(builder, out, builder.add(end, long(c * WIDTH))) for end in ends for c in range(vectors)]

            def add(k: Any, sums: list[Any]) -> list[Any]:
                at = builder.add(b_at, builder.mul(b_stride, k))
                right = [
                    builder.load(_place(builder, b, builder.add(at, long(c * WIDTH))), align=4) for c in range(vectors)
                ]
                added = []
                for r, start in enumerate(starts):
                    left = _splat(builder, builder.load(builder.gep(a, [builder.add(start, k)]), align=4))
                    added += [_fma(builder, left, right[c], sums[r * vectors + c]) for c in range(vectors)]
                return added

            begin = [builder.load(place, align=4) if adds else _all(0) for place in into]
            for vector, place in zip(_loop(builder, count, begin, add), into, strict=True):
                builder.store(vector, place, align=4)
            return context.get_dummy_value()

        place = types.int64
        return types.void(out, place, place, a, place, place, b, place, place, place), build

    return intrinsic(multiply)


multiply_4_by_4: Any = _multiplier(4, 4)
multiply_4_by_1: Any = _multiplier(4, 1)
multiply_1_by_4: Any = _multiplier(1, 4)
multiply_1_by_1: Any = _multiplier(1, 1)
add_1_by_4: Any = _multiplier(1, 4, adds=True)
add_1_by_1: Any = _multiplier(1, 1, adds=True)


def _build_widen_vectors(typing, out, out_at, source, at, count):
    """So many vectors of stored numbers, as `numba_scalars.widen` has each."""

    def build(context, builder, signature, arguments):
        out, source = (_memory(context, builder, signature.args[i], arguments[i]) for i in (0, 2))
        kind, out_at, at, long = signature.args[2].dtype, arguments[1], arguments[3], arguments[1].type
        stored = VECTOR if isinstance(kind, types.Float) else ir.VectorType(ir.IntType(16), WIDTH)

        def widen(number: Any, held: list[Any]) -> list[Any]:
            offset = builder.mul(number, long(WIDTH))
            place = builder.bitcast(builder.gep(source, [builder.add(at, offset)]), stored.as_pointer())
            vector = builder.load(place, align=2)
            if not isinstance(kind, types.Float) and kind.signed:
                vector = builder.fpext(builder.bitcast(vector, ir.VectorType(ir.HalfType(), WIDTH)), VECTOR)
            elif not isinstance(kind, types.Float):
                bits = builder.shl(builder.zext(vector, INTS), ir.Constant(INTS, [16] * WIDTH))
                vector = builder.bitcast(bits, VECTOR)
            builder.store(vector, _place(builder, out, builder.add(out_at, offset)), align=4)
            return held

        _loop(builder, arguments[4], [], widen)
        return context.get_dummy_value()

    return types.void(out, types.int64, source, types.int64, types.int64), build


widen_vectors: Any = intrinsic(_build_widen_vectors)


def _build_transpose(typing, out, out_at, out_stride, source, at, stride):
    """WIDTH rows of WIDTH numbers, turned."""

    def build(context, builder, signature, arguments):
        out, source = (_memory(context, builder, signature.args[i], arguments[i]) for i in (0, 3))
        out_at, out_stride, at, stride = (arguments[i] for i in (1, 2, 4, 5))
        long = at.type

        def row(start: Any, step: Any, number: int) -> Any:
            return builder.add(start, builder.mul(step, long(number)))

        rows = [builder.load(_place(builder, source, row(at, stride, i)), align=4) for i in range(WIDTH)]
        half = WIDTH // 2
        # Each round takes the first halves of rows i and i + half by turns, and their second halves.
        for _ in range(WIDTH.bit_length() - 1):
            pairs = [(rows[i], rows[i + half]) for i in range(half)]
            rows = [
                builder.shuffle_vector(
                    a, b, ir.Constant(INTS, [part * half + n // 2 + n % 2 * WIDTH for n in range(WIDTH)])
                )
                for a, b in pairs
                for part in range(2)
            ]
        for i in range(WIDTH):
            builder.store(rows[i], _place(builder, out, row(out_at, out_stride, i)), align=4)
        return context.get_dummy_value()

    place = types.int64
    return types.void(out, place, place, source, place, place), build


transpose: Any = intrinsic(_build_transpose)


def _build_weigh(typing, scores, at, first, stop):
    """Turn the scores of the places first .. stop into e^(score - their largest), all others into 0.

    Of a row of TILE numbers; -> the largest, -inf where there is none, and the sum.
    """

    def build(context, builder, signature, arguments):
        scores = _memory(context, builder, signature.args[0], arguments[0])
        at, long = arguments[1], arguments[1].type
        low, high = (_splat(builder, builder.trunc(arguments[i], INT), INTS) for i in (2, 3))
        places = [_place(builder, scores, builder.add(at, long(i * WIDTH))) for i in range(TILE // WIDTH)]
        inside, found = [], []
        for i, place in enumerate(places):
            lanes = builder.add(LANES, ir.Constant(INTS, [i * WIDTH] * WIDTH))
            inside.append(builder.and_(builder.icmp_signed(">=", lanes, low), builder.icmp_signed("<", lanes, high)))
            found.append(builder.select(inside[i], builder.load(place, align=4), _all(float("-inf"))))
        peaks = found[0]
        for vector in found[1:]:
            peaks = _larger(builder, peaks, vector)
        peak = _fold(builder, peaks, _larger)
        against, total = _splat(builder, peak), _all(0)
        for vector, mask, place in zip(found, inside, places, strict=True):
            weights = builder.select(mask, _exp(builder, builder.fsub(vector, against)), _all(0))
            builder.store(weights, place, align=4)
            total = builder.fadd(total, weights)
        return context.make_tuple(builder, signature.return_type, (peak, _fold(builder, total, _sum)))

    result = types.UniTuple(types.float32, 2)
    return result(scores, types.int64, types.int64, types.int64), build


weigh: Any = intrinsic(_build_weigh)
