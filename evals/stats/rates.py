"""Rates with intervals.

Nothing measured is None, never zero: a rate over no samples does not exist.
"""

import math
from typing import TypedDict

Z_95 = 1.959963984540054
FORMULA = "Wilson score interval at 95 %: (p + z²/2n ± z·sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n), z = 1.96"


class Rate(TypedDict):
    """A share of n samples and its 95 % interval; the figures are None when n is 0."""

    rate: float | None
    low: float | None
    high: float | None
    n: int


def wilson(successes: int, n: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a binomial share; n > 0."""
    if not 0 <= successes <= n or n == 0:
        raise ValueError(f"an interval needs 0 <= successes <= n and n > 0, got {successes} of {n}")
    share, z_squared = successes / n, Z_95**2
    centre = share + z_squared / (2 * n)
    reach = Z_95 * math.sqrt(share * (1 - share) / n + z_squared / (4 * n**2))
    scale = 1 + z_squared / n
    # At 0 of n and n of n the bound is exactly 0 or 1; rounding may miss it by one unit.
    low = 0.0 if successes == 0 else (centre - reach) / scale
    high = 1.0 if successes == n else (centre + reach) / scale
    return low, high


def rate(successes: int, n: int) -> Rate:
    """`successes` of `n` with its interval."""
    if n == 0 and successes == 0:
        return {"rate": None, "low": None, "high": None, "n": 0}
    low, high = wilson(successes, n)
    return {"rate": successes / n, "low": low, "high": high, "n": n}
