"""Whether a measure of doubt knows the wrong answers: ranks against verdicts."""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np


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
