"""Functions of single numbers for a processor, as kernels compiled by numba apply them: the same bits everywhere.

It imports numba at its top, so only what has made sure of numba may import it.
"""

import numpy as np
import torch
from torch import Tensor

from models.kernels.numba_scalars import exp, fma, strict

ZERO, ONE, TWO = np.float32(0), np.float32(1), np.float32(2)
# 2 * sqrt(2 / pi), and the same times 0.044715, as the approximation of GELU by tanh has them.
GELU, GELU_CUBED = np.float32(1.5957691216057308), np.float32(0.07135481627159193)
SHARE = 1 << 15  # numbers of a task: fewer are done before a second thread is awake
DTYPES = (torch.float32, torch.bfloat16)


def serves(x: Tensor) -> bool:
    """Not where gradients may be wanted."""
    return x.dtype in DTYPES and x.numel() > 0 and not torch.is_grad_enabled()


@strict
def sigmoid_of(x):
    return ONE / (ONE + exp(-x))


@strict
def silu_of(x):
    return x / (ONE + exp(-x))


@strict
def softplus_of(x):
    """max(x, 0) + log(1 + u), u = e^-|x|: of the logarithm eight terms in u / (2 + u), which is at most a third."""
    u = exp(-abs(x))
    s = u / (TWO + u)
    square = s * s
    total = fma(square, np.float32(1.0 / 15), np.float32(1.0 / 13))
    total = fma(total, square, np.float32(1.0 / 11))
    total = fma(total, square, np.float32(1.0 / 9))
    total = fma(total, square, np.float32(1.0 / 7))
    total = fma(total, square, np.float32(1.0 / 5))
    total = fma(total, square, np.float32(1.0 / 3))
    total = fma(total, square, ONE)
    return max(x, ZERO) + TWO * s * total


@strict
def gelu_tanh_of(x):
    return x * sigmoid_of(x * (GELU + GELU_CUBED * (x * x)))
