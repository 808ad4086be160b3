"""How many questions a wanted certainty takes, before anything is asked."""

import math
from statistics import NormalDist

from evals.stats.bootstrap import z_of
from evals.stats.rates import wilson

MAX_QUESTIONS = 10_000_000


def questions_for_rate(half_width: float, rate: float) -> int:
    """The fewest questions of which a rate has a 95 % Wilson interval of at most twice that width.

    Raises:
        ValueError: a share is not between 0 and 1, or the half width is so small that ten million are too few.
    """
    _check(half_width=half_width, rate=rate)
    low, high = 1, MAX_QUESTIONS
    if _half_width(rate, high) > half_width:
        raise ValueError(f"a half width of {half_width:g} takes more than {MAX_QUESTIONS:,} questions")
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if _half_width(rate, middle) <= half_width else (middle + 1, high)
    return low


def _half_width(rate: float, n: int) -> float:
    low, high = wilson(round(rate * n), n)
    return (high - low) / 2


def questions_for_difference(half_width: float, discordance: float) -> int:
    """Questions of which a paired difference has a 95 % interval of that half width.

    Args:
        discordance: the share of questions whose outcome differs between the two conditions.
    Raises:
        ValueError: a share is not between 0 and 1.
    """
    _check(half_width=half_width, discordance=discordance)
    return max(1, math.ceil(z_of(0.95) ** 2 * discordance / half_width**2))


def detectable_difference(n: int, discordance: float, power: float = 0.8) -> float:
    """The smallest true difference that so many questions show to be one, at 5 %, with that probability."""
    _check(discordance=discordance, power=power)
    return min(1.0, (z_of(0.95) + NormalDist().inv_cdf(power)) * math.sqrt(discordance / n))


def design_effect(cluster_size: float, correlation: float) -> float:
    """By what factor questions that come in clusters must be more: 1 + (size of a cluster - 1) * their correlation.

    Source: L. Kish, Survey Sampling (1965), section 5.4.
    """
    return 1 + (cluster_size - 1) * correlation


def _check(**shares: float) -> None:
    for name, value in shares.items():
        if not 0 < value < 1:
            raise ValueError(f"{name} must be between 0 and 1, got {value:g}")
