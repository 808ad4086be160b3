"""What code for numba is made of that is written down vector by vector, in LLVM's language.

A loop over numbers becomes vector code as the compiler likes it, in another order in another place. Where a row shall
get the same bits in any company, its code is written with these.

It imports numba at its top, so only what has made sure of numba may import it.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils

from models.kernels.numba_scalars import HAS_FMA

FEATURES = binding.get_host_cpu_features()
WIDTH = 16 if FEATURES.get("avx512f") else 8  # numbers of a vector; where registers hold four, two of them

# Multiplies pairs of bfloat16 and adds both products in one instruction.
HAS_PAIRS = WIDTH == 16 and bool(FEATURES.get("avx512bf16"))

FLOAT, INT, SHORT, BYTE = ir.FloatType(), ir.IntType(32), ir.IntType(16), ir.IntType(8)
VECTOR, INTS, SHORTS, BYTES = (ir.VectorType(kind, WIDTH) for kind in (FLOAT, INT, SHORT, BYTE))
HALVES = ir.VectorType(ir.HalfType(), WIDTH)
_Type: Any = ir.Type


class _BFloat(_Type):  # type: ignore[misc]
    """LLVM's own bfloat16, for which llvmlite has no class."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


PAIRS = ir.VectorType(_BFloat(), 2 * WIDTH)
LANES = ir.Constant(INTS, list(range(WIDTH)))


def everywhere(value: Any, kind: Any = VECTOR) -> Any:
    """A constant in every lane."""
    number = float(value) if kind is VECTOR else value
    return ir.Constant(kind, [ir.Constant(kind.element, number)] * WIDTH)


def call(builder: Any, name: str, result: Any, arguments: list[Any]) -> Any:
    """One of LLVM's own functions."""
    function = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, function, name), arguments)


def fused(builder: Any, factor: Any, x: Any, added: Any) -> Any:
    """factor * x + added, rounded once where the processor can."""
    if not HAS_FMA:
        return builder.fadd(builder.fmul(factor, x), added)
    return call(builder, f"llvm.fma.v{WIDTH}f32", VECTOR, [factor, x, added])


def multiply_add(builder: Any, x: Any, y: Any, added: Any) -> Any:
    """added + x * y; of pairs of bfloat16, each lane adds the product of its second numbers, then that of its first."""
    if x.type == VECTOR:
        return fused(builder, x, y, added)
    if HAS_PAIRS:
        pairs = [builder.bitcast(words, PAIRS) for words in (x, y)]
        return call(builder, "llvm.x86.avx512bf16.dpbf16ps.512", VECTOR, [added, *pairs])
    for one, other in zip(*(of_pairs(builder, words, types.uint16)[::-1] for words in (x, y)), strict=True):
        added = fused(builder, one, other, added)
    return added


def as_pairs(builder: Any, first: Any, second: Any) -> Any:
    """Two vectors of float32 that follow each other, rounded to bfloat16: neighbours become pairs. Needs HAS_PAIRS."""
    pairs = call(builder, "llvm.x86.avx512bf16.cvtne2ps2bf16.512", PAIRS, [second, first])
    return builder.bitcast(pairs, INTS)


def load_pairs(builder: Any, first: Any, second: Any) -> Any:
    """Pairs of a number at one address and one at another, of 16 bits each."""
    low, high = (builder.zext(load(builder, address, SHORTS, 2), INTS) for address in (first, second))
    return builder.or_(low, builder.shl(high, everywhere(16, INTS)))


def spread(builder: Any, number: Any, kind: Any = VECTOR) -> Any:
    """A number in every lane."""
    nothing = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(nothing, number, INT(0))
    return builder.shuffle_vector(first, nothing, ir.Constant(INTS, [0] * WIDTH))


def memory(context: Any, builder: Any, kind: Any, value: Any) -> Any:
    """Where an array's first number is."""
    return context.make_array(kind)(context, builder, value).data


def load(builder: Any, address: Any, kind: Any, align: int) -> Any:
    """A number or a vector at an address of whatever kind."""
    return builder.load(builder.bitcast(address, kind.as_pointer()), align=align)


def store(builder: Any, vector: Any, address: Any) -> None:
    """A vector, at any number's place."""
    builder.store(vector, builder.bitcast(address, vector.type.as_pointer()), align=4)


def load_numbers(builder: Any, address: Any, kind: Any) -> Any:
    """A vector of stored numbers in float32, as `numba_scalars.widen` has each; kind: numba's, of one of them."""
    if isinstance(kind, types.Float):
        return load(builder, address, VECTOR, 4)
    vector = load(builder, address, SHORTS, 2)
    if kind.signed:
        return builder.fpext(builder.bitcast(vector, HALVES), VECTOR)
    return builder.bitcast(builder.shl(builder.zext(vector, INTS), everywhere(16, INTS)), VECTOR)


def of_pairs(builder: Any, words: Any, kind: Any) -> tuple[Any, Any]:
    """Pairs of numbers of 16 bits -> their first and their second ones, in float32."""
    if kind.signed:
        first, second = words, builder.lshr(words, everywhere(16, INTS))
        halves = (builder.bitcast(builder.trunc(part, SHORTS), HALVES) for part in (first, second))
        first, second = (builder.fpext(part, VECTOR) for part in halves)
        return first, second
    first = builder.shl(words, everywhere(16, INTS))
    second = builder.and_(words, everywhere(0xFFFF0000, INTS))
    return builder.bitcast(first, VECTOR), builder.bitcast(second, VECTOR)


def prefetch(builder: Any, address: Any, level: int = 3) -> None:
    """Have a line of memory read into the caches from the given one on: 3 is the first, 2 the second."""
    address = builder.bitcast(address, BYTE.as_pointer())
    call(builder, "llvm.prefetch.p0", ir.VoidType(), [address, INT(0), INT(level), INT(1)])


def fold(builder: Any, vector: Any, join: Callable[[Any, Any, Any], Any]) -> Any:
    """One number of a vector's, its halves joined until there is one."""
    width = WIDTH
    while width > 1:
        width //= 2
        turned = ir.Constant(INTS, [(lane + width) % WIDTH for lane in range(WIDTH)])
        vector = join(builder, vector, builder.shuffle_vector(vector, vector, turned))
    return builder.extract_element(vector, INT(0))


def transposed(builder: Any, rows: list[Any]) -> list[Any]:
    """WIDTH vectors, turned."""
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
    return rows


def loop(builder: Any, count: Any, begin: list[Any], body: Callable[[Any, list[Any]], list[Any]]) -> list[Any]:
    """What vectors become that begin as `begin` and are replaced by `body(number of the round, them)` count times."""
    long, before = count.type, builder.block
    inside, end = builder.append_basic_block("loop"), builder.append_basic_block("end")
    builder.cbranch(builder.icmp_signed("<", long(0), count), inside, end)
    builder.position_at_end(inside)
    number, held = builder.phi(long), [builder.phi(vector.type) for vector in begin]
    later = body(number, held)
    following, last = builder.add(number, long(1)), builder.block
    builder.cbranch(builder.icmp_signed("<", following, count), inside, end)
    builder.position_at_end(end)
    results = [builder.phi(vector.type) for vector in begin]
    for phi, first, then in zip(
        [number, *held, *results], [long(0), *begin, *begin], [following, *later, *later], strict=True
    ):
        phi.add_incoming(first, before)
        phi.add_incoming(then, last)
    return results
