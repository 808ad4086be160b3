"""Vectors for kernels in numba: sums whose order is written down rather than left to the compiler.

A loop over numbers becomes vector code as the compiler likes it, in another order in another place. Where the same sum
must have the same bits wherever it is computed, and memory is to be read in one run, kernels hold vectors themselves:
LANES numbers in float32, or twice as many in bfloat16 as what one operand of a product is.

It imports numba at its top, so only what has made sure of numba may import it.
"""

from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model

FEATURES = binding.get_host_cpu_features()
LANES = 16 if FEATURES.get("avx512f") else 8 if FEATURES.get("avx2") else 4
PAIRS = 2 * LANES
# Multiplies pairs of bfloat16 and adds both products in one instruction.
HAS_BF16 = LANES == 16 and bool(FEATURES.get("avx512bf16"))

FLOAT, INT16, INT32 = ir.FloatType(), ir.IntType(16), ir.IntType(32)
FLOATS, WORDS = ir.VectorType(FLOAT, LANES), ir.VectorType(INT32, LANES)


_Type: Any = ir.Type


class _BFloat(_Type):  # type: ignore[misc]
    """LLVM's own bfloat16, for which llvmlite has no class."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


class Floats(types.Type):
    """LANES numbers in float32."""

    def __init__(self) -> None:
        super().__init__(name=f"floats{LANES}")


class Pairs(types.Type):
    """PAIRS numbers in bfloat16, two in each lane of 32 bits."""

    def __init__(self) -> None:
        super().__init__(name=f"pairs{PAIRS}")


@register_model(Floats)
class _FloatsModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, FLOATS)


@register_model(Pairs)
class _PairsModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, WORDS)


def _address(context, builder, signature, arguments):
    """Of the element arguments[1] of a contiguous array, arguments[0]."""
    content = cgutils.create_struct_proxy(signature.args[0])(context, builder, arguments[0])
    return builder.gep(content.data, [arguments[1]])


def _fused(builder, x, y, total):
    function = ir.FunctionType(FLOATS, [FLOATS] * 3)
    return builder.call(
        cgutils.get_or_insert_function(builder.module, function, f"llvm.fmuladd.v{LANES}f32"), [x, y, total]
    )


def _build_zeros(typing):
    return Floats()(), lambda context, builder, signature, arguments: ir.Constant(FLOATS, [0.0] * LANES)


def _build_load(typing, array, offset):
    """A vector from the element `offset` of a contiguous array on, counted over all its dimensions."""
    is_float = isinstance(array.dtype, types.Float)

    def build(context, builder, signature, arguments):
        address = _address(context, builder, signature, arguments)
        loaded = builder.load(builder.bitcast(address, (FLOATS if is_float else WORDS).as_pointer()))
        loaded.align = 4 if is_float else 2
        return loaded

    return (Floats() if is_float else Pairs())(array, types.intp), build


def _build_multiply_add(typing, total, x, y):
    """total + x * y; of pairs, each lane adds the product of its second numbers, then that of its first."""

    def of_floats(context, builder, signature, arguments):
        return _fused(builder, arguments[1], arguments[2], arguments[0])

    def by_instruction(context, builder, signature, arguments):
        pairs = ir.VectorType(_BFloat(), PAIRS)
        function = ir.FunctionType(FLOATS, [FLOATS, pairs, pairs])
        name = "llvm.x86.avx512bf16.dpbf16ps.512"
        x, y = (builder.bitcast(argument, pairs) for argument in arguments[1:])
        return builder.call(cgutils.get_or_insert_function(builder.module, function, name), [arguments[0], x, y])

    def by_shifts(context, builder, signature, arguments):
        high, shift = ir.Constant(WORDS, [0xFFFF0000] * LANES), ir.Constant(WORDS, [16] * LANES)
        seconds = [builder.bitcast(builder.and_(argument, high), FLOATS) for argument in arguments[1:]]
        firsts = [builder.bitcast(builder.shl(argument, shift), FLOATS) for argument in arguments[1:]]
        total = _fused(builder, seconds[0], seconds[1], arguments[0])
        return _fused(builder, firsts[0], firsts[1], total)

    build = of_floats if isinstance(x, Floats) else by_instruction if HAS_BF16 else by_shifts
    return Floats()(total, x, y), build


def _build_sum(typing, vector):
    """Of all lanes, halves added to halves."""

    def build(context, builder, signature, arguments):
        vector, count = arguments[0], LANES
        while count > 1:
            count //= 2
            nothing = ir.Constant(vector.type, ir.Undefined)
            halves = [
                builder.shuffle_vector(
                    vector, nothing, ir.Constant(ir.VectorType(INT32, count), list(range(start, start + count)))
                )
                for start in (0, count)
            ]
            vector = builder.fadd(*halves)
        return builder.extract_element(vector, INT32(0))

    return types.float32(vector), build


def _build_prefetch(typing, array, offset):
    """Ask for the memory of an element before it is read; it need not exist."""

    def build(context, builder, signature, arguments):
        address = builder.bitcast(_address(context, builder, signature, arguments), ir.IntType(8).as_pointer())
        function = ir.FunctionType(ir.VoidType(), [address.type, INT32, INT32, INT32])
        prefetch = cgutils.get_or_insert_function(builder.module, function, "llvm.prefetch.p0")
        builder.call(prefetch, [address, INT32(0), INT32(3), INT32(1)])
        return context.get_dummy_value()

    return types.void(array, types.intp), build


# numba's types know nothing of a builder's first argument, which no caller gives.
zeros: Any = intrinsic(_build_zeros)
load: Any = intrinsic(_build_load)
multiply_add: Any = intrinsic(_build_multiply_add)
sum_lanes: Any = intrinsic(_build_sum)
prefetch: Any = intrinsic(_build_prefetch)


def width(array: Any) -> Any:
    """How many numbers of an array `load` takes. For kernels only."""
    raise NotImplementedError


@overload(width, inline="always")
def _width(array):
    lanes = LANES if isinstance(array.dtype, types.Float) else PAIRS
    return lambda array: lanes
