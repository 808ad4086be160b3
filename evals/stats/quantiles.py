"""Intervals of quantiles, whatever the distribution."""

import math
from collections.abc import Iterable

FORMULA = "between the order statistics that enclose the quantile in 95 % of samples of any distribution"


def quantile_interval(values: Iterable[float], q: float, level: float = 0.95) -> tuple[float | None, float | None]:
    """The interval of the q-quantile (0 < q < 1); an end is None where so few values bound it on one side only.

    How many values lie below the quantile is binomial; the ends are the values whose ranks leave at most half of
    1 - level on each side.
    Source: H. A. David, H. N. Nagaraja, "Order Statistics", 3rd ed. (2003), section 7.1.
    """
    ordered, tail = sorted(values), (1 - level) / 2
    chance, low = 0.0, None
    for rank, value in enumerate(ordered):
        # Now the chance that at most `rank` values lie below the quantile, so that this value does not.
        chance += _binomial(rank, len(ordered), q)
        if chance <= tail:
            low = value
        elif chance >= 1 - tail:
            return low, value
    return low, None


def _binomial(successes: int, n: int, chance: float) -> float:
    log = math.lgamma(n + 1) - math.lgamma(successes + 1) - math.lgamma(n - successes + 1)
    return math.exp(log + successes * math.log(chance) + (n - successes) * math.log1p(-chance))
