"""What other graders, and the graders' own errors, make of a point: rates set right, and verdicts side by side."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from evals.keys import SampleKey, key_of
from evals.records import Judgement, SampleRow, Verdict
from evals.scoring.graders import LEXICAL
from evals.stats.bootstrap import tabulate
from evals.stats.corrected import GraderQuality, corrected_rate
from evals.stats.rates import rate

Judgements = Mapping[SampleKey, Sequence[Judgement]]
SCORED: tuple[Verdict, ...] = ("correct", "hallucinated", "abstained")

DEFINITIONS: dict[str, str] = {
    "corrected": "of the answers that claim something, to questions with accepted answers: the share that people would"
    " call wrong. From the share `raw` that the grader calls so, by its sensitivity and specificity on answers that"
    " people have judged: 1 - (called right + specificity - 1) / (sensitivity + specificity - 1); the interval has what"
    " is uncertain of the share (whole clusters resampled) and of both. Abstentions and questions without an accepted"
    " answer are no part of it. It holds as far as the answers are like those that people judged (`source`: sentences"
    " of large models, answers to people's questions); there is none for datasets that are made by programs, unless"
    " --grader-quality says how the grader does on those",
    "judged": "the same samples by other graders: the share of each verdict among those that it gave one on, its mean"
    " score, and how often it agrees with the lexical verdict, where both have one: `share`, and Cohen's kappa, which"
    " is 0 for what chance would give",
}


class Corrected(TypedDict):
    rate: float
    low: float
    high: float
    n: int
    raw: float
    grader: str
    source: str


def describe_graded(
    rows: Sequence[SampleRow], judgements: Judgements, qualities: Mapping[str, GraderQuality]
) -> dict[str, Any]:
    """A point's "corrected" and "judged"."""
    verdicts = [(row, row.verdict) for row in rows]
    by_grader: dict[str, list[tuple[SampleRow, Judgement]]] = {}
    for row in rows:
        for one in judgements.get(key_of(row), ()):
            by_grader.setdefault(one.grader, []).append((row, one))
    return {
        "corrected": corrected(verdicts, qualities.get(LEXICAL)),
        "judged": {grader: _judged(by_grader[grader], qualities.get(grader)) for grader in sorted(by_grader)},
    }


def corrected(verdicts: Sequence[tuple[SampleRow, Verdict]], quality: GraderQuality | None) -> Corrected | None:
    """None where nothing was answered, or nobody knows how the grader does on such answers."""
    answered = [(row, verdict) for row, verdict in verdicts if row.answers and verdict in ("correct", "hallucinated")]
    if quality is None or not answered or answered[0][0].dataset in quality.not_for:
        return None
    right = {row.question_id: float(verdict == "correct") for row, verdict in answered}
    found = corrected_rate(tabulate([right], {row.question_id: row.cluster for row, _ in answered}), quality)
    if found is None:
        return None
    return Corrected(
        rate=1 - found["rate"],
        low=1 - found["high"],
        high=1 - found["low"],
        n=len(answered),
        raw=1 - sum(right.values()) / len(right),
        grader=quality.grader,
        source=quality.source,
    )


def lines(series: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the graders' errors and other graders make of the figures, for the terminal."""
    found = []
    for one in series:
        points = [point for point in one["points"] if point.get("corrected")]
        if points:
            told = ", ".join(f"{point['budget']}: {_told(point['corrected'])}" for point in points)
            found.append(f"{_name(one)}: wrong answers in % of those given, as graded and as people would. {told}.")
        graders = dict.fromkeys(grader for point in one["points"] for grader in point.get("judged", ()))
        for grader in graders:
            shares = [
                (point["budget"], point["judged"][grader]) for point in one["points"] if grader in point["judged"]
            ]
            told = ", ".join(
                f"{budget}: {_share(judged['hallucinated'])} of {judged['n']}" for budget, judged in shares
            )
            found.append(f"{_name(one)}: hallucinated in % by {grader}. {told}.")
    return found


def _name(series: Mapping[str, Any]) -> str:
    return f"{series['model']}, {series['dataset']}, {series['condition']}, {series['permission']}"


def _told(found: Mapping[str, Any]) -> str:
    ends = f"{100 * found['low']:.0f}-{100 * found['high']:.0f}"
    return f"{100 * found['raw']:.1f} \N{RIGHTWARDS ARROW} {100 * found['rate']:.1f} [{ends}]"


def _share(found: Mapping[str, Any]) -> str:
    return "-" if found["rate"] is None else f"{100 * found['rate']:.1f}"


def _judged(pairs: Sequence[tuple[SampleRow, Judgement]], quality: GraderQuality | None) -> dict[str, Any]:
    counts = Counter(one.verdict for _, one in pairs)
    scored = sum(counts[verdict] for verdict in SCORED)
    scores = [one.score for _, one in pairs if one.score is not None]
    both = [(row.verdict, one.verdict) for row, one in pairs if row.verdict in SCORED and one.verdict in SCORED]
    return {
        "n": len(pairs),
        "unscored": counts["unscored"],
        **{verdict: rate(counts[verdict], scored) for verdict in SCORED},
        "score_mean": sum(scores) / len(scores) if scores else None,
        "agreement": {**rate(sum(one == other for one, other in both), len(both)), "kappa": kappa(both)},
        "corrected": corrected([(row, one.verdict) for row, one in pairs], quality),
    }


def kappa(pairs: Sequence[tuple[str, str]]) -> float | None:
    """Agreement beyond what chance would give; None where chance alone would agree always, or nothing is there.

    Source: J. Cohen, Educational and Psychological Measurement 20 (1960), 37-46.
    """
    if not pairs:
        return None
    first, second = (Counter(column) for column in zip(*pairs, strict=True))
    by_chance = sum(first[verdict] * second[verdict] for verdict in first) / len(pairs) ** 2
    if by_chance == 1:
        return None
    agreed = sum(one == other for one, other in pairs) / len(pairs)
    return (agreed - by_chance) / (1 - by_chance)
