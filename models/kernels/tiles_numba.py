"""Tiles of products for kernels in numba: some rows of inputs by one panel of weights, summed in vectors.

A loop over numbers becomes vector code as the compiler likes it, in another order in another place. A tile's code is
written down vector by vector instead: each product of a row and an output is added to its sum in the order of the
inputs, whatever tile it belongs to, so that a row gets the same bits in any company.

It imports numba at its top, so only what has made sure of numba may import it.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from models.kernels import vectors_numba as v
from models.kernels.vectors_numba import BYTES, FLOAT, INT, INTS, VECTOR, WIDTH

VECTORS = 2  # of a panel
PANEL = VECTORS * WIDTH  # outputs
# As many rows as leave registers for the weights: there are 32, or 16 before AVX-512.
TALL = 12 if WIDTH == 16 else 4
AHEAD = 1 << 14  # bytes of weights that are asked for before they are read


def _load_weights(builder, address, depth, size):
    """A vector of float32, of pairs of bfloat16, or of integers of 8 bits as float32."""
    if size == 1:
        return builder.sitofp(builder.sext(v.load(builder, address, BYTES, size), INTS), VECTOR)
    return v.load(builder, address, VECTOR if depth == 1 else INTS, size)


class _Code:
    """Writes the code of a tile.

    Args:
        sums, x, w: addresses of the first number of each.
        stride: from one row of x to the next, numbers. step: from the inputs of one step to those of the next.
        depth: inputs of a step. size: bytes of a weight.
    """

    def __init__(self, builder, count, sums, x, w, stride, step, depth, size):
        self.builder, self.depth, self.size, self.step = builder, depth, size, step
        self.vector, self.number = (VECTOR, FLOAT) if depth == 1 else (INTS, INT)
        self.x, self.w, self.index = x, w, stride.type
        self.rows = [builder.gep(x, [builder.mul(stride, self._constant(row))]) for row in range(count)]
        self.places = [
            [
                builder.bitcast(builder.gep(sums, [self._constant(row * PANEL + part * WIDTH)]), VECTOR.as_pointer())
                for part in range(VECTORS)
            ]
            for row in range(count)
        ]
        # The compiler makes registers of these.
        self.totals = [[cgutils.alloca_once(builder, VECTOR) for _ in range(VECTORS)] for _ in range(count)]

    def _constant(self, number):
        return ir.Constant(self.index, number)

    def open(self):
        for places, totals in zip(self.places, self.totals, strict=True):
            for place, total in zip(places, totals, strict=True):
                self.builder.store(v.load(self.builder, place, VECTOR, 4), total)

    def add(self, at, prefetches):
        """The products of one step, the number `at`."""
        builder = self.builder
        begin = builder.gep(self.w, [builder.mul(at, self._constant(PANEL * self.depth))])
        starts = [builder.gep(begin, [self._constant(part * WIDTH * self.depth)]) for part in range(VECTORS)]
        weights = [_load_weights(builder, start, self.depth, self.size) for start in starts]
        if prefetches:
            for start in starts:
                v.prefetch(builder, builder.gep(start, [self._constant(AHEAD // self.size)]))
        for row, totals in zip(self.rows, self.totals, strict=True):
            address = builder.gep(row, [builder.mul(at, self._constant(self.step))])
            x = v.spread(builder, v.load(builder, address, self.number, 4 // self.depth), self.vector)
            for total, weight in zip(totals, weights, strict=True):
                builder.store(v.multiply_add(builder, x, weight, builder.load(total)), total)

    def close(self):
        for places, totals in zip(self.places, self.totals, strict=True):
            for place, total in zip(places, totals, strict=True):
                self.builder.store(self.builder.load(total), place).align = 4


def tile(count: int, *, laid: bool = False) -> Any:
    """A function that adds to sums the products of `count` rows of inputs and of one panel of weights.

    Its arguments are contiguous arrays, each with the place in it where to begin, counted over all its dimensions:
        sums: float32, rows of PANEL. x: rows of inputs, and how far one is from the next; where `laid`, the numbers of
        all rows for one step lie side by side and that is not read. w: panels, in the numbers of x or, if those are
        float32, in integers of 8 bits. How many steps.
    """

    def build_tile(typing, sums, sums_at, x, x_at, stride, w, w_at, steps):
        size = w.dtype.bitwidth // 8
        depth = 2 if size == 2 else 1

        def build(context, builder, signature, arguments):
            def address(number):
                content = cgutils.create_struct_proxy(signature.args[number])(context, builder, arguments[number])
                return builder.gep(content.data, [arguments[number + 1]])

            between = ir.Constant(arguments[4].type, depth) if laid else arguments[4]
            step = count * depth if laid else depth
            code = _Code(builder, count, address(0), address(2), address(5), between, step, depth, size)
            code.open()
            with cgutils.for_range(builder, arguments[7]) as loop:
                code.add(loop.index, prefetches=not laid)
            code.close()
            return context.get_dummy_value()

        n = types.intp
        return types.void(sums, n, x, n, n, w, n, n), build

    # numba's types know nothing of a builder's first argument, which no caller gives.
    return intrinsic(build_tile)
