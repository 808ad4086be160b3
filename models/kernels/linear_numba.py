"""Products by a matrix of weights for a processor, compiled by numba.

Libraries are made for matrices: where one meets a few rows only, as in decode steps, they take twice the time that
reading the weights takes, and give a row other bits in other company. Here each product is summed in one vector, in the
order of the weights, whatever tile it belongs to: what a row gets does not depend on how many there are. Few rows
meet the weights row after row, as they lie in memory, which is read twice as fast in one run as in several.

It imports numba at its top, so only what has made sure of numba may import it.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numba import prange
from torch import Tensor

from models.kernels.numba_scalars import array, exact_task, kernel, narrow, piece, task, use_torch_threads, widen
from models.kernels.numba_vectors import HAS_BF16, PAIRS, load, multiply_add, prefetch, sum_lanes, width, zeros
from models.linear import FEW  # more rows than these meet four rows of weights at a time

STRIPE = 64  # rows of weights of a task, which the second cache holds while all rows of inputs meet them
ROWS = 64  # of inputs of a task, likewise
AHEAD = 4  # rows of weights that are asked for before they are read
ALL = 1 << 62
SMALL = 1 << 18  # products: fewer are done before a second thread is awake
# A library multiplies many rows of bfloat16 faster than this, and a processor without such products many of float32.
MOST_ROWS = {torch.float32: ALL, torch.bfloat16: FEW if HAS_BF16 else ALL}
Array = np.ndarray[Any, Any]
NO_BIAS: dict[type, Array] = {dtype: np.empty(0, dtype) for dtype in (np.float32, np.uint16)}


@piece
def _put(y, total, m, n):
    y[m, n] = narrow(sum_lanes(total), y[m, n])


@piece
def _eight(y, x, w, m, n):
    size = x.shape[1]
    a = b = c = d = e = f = g = h = zeros()
    first, row = m * size, n * size
    for k in range(0, size - size % width(x), width(x)):
        v, at = load(w, row + k), first + k
        prefetch(w, row + AHEAD * size + k)
        a = multiply_add(a, load(x, at), v)
        b = multiply_add(b, load(x, at + size), v)
        c = multiply_add(c, load(x, at + 2 * size), v)
        d = multiply_add(d, load(x, at + 3 * size), v)
        e = multiply_add(e, load(x, at + 4 * size), v)
        f = multiply_add(f, load(x, at + 5 * size), v)
        g = multiply_add(g, load(x, at + 6 * size), v)
        h = multiply_add(h, load(x, at + 7 * size), v)
    _put(y, a, m, n)
    _put(y, b, m + 1, n)
    _put(y, c, m + 2, n)
    _put(y, d, m + 3, n)
    _put(y, e, m + 4, n)
    _put(y, f, m + 5, n)
    _put(y, g, m + 6, n)
    _put(y, h, m + 7, n)


@piece
def _two(y, x, w, m, n):
    size = x.shape[1]
    a = b = zeros()
    first, row = m * size, n * size
    for k in range(0, size - size % width(x), width(x)):
        v = load(w, row + k)
        a = multiply_add(a, load(x, first + k), v)
        b = multiply_add(b, load(x, first + size + k), v)
    _put(y, a, m, n)
    _put(y, b, m + 1, n)


@piece
def _one(y, x, w, m, n):
    size = x.shape[1]
    a = zeros()
    first, row = m * size, n * size
    for k in range(0, size - size % width(x), width(x)):
        a = multiply_add(a, load(x, first + k), load(w, row + k))
    _put(y, a, m, n)


@piece
def _four_by_four(y, x, w, m, n):
    size = x.shape[1]
    a = b = c = d = e = f = g = h = i = j = o = p = q = r = s = t = zeros()
    x0, w0 = m * size, n * size
    x1, x2, x3, w1, w2, w3 = x0 + size, x0 + 2 * size, x0 + 3 * size, w0 + size, w0 + 2 * size, w0 + 3 * size
    for k in range(0, size - size % width(x), width(x)):
        u0, u1, u2, u3 = load(x, x0 + k), load(x, x1 + k), load(x, x2 + k), load(x, x3 + k)
        v0, v1, v2, v3 = load(w, w0 + k), load(w, w1 + k), load(w, w2 + k), load(w, w3 + k)
        a, b, c, d = multiply_add(a, u0, v0), multiply_add(b, u0, v1), multiply_add(c, u0, v2), multiply_add(d, u0, v3)
        e, f, g, h = multiply_add(e, u1, v0), multiply_add(f, u1, v1), multiply_add(g, u1, v2), multiply_add(h, u1, v3)
        i, j, o, p = multiply_add(i, u2, v0), multiply_add(j, u2, v1), multiply_add(o, u2, v2), multiply_add(p, u2, v3)
        q, r, s, t = multiply_add(q, u3, v0), multiply_add(r, u3, v1), multiply_add(s, u3, v2), multiply_add(t, u3, v3)
    for row, (first, second, third, fourth) in enumerate(((a, b, c, d), (e, f, g, h), (i, j, o, p), (q, r, s, t))):
        _put(y, first, m + row, n)
        _put(y, second, m + row, n + 1)
        _put(y, third, m + row, n + 2)
        _put(y, fourth, m + row, n + 3)


@piece
def _by_one_row(y, x, w, first, stop, n):
    """Rows first .. stop of the inputs by one row of weights."""
    m = first
    while m + 8 <= stop:
        _eight(y, x, w, m, n)
        m += 8
    while m + 2 <= stop:
        _two(y, x, w, m, n)
        m += 2
    if m < stop:
        _one(y, x, w, m, n)


@task
def _stripe(y, x, w, first, stop, start, end):
    """Rows first .. stop of the inputs by the rows start .. end of the weights."""
    n = start
    if stop - first > FEW:
        whole = stop - (stop - first) % 4
        while n + 4 <= end:
            for m in range(first, whole, 4):
                _four_by_four(y, x, w, m, n)
            for row in range(n, n + 4):
                _by_one_row(y, x, w, whole, stop, row)
            n += 4
    while n < end:
        _by_one_row(y, x, w, first, stop, n)
        n += 1


@kernel
def _multiply(y, x, w):
    """y (m, n), x (m, k), w (n, k), but for the last of k where they are too few for a vector."""
    down, across = (x.shape[0] + ROWS - 1) // ROWS, (w.shape[0] + STRIPE - 1) // STRIPE
    for i in prange(down * across):
        first, start = (i % down) * ROWS, (i // down) * STRIPE
        _stripe(y, x, w, first, min(first + ROWS, x.shape[0]), start, min(start + STRIPE, w.shape[0]))


@exact_task
def _finish(y, summed, x, w, bias):
    """y (m, n) from what `_multiply` gave, the products that it left out, and bias (n,), or none where it is empty."""
    inputs = x.shape[1]
    for m in range(y.shape[0]):
        for n in range(y.shape[1]):
            total = summed[m, n]
            for k in range(inputs - inputs % width(x), inputs):
                total += widen(x[m, k]) * widen(w[n, k])
            if bias.shape[0]:
                total += widen(bias[n])
            y[m, n] = narrow(total, y[m, n])


def _run(y: Array, x: Array, w: Array) -> None:
    if w.size * len(x) <= SMALL:
        _stripe(y, x, w, 0, len(x), 0, len(w))
    else:
        use_torch_threads()
        _multiply(y, x, w)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., in) -> x @ weight.T + bias, (..., out); torch's where gradients may be wanted or torch is faster."""
    size = x.shape[-1]
    rows = x.numel() // max(1, size)
    if torch.is_grad_enabled() or not 0 < rows <= MOST_ROWS.get(weight.dtype, 0):
        return F.linear(x, weight, bias)
    y = torch.empty(rows, len(weight), dtype=x.dtype)
    out, inputs, weights = array(y), array(x).reshape(rows, size), array(weight)
    if bias is None and size % PAIRS == 0:
        _run(out, inputs, weights)
    else:
        summed = np.empty(out.shape, np.float32)
        _run(summed, inputs, weights)
        _finish(out, summed, inputs, weights, NO_BIAS[weights.dtype.type] if bias is None else array(bias))
    return y.view(*x.shape[:-1], len(weight))
