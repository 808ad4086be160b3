"""Differences between two conditions on the same questions: how large they are, and whether there is one at all.

Nothing measured is None, never zero.
"""

from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np

from evals.stats.bootstrap import RESAMPLES, Floats, Table, bca_interval, tabulate, z_of

FORMULAS: dict[str, str] = {
    "difference": "mean over questions of (outcome at this budget - outcome at the other), questions scored at both;"
    f" 95 % BCa interval of {RESAMPLES} bootstrap resamples of whole clusters (questions about one entity)",
    "p_value": "exact test of no difference: the chance of a total as far from zero if in each cluster the two outcomes"
    " were exchanged at random; with one question in each cluster it is McNemar's exact test",
    "p_adjusted": "the same after Holm's correction for all budgets of the series",
    "equivalent_within": "the smallest margin within which the two one-sided tests at 5 % call both outcomes equal: the"
    " farther end of the 90 % interval",
}


class Difference(TypedDict):
    """A mean paired difference.

    All but n_pairs is None without pairs; the interval and `equivalent_within` also with pairs from a single cluster,
    whose spread nothing shows.
    """

    difference: float | None
    low: float | None
    high: float | None
    p_value: float | None
    equivalent_within: float | None
    n_pairs: int


def paired_difference(
    outcomes: Mapping[str, float],
    baseline: Mapping[str, float],
    clusters: Mapping[str, str],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Difference:
    """Mean of outcome - baseline over the questions in both; equal inputs and seed give equal figures.

    Args:
        outcomes, baseline: question id -> whether it happened there. Questions in one of them only are left out.
        clusters: question id -> cluster, for at least every question in both.
    """
    differences = {key: float(outcomes[key]) - float(baseline[key]) for key in outcomes.keys() & baseline.keys()}
    if not differences:
        return Difference(difference=None, low=None, high=None, p_value=None, equivalent_within=None, n_pairs=0)
    table = tabulate([differences], clusters)
    mean, count = float(table.means[0]), len(differences)
    p_value = exchange_test(table.sums[:, 0])
    if len(table.sums) == 1:
        return Difference(difference=mean, low=None, high=None, p_value=p_value, equivalent_within=None, n_pairs=count)
    (low, high), (near, far) = _intervals(table, mean, resamples, seed)
    return Difference(
        difference=mean,
        low=low,
        high=high,
        p_value=p_value,
        equivalent_within=max(abs(near), abs(far)),
        n_pairs=count,
    )


def _intervals(table: Table, mean: float, resamples: int, seed: int) -> list[tuple[float, float]]:
    """At 95 and 90 %."""
    levels = (0.95, 0.90)
    if not table.sums.any():
        # Where nothing differs no resample does, which does not mean that nothing ever will: Tango's score interval.
        reaches = [z_of(level) ** 2 / (len(table.sums) + z_of(level) ** 2) for level in levels]
        return [(-reach, reach) for reach in reaches]
    resampled, without_each = table.resampled(resamples, seed)[:, 0], table.without_each()[:, 0]
    return [bca_interval(mean, resampled, without_each, level) for level in levels]


def exchange_test(totals: Floats) -> float:
    """The exact two-sided probability of a sum as far from zero, had every total either sign with the same chance.

    Args:
        totals: whole numbers, one for each cluster.
    Raises:
        ValueError: a total is no whole number.
    Source: for totals of -1, 0 and 1, Q. McNemar, Psychometrika 12 (1947), 153-157, in its exact binomial form.
    """
    sizes = np.abs(totals)
    if not np.array_equal(sizes, np.round(sizes)):
        raise ValueError("the test needs outcomes that either happen or do not")
    reach = int(sizes.sum())
    chances = np.zeros(2 * reach + 1)
    chances[reach] = 1.0
    for size in sizes[sizes > 0].astype(int):
        chances = (np.roll(chances, size) + np.roll(chances, -size)) / 2
    far = abs(round(float(totals.sum())))
    sums = np.abs(np.arange(-reach, reach + 1))
    return min(1.0, float(chances[sums >= far].sum()))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Each p value after Holm's step-down correction for all of them that are not None; in their order.

    Source: S. Holm, Scandinavian Journal of Statistics 6 (1979), 65-70.
    """
    known = sorted((value, place) for place, value in enumerate(p_values) if value is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (value, place) in enumerate(known):
        largest = max(largest, min(1.0, value * (len(known) - rank)))
        adjusted[place] = largest
    return adjusted
