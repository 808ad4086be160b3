"""Products by a matrix of weights for a processor, compiled by numba.

Libraries are made for matrices: where one meets a few rows only, as in decode steps, they take twice the time that
reading the weights takes, and give a row other bits in other company. Here sixteen sums at a time are held in vector
registers, over four rows of each matrix or one row and sixteen, whose sums then go in the very same order: what a row
gets does not depend on how many there are.

It imports numba at its top, so only what has made sure of numba may import it.
"""

import numpy as np
import torch
import torch.nn.functional as F
from llvmlite import binding
from numba import prange
from torch import Tensor

from models.kernels.numba_scalars import array, floats, kernel, task, use_torch_threads, widen

ZERO = np.float32(0)
STRIPE = 64  # rows of weights of a task, which the second cache holds while all rows of inputs meet them
ROWS = 64  # of inputs of a task, likewise
ALL = 1 << 62
SMALL = 1 << 18  # products: fewer are done before a second thread is awake
# Processors that multiply bfloat16 themselves do it twice as fast as float32, once there are rows enough to multiply.
HAS_BF16 = any(binding.get_host_cpu_features().get(name) for name in ("avx512bf16", "amx-bf16"))
MOST_ROWS = {torch.float32: ALL, torch.bfloat16: 2 if HAS_BF16 else ALL}


@task
def _four_by_four(y, x, w, m, n):
    a = b = c = d = e = f = g = h = i = j = o = p = q = r = s = t = ZERO
    for k in range(x.shape[1]):
        x0, x1, x2, x3 = x[m, k], x[m + 1, k], x[m + 2, k], x[m + 3, k]
        w0, w1, w2, w3 = widen(w[n, k]), widen(w[n + 1, k]), widen(w[n + 2, k]), widen(w[n + 3, k])
        a += x0 * w0
        b += x0 * w1
        c += x0 * w2
        d += x0 * w3
        e += x1 * w0
        f += x1 * w1
        g += x1 * w2
        h += x1 * w3
        i += x2 * w0
        j += x2 * w1
        o += x2 * w2
        p += x2 * w3
        q += x3 * w0
        r += x3 * w1
        s += x3 * w2
        t += x3 * w3
    y[m, n], y[m, n + 1], y[m, n + 2], y[m, n + 3] = a, b, c, d
    y[m + 1, n], y[m + 1, n + 1], y[m + 1, n + 2], y[m + 1, n + 3] = e, f, g, h
    y[m + 2, n], y[m + 2, n + 1], y[m + 2, n + 2], y[m + 2, n + 3] = i, j, o, p
    y[m + 3, n], y[m + 3, n + 1], y[m + 3, n + 2], y[m + 3, n + 3] = q, r, s, t


@task
def _one_by_sixteen(y, x, w, m, n):
    a = b = c = d = e = f = g = h = i = j = o = p = q = r = s = t = ZERO
    for k in range(x.shape[1]):
        v = x[m, k]
        a += v * widen(w[n, k])
        b += v * widen(w[n + 1, k])
        c += v * widen(w[n + 2, k])
        d += v * widen(w[n + 3, k])
        e += v * widen(w[n + 4, k])
        f += v * widen(w[n + 5, k])
        g += v * widen(w[n + 6, k])
        h += v * widen(w[n + 7, k])
        i += v * widen(w[n + 8, k])
        j += v * widen(w[n + 9, k])
        o += v * widen(w[n + 10, k])
        p += v * widen(w[n + 11, k])
        q += v * widen(w[n + 12, k])
        r += v * widen(w[n + 13, k])
        s += v * widen(w[n + 14, k])
        t += v * widen(w[n + 15, k])
    y[m, n], y[m, n + 1], y[m, n + 2], y[m, n + 3] = a, b, c, d
    y[m, n + 4], y[m, n + 5], y[m, n + 6], y[m, n + 7] = e, f, g, h
    y[m, n + 8], y[m, n + 9], y[m, n + 10], y[m, n + 11] = i, j, o, p
    y[m, n + 12], y[m, n + 13], y[m, n + 14], y[m, n + 15] = q, r, s, t


@task
def _one_by_one(y, x, w, m, n):
    total = ZERO
    for k in range(x.shape[1]):
        total += x[m, k] * widen(w[n, k])
    y[m, n] = total


@task
def _stripe(y, x, w, first, stop, start, end):
    """Rows first .. stop of the inputs by the rows start .. end of the weights."""
    whole = end - (end - start) % 16
    for n in range(start, whole, 16):
        m = first
        while m + 4 <= stop:
            for quarter in range(n, n + 16, 4):
                _four_by_four(y, x, w, m, quarter)
            m += 4
        while m < stop:
            _one_by_sixteen(y, x, w, m, n)
            m += 1
    for n in range(whole, end):
        for m in range(first, stop):
            _one_by_one(y, x, w, m, n)


@kernel
def _multiply(y, x, w):
    """y (m, n), x (m, k), w (n, k)."""
    down, across = (x.shape[0] + ROWS - 1) // ROWS, (w.shape[0] + STRIPE - 1) // STRIPE
    for i in prange(down * across):
        first, start = (i % down) * ROWS, (i // down) * STRIPE
        _stripe(y, x, w, first, min(first + ROWS, x.shape[0]), start, min(start + STRIPE, w.shape[0]))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., in) -> x @ weight.T + bias, (..., out); torch's where gradients may be wanted or torch is faster."""
    rows = x.numel() // max(1, x.shape[-1])
    if torch.is_grad_enabled() or not 0 < rows <= MOST_ROWS.get(weight.dtype, 0):
        return F.linear(x, weight, bias)
    y = torch.empty(rows, len(weight))
    inputs, weights = floats(x).reshape(rows, -1), array(weight)
    if weight.numel() * rows <= SMALL:
        _stripe(y.numpy(), inputs, weights, 0, rows, 0, len(weight))
    else:
        use_torch_threads()
        _multiply(y.numpy(), inputs, weights)
    if bias is not None:
        y += bias
    return y.view(*x.shape[:-1], len(weight)).to(x.dtype)
