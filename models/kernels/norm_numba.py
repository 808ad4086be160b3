"""RMS norms for a processor, compiled by numba: one call, where plain torch makes six passes of them.

It imports numba at its top, so only what has made sure of numba may import it.
"""

import numpy as np
import torch
from numba import prange
from torch import Tensor

from models.kernels.numba_scalars import array, kernel, narrow, task, use_torch_threads, widen

ZERO, ONE = np.float32(0), np.float32(1)
RUN = 16  # rows of a task
SMALL = 1 << 15  # numbers: fewer are done before a second thread is awake


@task
def _normalise(y, x, weight, eps, offset, twice):
    """y, x (m, d), weight (d,): x / rms(x) * (offset + weight). twice: rounded before the product with weights too."""
    size = x.shape[1]
    for m in range(x.shape[0]):
        total = ZERO
        for d in range(size):
            value = widen(x[m, d])
            total += value * value
        scale = ONE / np.sqrt(total / np.float32(size) + eps)
        if twice:
            for d in range(size):
                rounded = narrow(widen(x[m, d]) * scale, y[m, d])
                y[m, d] = narrow(widen(rounded) * (offset + widen(weight[d])), y[m, d])
        else:
            for d in range(size):
                y[m, d] = narrow(widen(x[m, d]) * scale * (offset + widen(weight[d])), y[m, d])


@kernel
def _normalise_many(y, x, weight, eps, offset, twice):
    for i in prange((x.shape[0] + RUN - 1) // RUN):
        rows = slice(i * RUN, min((i + 1) * RUN, x.shape[0]))
        _normalise(y[rows], x[rows], weight, eps, offset, twice)


def rms_norm(x: Tensor, weight: Tensor, eps: float, unit_offset: bool) -> Tensor:
    """As in plain torch: x (..., d), weight (d,) of the same dtype -> (..., d). No row's bits depend on its company."""
    y = torch.empty(x.shape, dtype=x.dtype)
    size = x.shape[-1]
    out, rows = (array(tensor).reshape(-1, size) for tensor in (y, x))
    offset, twice = ONE if unit_offset else ZERO, not unit_offset and x.dtype != torch.float32
    if rows.size <= SMALL:
        _normalise(out, rows, array(weight), np.float32(eps), offset, twice)
    else:
        use_torch_threads()
        _normalise_many(out, rows, array(weight), np.float32(eps), offset, twice)
    return y
