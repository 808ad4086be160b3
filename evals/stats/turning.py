"""Where more context stops helping: the point at which a rate of failures falls no longer.

The rate is fitted by two straight lines over the logarithm of the budget that meet at a point: up to it the rate does
not rise, from it on it does not fall. The interval is what the point becomes when whole clusters are drawn anew.
Budgets between two neighbours are told apart only as far as the lines allow; nothing is said beyond the longest one.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal, TypedDict

import numpy as np

from evals.stats.bootstrap import RESAMPLES, Floats, percentile_interval, tabulate

LEAST_BUDGETS = 4
PLACES = 33  # between two neighbouring budgets
FORMULA = (
    "two lines over log2(budget) that meet at the turning point, least squares, the first not rising and the second not"
    f" falling; 95 % percentile interval of {RESAMPLES} bootstrap resamples of whole clusters"
)
Shape = Literal["turns", "falls throughout", "never falls"]


class Turning(TypedDict):
    """`budget` with its interval: the shortest one where the rate never falls, the longest where it falls throughout.

    fall: how much the rate falls up to there, by the fit; rise: how much it rises from there to the longest budget.
    """

    shape: Shape
    budget: float
    low: float
    high: float
    fall: float
    rise: float


def turning_point(
    failures: Mapping[int, Mapping[str, float]],
    clusters: Mapping[str, str],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Turning | None:
    """Where the rate of failures stops to fall; None of fewer than four budgets, or of a single cluster.

    Args:
        failures: budget -> question -> whether it failed. A budget of 0 has no documents and is left out.
    """
    budgets = sorted(budget for budget, asked in failures.items() if budget > 0 and asked)
    table = tabulate([failures[budget] for budget in budgets], clusters)
    if len(budgets) < LEAST_BUDGETS or len(table.sums) < 2:
        return None
    places = _Places(budgets)
    [found], levels = places.fit(table.means[None])
    drawn, _ = places.fit(table.resampled(resamples, seed))
    low, high = percentile_interval(drawn)
    shape: Shape = "turns"
    if found in (places.logs[0], places.logs[-1]):
        shape = "never falls" if found == places.logs[0] else "falls throughout"
    start, turn, end = levels[0]
    fall, rise = float(start - turn), float(end - turn)
    return Turning(shape=shape, budget=2.0**found, low=2.0**low, high=2.0**high, fall=fall, rise=rise)


class _Places:
    """The points at which the two lines may meet, and the fits for each."""

    def __init__(self, budgets: Sequence[int]) -> None:
        self.logs = np.array([math.log2(budget) for budget in budgets])
        # In the first and the last interval a line would go through a single point of its own: any place fits as well.
        inner = [np.linspace(*pair, PLACES) for pair in zip(self.logs[1:-2], self.logs[2:-1], strict=True)]
        self._places = np.unique(np.concatenate([self.logs[:1], *inner, self.logs[-1:]]))

    def fit(self, rates: Floats) -> tuple[Floats, Floats]:
        """Rates (n, budgets) -> the best places (n,), and the fit's levels at the first, at it and at the last (n, 3).

        Of places that fit equally well the first is taken: a rate that does not move has stopped at once.
        """
        best = np.full(len(rates), np.inf)
        found, levels = np.zeros(len(rates)), np.zeros((len(rates), 3))
        for place in self._places:
            for falls, rises in ((True, True), (True, False), (False, True), (False, False)):
                error, fitted = self._lines(rates, place, falls=falls, rises=rises)
                better = error < best - 1e-12
                best[better], found[better], levels[better] = error[better], place, fitted[better]
        return found, levels

    def _lines(self, rates: Floats, place: float, *, falls: bool, rises: bool) -> tuple[Floats, Floats]:
        """Squared errors (n,), without bounds where a line goes the wrong way, and the levels (n, 3)."""
        before, after = np.minimum(self.logs - place, 0), np.maximum(self.logs - place, 0)
        parts = [np.ones_like(self.logs)] + [before] * falls + [after] * rises
        design = np.stack(parts, axis=1)
        fitted = rates @ np.linalg.pinv(design).T
        error = np.sum((rates - fitted @ design.T) ** 2, axis=1)
        first = fitted[:, 1] if falls else np.zeros(len(rates))
        second = fitted[:, -1] if rises else np.zeros(len(rates))
        error[(first > 0) | (second < 0)] = np.inf
        level = fitted[:, 0]
        return error, np.stack([level + first * before[0], level, level + second * after[-1]], axis=1)
