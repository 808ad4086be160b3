"""Products by a matrix of weights for a processor, compiled by numba.

Libraries are made for matrices: where one meets a few rows only, as in decode steps, they take two to five times what
reading the weights takes, and give a row other bits in other company. Here the weights lie in panels, in the order in
which a product reads them (`models.linear.Panels`), and each product is summed in the order of its inputs.

It imports numba at its top, so only what has made sure of numba may import it.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numba import prange
from torch import Tensor

from models.kernels.attention_vectors_numba import transpose
from models.kernels.numba_scalars import array, floats, in_place, kernel, narrow, piece, task, use_torch_threads
from models.kernels.tiles_numba import PANEL, TALL, tile
from models.kernels.vectors_numba import WIDTH
from models.linear import LinearKernels, Panels, Weight, multiply

ROWS = 8 * TALL  # of inputs of a task
RUN = 1 << 10  # steps after which a task takes the next tile: their inputs and weights stay in the second cache
SEVERAL = 2 * TALL  # rows of inputs: from so many on it pays to lay them out
SMALL = 1 << 18  # products: fewer are done before a second thread is awake
DTYPES = (torch.float32, torch.bfloat16)
DEPTHS = {torch.float32: 1, torch.bfloat16: 2}
Array = np.ndarray[Any, Any]
NOTHING: Array = np.empty(0, np.float32)

_tall, _eight, _four, _two, _one = tile(TALL, laid=True), tile(8), tile(4), tile(2), tile(1)


@piece
def _finish(y, sums, scales, bias):
    """y (m, n) from sums (m, at least n), scales (n,) and bias (n,), or none where they are empty."""
    for m in range(y.shape[0]):
        for n in range(scales.shape[0]):
            sums[m, n] *= scales[n]
        if bias.shape[0]:
            for n in range(y.shape[1]):
                y[m, n] = narrow(sums[m, n] + bias[n], y[m, n])
        else:
            for n in range(y.shape[1]):
                y[m, n] = narrow(sums[m, n], y[m, n])


@task
def _meet(y, x, laid, w, scales, bias, first, stop, p):
    """Rows first .. stop of the inputs by one panel.

    y (m, n), x (m, k), laid (tiles, steps, TALL, depth) of the first rows, w (panels, steps, PANEL, depth), scales and
    bias (n,) or none where they are empty.
    """
    size, steps, depth = x.shape[1], w.shape[1], w.shape[3]
    sums = np.zeros((stop - first, PANEL), np.float32)
    for begin in range(0, steps, RUN):
        count, at, m = min(RUN, steps - begin), (p * steps + begin) * PANEL * depth, first
        while m + TALL <= stop and m // TALL < laid.shape[0]:
            _tall(sums, (m - first) * PANEL, laid, (m // TALL * steps + begin) * TALL * depth, 0, w, at, count)
            m += TALL
        while m + 8 <= stop:
            _eight(sums, (m - first) * PANEL, x, m * size + begin * depth, size, w, at, count)
            m += 8
        if m + 4 <= stop:
            _four(sums, (m - first) * PANEL, x, m * size + begin * depth, size, w, at, count)
            m += 4
        if m + 2 <= stop:
            _two(sums, (m - first) * PANEL, x, m * size + begin * depth, size, w, at, count)
            m += 2
        if m < stop:
            _one(sums, (m - first) * PANEL, x, m * size + begin * depth, size, w, at, count)
    end = min((p + 1) * PANEL, y.shape[1])
    _finish(y[first:stop, p * PANEL : end], sums, scales[p * PANEL : end], bias[p * PANEL : end])


@task
def _multiply_few(y, x, laid, w, scales, bias):
    for p in range(w.shape[0]):
        _meet(y, x, laid, w, scales, bias, 0, x.shape[0], p)


@kernel
def _multiply(y, x, laid, w, scales, bias):
    panels = w.shape[0]
    for i in prange((x.shape[0] + ROWS - 1) // ROWS * panels):
        first = i // panels * ROWS
        _meet(y, x, laid, w, scales, bias, first, min(first + ROWS, x.shape[0]), i % panels)


@task
def _lay_tile(laid, x, first):
    """laid (steps, TALL) from the rows of x (m, steps) from `first` on, each number as long as a step's inputs."""
    steps, begin = laid.shape[0], 0
    if first + WIDTH <= x.shape[0]:
        # WIDTH rows at once, of which too many are written: the next step's numbers take the place of those.
        flat, rows = laid.reshape(-1), x.reshape(-1)
        while begin + WIDTH < steps:
            transpose(flat, begin * TALL, TALL, rows, first * steps + begin, steps)
            begin += WIDTH
    for row in range(laid.shape[1]):
        for step in range(begin, steps):
            laid[step, row] = x[first + row, step]


@kernel
def _lay(laid, x):
    """laid (tiles, steps, TALL) from x (m, steps): the numbers that meet the same weights together."""
    for i in prange(laid.shape[0]):
        _lay_tile(laid[i], x, i * TALL)


def lay_out(weight: Tensor) -> Panels:
    """A matrix of weights as the kernels read it."""
    return Panels.of(weight, PANEL, DEPTHS.get(weight.dtype, 1))


def lay_out_int8(weight: Tensor) -> Panels:
    """The same in 8 bits: of each output's weights the largest is 127 times its scale."""
    scales = weight.float().abs().amax(-1).clamp(min=torch.finfo(torch.float32).tiny) / 127
    rounded = (weight.float() / scales.unsqueeze(-1)).round_().to(torch.int8)
    return replace(Panels.of(rounded, PANEL, 1), scales=scales, dtype=weight.dtype)


def linear(x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
    """x (..., in) -> x @ weight.T + bias, (..., out); torch's of weights in no panels, or where gradients may be."""
    if isinstance(weight, Tensor) or torch.is_grad_enabled() or x.dtype not in DTYPES:
        return multiply(x, weight, bias)
    if not x.numel():  # a chunk of a prompt that asks for no logits
        return x.new_zeros(*x.shape[:-1], weight.outputs)
    (panels, steps, _, depth), dtype, scales = weight.content.shape, x.dtype, NOTHING
    if weight.scales is not None:
        x, scales = x.float(), array(weight.scales)
    if x.shape[-1] != steps * depth:
        x = F.pad(x, (0, steps * depth - x.shape[-1]))
    inputs = array(x).reshape(-1, steps * depth)
    rows = len(inputs)
    y = torch.empty(rows, weight.outputs, dtype=dtype)
    laid = np.empty((rows // TALL if rows >= SEVERAL else 0, steps, TALL, depth), inputs.dtype)
    biases = NOTHING if bias is None else floats(bias)
    if panels * PANEL * steps * depth * rows <= SMALL:
        _multiply_few(in_place(y), inputs, laid[:0], in_place(weight.content), scales, biases)
    else:
        use_torch_threads()
        if len(laid):
            _lay(laid.view(np.float32).reshape(laid.shape[:-1]), inputs.view(np.float32))
        _multiply(in_place(y), inputs, laid, in_place(weight.content), scales, biases)
    return y.view(*x.shape[:-1], weight.outputs)


LINEAR = LinearKernels(linear, lay_out, lay_out_int8)
