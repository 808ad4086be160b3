"""How a cost grows with the length of the context: y = fixed + factor * length ^ exponent."""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np

from evals.stats.bootstrap import Floats, percentile_interval

EXPONENTS = np.round(np.arange(0.0, 3.0001, 0.01), 2)
RESAMPLES = 500
LEAST_LENGTHS = 4
FORMULA = (
    "fixed + factor * length ^ exponent, least squares of relative errors, fixed and factor not below zero; 95 %"
    f" percentile interval of {RESAMPLES} bootstrap resamples of the samples at each budget"
)


class Growth(TypedDict):
    """The fit and the interval of its exponent; `fixed` and `factor` in the unit of the cost.

    constant: whether what grows is nothing beside the rest, so that no exponent says anything; it is None then.
    """

    exponent: float | None
    low: float | None
    high: float | None
    fixed: float
    factor: float
    constant: bool


def growth(points: Sequence[Sequence[tuple[float, float]]], *, seed: int = 0) -> Growth | None:
    """Fit the medians of points (length, cost) by budget; None of fewer than four budgets.

    The median of a budget's costs belongs to the median of its lengths: one slow request does not bend the curve.
    """
    groups = [np.asarray(group, dtype=np.float64) for group in points if len(group)]
    if len(groups) < LEAST_LENGTHS:
        return None
    lengths, costs = np.array([np.median(group, axis=0) for group in groups]).T
    if lengths.min() <= 0 or costs.min() <= 0 or len(np.unique(lengths)) < LEAST_LENGTHS:
        return None
    fit = _Fit(lengths)
    exponent, fixed, factor = (float(part[0]) for part in fit.of(costs[None]))
    grown = factor * lengths.max() ** exponent
    if exponent == 0 or grown < 0.01 * costs.max():
        return Growth(exponent=None, low=None, high=None, fixed=float(np.mean(costs)), factor=0.0, constant=True)
    rng = np.random.default_rng(seed)
    drawn = np.stack([np.median(rng.choice(group[:, 1], (RESAMPLES, len(group))), axis=1) for group in groups], axis=1)
    low, high = percentile_interval(fit.of(drawn)[0])
    return Growth(exponent=exponent, low=low, high=high, fixed=fixed, factor=factor, constant=False)


class _Fit:
    def __init__(self, lengths: Floats) -> None:
        # Of the longest: else factors of high powers are too small for their numbers.
        self._longest = lengths.max()
        self._powers = [(lengths / self._longest) ** exponent for exponent in EXPONENTS]

    def of(self, costs: Floats) -> tuple[Floats, Floats, Floats]:
        """Costs (n, lengths) -> exponents, fixed parts and factors (n,)."""
        best = np.full(len(costs), np.inf)
        found = np.zeros((3, len(costs)))
        for exponent, powers in zip(EXPONENTS, self._powers, strict=True):
            for fixed, factor in self._candidates(1 / costs, powers / costs):
                error = np.sum((fixed[:, None] / costs + factor[:, None] * powers / costs - 1) ** 2, axis=1)
                error[(fixed < 0) | (factor < 0)] = np.inf
                better = error < best * (1 - 1e-9)
                best[better] = error[better]
                scaled = factor / self._longest**exponent
                for row, values in enumerate((np.full(len(costs), exponent), fixed, scaled)):
                    found[row, better] = values[better]
        exponents, fixed, factors = found
        return exponents, fixed, factors

    @staticmethod
    def _candidates(ones: Floats, powers: Floats) -> list[tuple[Floats, Floats]]:
        """Fixed part and factor (n,) that fit 1 = fixed * ones + factor * powers best: both, and each alone."""
        aa, bb, ab = (ones**2).sum(1), (powers**2).sum(1), (ones * powers).sum(1)
        a, b = ones.sum(1), powers.sum(1)
        determinant = aa * bb - ab**2
        with np.errstate(divide="ignore", invalid="ignore"):
            fixed, factor = (a * bb - b * ab) / determinant, (b * aa - a * ab) / determinant
        usable = determinant > 1e-12 * aa * bb
        fixed, factor = np.where(usable, fixed, -1.0), np.where(usable, factor, -1.0)
        none = np.zeros_like(a)
        return [(fixed, factor), (none, b / bb), (a / aa, none)]
