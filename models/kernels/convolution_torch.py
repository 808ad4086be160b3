"""The causal depthwise convolution in plain torch."""

import torch
import torch.nn.functional as F
from torch import Tensor


def convolve(x: Tensor, state: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """SiLU of the causal convolution over runs of tokens.

    Args:
        x: (b, l, channels). state: (b, channels, kernel - 1), the inputs before. weight: (channels, 1, kernel).
    Returns:
        (b, l, channels); the last inputs (b, channels, kernel - 1), in x's dtype.
    """
    length, taps = x.shape[1], weight.squeeze(1).unbind(-1)
    # Channels stay neighbours, as all that follows wants them. conv1d would lay each one's tokens side by side.
    window = torch.cat((state.to(x.dtype).transpose(1, 2), x), dim=1)
    convolved = window[:, :length] * taps[0] if bias is None else torch.addcmul(bias, window[:, :length], taps[0])
    for i, tap in enumerate(taps[1:], 1):
        convolved = torch.addcmul(convolved, window[:, i : i + length], tap)
    return F.silu(convolved), window[:, length:].transpose(1, 2)


def convolve_step(x: Tensor, pool: Tensor, slots: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The same for one token of each sequence; x joins the inputs that the pool remembers.

    Args:
        x: (b, channels). pool: (s, channels, kernel - 1), changed in place. slots: (b,) int64, distinct.
    Returns:
        (b, channels).
    """
    window = torch.cat((pool[slots].to(x.dtype), x.unsqueeze(-1)), dim=-1)
    pool.index_copy_(0, slots, window[..., 1:].to(pool.dtype))
    convolved = (window * weight.squeeze(1)).sum(-1)
    return F.silu(convolved if bias is None else convolved + bias)
