"""Rotary positions: the frequencies of each scaling, and the rotation of queries and keys."""

import math

import torch
from torch import Tensor

from models.config import LinearScaling, Llama3Scaling, LongRopeScaling, RopeSpec, YarnScaling


def frequencies(spec: RopeSpec) -> Tensor:
    """Radians per position of each pair of entries, (rotary_dim / 2,) float32 on the CPU.

    Computed in float32 in the order of the published implementations: at position 100,000 another rounding of a
    frequency turns its angle by several thousandths.
    """
    exponents = torch.arange(0, spec.rotary_dim, 2, dtype=torch.float32, device="cpu") / spec.rotary_dim
    periods = spec.theta**exponents
    scaling = spec.scaling
    if scaling is None:
        return 1.0 / periods
    if isinstance(scaling, LinearScaling):
        return 1.0 / periods / scaling.factor
    if isinstance(scaling, Llama3Scaling):
        return _llama3(1.0 / periods, scaling)
    if isinstance(scaling, YarnScaling):
        return _yarn(periods, spec.theta, scaling)
    return 1.0 / (torch.tensor(scaling.factors, dtype=torch.float32, device="cpu") * periods)


def _llama3(plain: Tensor, scaling: Llama3Scaling) -> Tensor:
    """Source: the published code of Llama 3.1; by how often a frequency turns within the original context."""
    turns = scaling.original_positions / (2 * math.pi / plain)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return (1 - kept) * plain / scaling.factor + kept * plain


def _yarn(periods: Tensor, theta: float, scaling: YarnScaling) -> Tensor:
    """Source: arXiv:2309.00071, section 3.2; beta_fast and beta_slow are turns within the original context."""
    dim = 2 * len(periods)

    def dimension(turns: float) -> float:
        """The pair, as a real number, that turns so often within the original context."""
        return dim * math.log(scaling.original_positions / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first, last = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dim - 1)
    if first == last:
        last += 0.001
    ramp = (torch.arange(len(periods), dtype=torch.float32, device="cpu") - first) / (last - first)
    kept = 1 - ramp.clamp(0.0, 1.0)
    return 1.0 / (scaling.factor * periods) * (1 - kept) + 1.0 / periods * kept


class Rotary:
    """Rotates heads by their position. It has no weights: its numbers stay float32 whatever the model is cast to."""

    def __init__(self, spec: RopeSpec) -> None:
        self.spec = spec
        self._frequencies = frequencies(spec)
        scaling = spec.scaling
        self._length = scaling.attention_factor if isinstance(scaling, YarnScaling | LongRopeScaling) else 1.0

    def table(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the rotary angles at `positions`.

        Angles are computed in float32; at positions beyond 2**24 they would lose whole steps.

        Args:
            positions: (...,) int64.
        Returns:
            cos, sin: (..., rotary_dim) float32; the second half repeats the first.
        Source: arXiv:2104.09864, in the half-split layout of the published Llama checkpoints.
        """
        if self._frequencies.device != positions.device:
            self._frequencies = self._frequencies.to(positions.device)
        angles = positions.float().unsqueeze(-1) * self._frequencies
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos() * self._length, angles.sin() * self._length


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first entries of each head of x (..., heads, head_dim) by cos, sin (..., rotary_dim); x's dtype."""
    turned, passed = x.tensor_split([cos.shape[-1]], dim=-1)
    first, second = turned.float().chunk(2, dim=-1)
    cos, sin = (table[..., : first.shape[-1]].unsqueeze(-2) for table in (cos, sin))  # the second half is the same
    halves = (torch.addcmul(first * cos, second, sin, value=-1), torch.addcmul(second * cos, first, sin))
    turned = torch.cat(halves, dim=-1).to(x.dtype)
    return torch.cat((turned, passed), dim=-1) if passed.shape[-1] else turned
