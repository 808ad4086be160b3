"""Whether a measure of doubt knows the wrong answers: ranks against verdicts."""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from evals.stats.bootstrap import RESAMPLES, Floats, draw_clusters, percentile_interval

# With fewer clusters of right or of wrong answers than that, what is drawn of them says nothing of all others.
MIN_CLUSTERS = 5


def auroc(scores: Sequence[float], wrong: Sequence[bool]) -> float | None:
    """The chance that a wrong answer has the higher score than a right one, ties counted half; None without both.

    Source: J. A. Hanley and B. J. McNeil, Radiology 143 (1982), 29-36.
    """
    positive = np.array([score for score, bad in zip(scores, wrong, strict=True) if bad])
    negative = np.sort([score for score, bad in zip(scores, wrong, strict=True) if not bad])
    if not len(positive) or not len(negative):
        return None
    above = np.searchsorted(negative, positive, side="left")
    ties = np.searchsorted(negative, positive, side="right") - above
    return float((above + ties / 2).sum() / (len(positive) * len(negative)))


class Auroc(TypedDict):
    """With its 95 % interval, which is None for too few clusters; n answers, of which so many are wrong."""

    auroc: float
    low: float | None
    high: float | None
    n: int
    wrong: int


def clustered_auroc(
    scores: Sequence[float],
    wrong: Sequence[bool],
    clusters: Sequence[str],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Auroc | None:
    """`auroc` with a percentile interval of whole clusters, drawn with replacement; None without right and wrong."""
    estimate = auroc(scores, wrong)
    if estimate is None:
        return None
    low: float | None = None
    high: float | None = None
    of_kind = [{name for name, bad in zip(clusters, wrong, strict=True) if bad is kind} for kind in (True, False)]
    size = min(map(len, of_kind))  # of the rarer kind: the figure hangs on those
    if size >= MIN_CLUSTERS:
        resampled = _resampled(np.asarray(scores, np.float64), np.asarray(wrong, bool), clusters, resamples, seed)
        low, high = percentile_interval(resampled, size=size)
    return Auroc(auroc=estimate, low=low, high=high, n=len(scores), wrong=sum(wrong))


def _resampled(scores: Floats, wrong: NDArray[np.bool_], clusters: Sequence[str], resamples: int, seed: int) -> Floats:
    """(resamples,): those in which all answers are right, or all wrong, are left out."""
    order = np.argsort(scores, kind="stable")
    ranked, bad = scores[order], wrong[order]
    begins = np.flatnonzero(np.append(True, ranked[1:] != ranked[:-1]))  # of each score
    names, places = np.unique(np.asarray(clusters)[order], return_inverse=True)
    figures = []
    for drawn in draw_clusters(len(names), resamples, seed, width=len(scores)):
        weights = drawn[:, places]
        lost = np.add.reduceat(weights * bad, begins, axis=1)
        kept = np.add.reduceat(weights * ~bad, begins, axis=1)
        wins = (lost * (np.cumsum(kept, axis=1) - kept / 2)).sum(axis=1)
        pairs = lost.sum(axis=1) * kept.sum(axis=1)
        figures.append(wins[pairs > 0] / pairs[pairs > 0])
    return np.concatenate(figures)


class RiskCoverage(TypedDict):
    """For each share of the answers, the most confident first, how many of them are wrong; and the mean of those."""

    coverage: list[float]
    risk: list[float]
    area: float


def risk_coverage(confidences: Sequence[float], wrong: Sequence[bool]) -> RiskCoverage | None:
    """None without answers. Answers of equal confidence come together: their order would be chance.

    Source: R. El-Yaniv and Y. Wiener, JMLR 11 (2010), 1605-1641.
    """
    if not confidences:
        return None
    order = np.argsort(-np.asarray(confidences, dtype=np.float64), kind="stable")
    ranked = np.asarray(confidences, dtype=np.float64)[order]
    errors = np.cumsum(np.asarray(wrong, dtype=np.float64)[order])
    last = np.append(ranked[1:] != ranked[:-1], True)
    counts = np.arange(1, len(ranked) + 1)
    sizes = np.diff(np.append(0, counts[last]))
    risks = errors[last] / counts[last]
    return RiskCoverage(
        coverage=(counts[last] / len(ranked)).tolist(),
        risk=risks.tolist(),
        area=float((risks * sizes).sum() / len(ranked)),
    )
