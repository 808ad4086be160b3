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
        source: where the judged answers come from.
    """

    right: int
    right_called_right: int
    wrong: int
    wrong_called_wrong: int
    source: str

    @property
    def sensitivity(self) -> float:
        return self.right_called_right / self.right

    @property
    def specificity(self) -> float:
        return self.wrong_called_wrong / self.wrong

    def drawn(self, resamples: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
        """Sensitivities and specificities as likely as these counts make them (Jeffreys' prior)."""
        hit, miss = self.right_called_right, self.right - self.right_called_right
        kept, let = self.wrong_called_wrong, self.wrong - self.wrong_called_wrong
        return rng.beta(hit + 0.5, miss + 0.5, resamples), rng.beta(kept + 0.5, let + 0.5, resamples)


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
    drawn = _correct(called_right.resampled(RESAMPLES, seed)[:, 0], sensitivity, specificity)
    low, high = percentile_interval(drawn)
    [rate] = _correct(called_right.means[:1], np.array([quality.sensitivity]), np.array([quality.specificity]))
    return Corrected(rate=float(rate), low=low, high=high)


def _correct(called: Floats, sensitivity: Floats, specificity: Floats) -> Floats:
    # A draw that is no better than chance says nothing: it may be anything.
    skill = np.maximum(sensitivity + specificity - 1, 1e-6)
    return np.clip((called + specificity - 1) / skill, 0.0, 1.0)
