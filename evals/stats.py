"""Rates with intervals, and paired differences between two budgets.

Nothing measured is None, never zero: a rate over no samples does not exist.
"""

import math
from collections.abc import Mapping
from typing import TypedDict

import numpy as np

Z_95 = 1.959963984540054
RESAMPLES = 2000
FORMULAS: dict[str, str] = {
    "interval": "Wilson score interval at 95 %: (p + z²/2n ± z·sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n), z = 1.96",
    "difference": "mean over questions of (outcome at this budget - outcome at the other), questions scored at both;"
    f" 95 % percentile interval of {RESAMPLES} bootstrap resamples of whole clusters (questions about one entity)",
}


class Rate(TypedDict):
    """A share of n samples and its 95 % interval; the figures are None when n is 0."""

    rate: float | None
    low: float | None
    high: float | None
    n: int


class Difference(TypedDict):
    """A mean paired difference and its 95 % interval.

    `difference` is None without pairs; `low` and `high` also with pairs from a single cluster, whose spread
    nothing shows.
    """

    difference: float | None
    low: float | None
    high: float | None
    n_pairs: int


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


def paired_difference(
    outcomes: Mapping[str, bool],
    baseline: Mapping[str, bool],
    clusters: Mapping[str, str],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Difference:
    """Mean of outcome - baseline over the questions in both, with a clustered bootstrap interval.

    Whole clusters are drawn with replacement, as many as there are, for errors about one entity come together.
    Equal inputs and seed give equal figures, in whatever order the questions stand.

    Args:
        outcomes, baseline: question id -> whether it happened there. Questions in one of them only are left out.
        clusters: question id -> cluster, for at least every question in both.
    """
    pairs = sorted(outcomes.keys() & baseline.keys())
    if not pairs:
        return {"difference": None, "low": None, "high": None, "n_pairs": 0}
    totals: dict[str, int] = {}
    sizes: dict[str, int] = {}
    for question in pairs:
        cluster = clusters[question]
        totals[cluster] = totals.get(cluster, 0) + outcomes[question] - baseline[question]
        sizes[cluster] = sizes.get(cluster, 0) + 1
    mean = sum(totals.values()) / len(pairs)
    if len(totals) == 1:
        return {"difference": mean, "low": None, "high": None, "n_pairs": len(pairs)}
    total, size = np.array(list(totals.values())), np.array(list(sizes.values()))
    drawn = np.random.default_rng(seed).integers(len(total), size=(resamples, len(total)))
    means = total[drawn].sum(axis=1) / size[drawn].sum(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return {"difference": mean, "low": float(low), "high": float(high), "n_pairs": len(pairs)}
