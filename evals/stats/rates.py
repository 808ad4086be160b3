"""Rates with intervals.

Nothing measured is None, never zero: a rate over no samples does not exist.
"""

import math
from collections.abc import Iterable, Sequence
from typing import TypedDict

Z_95 = 1.959963984540054
FORMULA = (
    "Wilson score interval at 95 %: (p + z²/2n ± z·sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n), z = 1.96, where n is the"
    " number of samples divided by the design effect of their clusters (questions about one entity), if that is above 1"
)


class Rate(TypedDict):
    """A share of n samples and its 95 % interval; the figures are None when n is 0."""

    rate: float | None
    low: float | None
    high: float | None
    n: int


def wilson(successes: float, n: float) -> tuple[float, float]:
    """The 95 % Wilson score interval of a binomial share; n > 0."""
    if not 0 <= successes <= n or n <= 0:
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


def clustered_rate(outcomes: Iterable[tuple[str, bool]]) -> Rate:
    """The share of outcomes that are true, with an interval that knows which of them are about the same thing.

    Args:
        outcomes: the cluster and the outcome of each sample.
    Source: the effective sample size of L. Kish, Survey Sampling (1965), section 8.2, in Wilson's interval, as
        N. Dean and M. Pagano, Statistics in Medicine 34 (2015), 3304-3317, compare it with others.
    """
    totals: dict[str, list[int]] = {}
    for cluster, happened in outcomes:
        total = totals.setdefault(cluster, [0, 0])
        total[0] += happened
        total[1] += 1
    n = sum(size for _, size in totals.values())
    if n == 0:
        return rate(0, 0)
    share = sum(successes for successes, _ in totals.values()) / n
    effective = n / _design_effect(share, n, list(totals.values()))
    low, high = wilson(share * effective, effective)
    return {"rate": share, "low": low, "high": high, "n": n}


def _design_effect(share: float, n: int, totals: Sequence[Sequence[int]]) -> float:
    """By how much the variance of the share is larger than that of as many unrelated samples; 1 or more."""
    if len(totals) == n:
        return 1.0
    if share in (0.0, 1.0) or len(totals) == 1:
        # Nothing shows how much goes together: each cluster counts once.
        return n / len(totals)
    spread = sum((successes - share * size) ** 2 for successes, size in totals) * len(totals) / (len(totals) - 1)
    return max(1.0, spread / (n * share * (1 - share)))
