"""Weights packed as MXFP4: blocks of 32 numbers of four bits, which share a scale of eight bits."""

import torch
from torch import Tensor

BLOCK = 32
BYTES_PER_BLOCK = BLOCK // 2
BIAS = 127  # of a scale's exponent
# Bit 3 is the sign; then E2M1.
_NUMBERS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def unpack(blocks: Tensor, scales: Tensor) -> Tensor:
    """The numbers of packed rows: of each block 2**(scale - 127) times what the four bits stand for.

    Shapes: g blocks in a row.

    Args:
        blocks: (..., g, 16) uint8, two numbers in each byte, the first in its lower half. scales: (..., g) uint8.
    Returns:
        (..., 32 * g) float32.
    Source: OCP Microscaling Formats (MX) specification 1.0.
    """
    numbers = torch.tensor([*_NUMBERS, *(-number for number in _NUMBERS)], device=blocks.device)
    byte = torch.arange(256, device=blocks.device)
    # Looked up two at a time, as one number of twice the size: several times as fast.
    pairs = torch.stack((numbers[byte & 15], numbers[byte >> 4]), dim=-1).view(torch.float64).squeeze(-1)
    unpacked = pairs.index_select(0, blocks.flatten().int()).view(torch.float32).view(*scales.shape, BLOCK)
    powers = torch.ldexp(torch.ones_like(scales, dtype=torch.float32), scales.int() - BIAS)
    return unpacked.mul_(powers.unsqueeze(-1)).flatten(-2)
