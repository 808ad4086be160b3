"""A rate as it would be by human verdicts, from a grader's rate and how often the grader is right.

A grader that misses right answers makes a model look worse than it is. With its sensitivity and specificity, measured
on answers that people have judged, the rate is set right; what is uncertain of those widens the interval.
"""

from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from evals.stats.bootstrap import RESAMPLES, Floats, Table, percentile_interval


@dataclass(frozen=True, slots=True)
class GraderQuality:
    """On answers that people judged: how many are right, and how many of those the grader called so; likewise wrong.

    Attributes:
        source: where the judged answers come from. grader: whose quality it is. version: of the grader, a digest of
            how it graded when this was measured. not_for: datasets whose answers are not like the judged ones.
        alike: how many of these answers tell as much as one would alone: those to one question err together.
    """

    right: int
    right_called_right: int
    wrong: int
    wrong_called_wrong: int
    source: str
    grader: str = "lexical"
    version: str = ""
    not_for: tuple[str, ...] = ()
    alike: float = 1.0

    @property
    def sensitivity(self) -> float:
        return self.right_called_right / self.right

    @property
    def specificity(self) -> float:
        return self.wrong_called_wrong / self.wrong

    def drawn(self, resamples: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
        """Sensitivities and specificities as likely as these counts make them (Jeffreys' prior)."""

        def draw(agreed: int, of: int) -> Floats:
            return rng.beta(agreed / self.alike + 0.5, (of - agreed) / self.alike + 0.5, resamples)

        return draw(self.right_called_right, self.right), draw(self.wrong_called_wrong, self.wrong)


class Corrected(TypedDict):
    rate: float
    low: float
    high: float


def corrected_rate(called_right: Table, quality: GraderQuality, *, seed: int = 0) -> Corrected | None:
    """The share of answers that are truly right, where the grader called that share right.

    p = (called + specificity - 1) / (sensitivity + specificity - 1), between 0 and 1. None where the grader knows no
    better than chance.

    Args:
        called_right: one column, of 1 for each answer that the grader called right.
    Source: W. J. Rogan and B. Gladen, American Journal of Epidemiology 107 (1978), 71-76.
    """
    if quality.sensitivity + quality.specificity <= 1:
        return None
    rng = np.random.default_rng(seed)
    sensitivity, specificity = quality.drawn(RESAMPLES, rng)
    drawn = _correct(_resampled(called_right, rng), sensitivity, specificity)
    low, high = percentile_interval(drawn)
    [rate] = _correct(called_right.means[:1], np.array([quality.sensitivity]), np.array([quality.specificity]))
    return Corrected(rate=float(rate), low=low, high=high)


def _resampled(called_right: Table, rng: np.random.Generator) -> Floats:
    """As `called_right.resampled` draws its one column; but clusters that are alike are drawn together, which takes a
    thousandth of the time."""
    rows = np.column_stack([called_right.sums[:, 0], called_right.counts[:, 0]])
    kinds, sizes = np.unique(rows, axis=0, return_counts=True)
    drawn = rng.multinomial(len(rows), sizes / len(rows), size=RESAMPLES)
    sums, counts = (drawn @ kinds).T
    return np.asarray(sums / counts)


def _correct(called: Floats, sensitivity: Floats, specificity: Floats) -> Floats:
    # A draw that is no better than chance says nothing: it may be anything.
    skill = np.maximum(sensitivity + specificity - 1, 1e-6)
    return np.clip((called + specificity - 1) / skill, 0.0, 1.0)
