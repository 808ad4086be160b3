"""What a rate of hallucinations is made of: how often the evidence was in the context, and what came of it either way.

rate = P(present) P(wrong | present) + P(absent) P(wrong | absent) + P(unanswerable) P(wrong | unanswerable), over all
samples asked. The first term is a failure to read, the second one of retrieval, the third is invention where no
document of the corpus has an answer.
"""

from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np

from evals.records import SampleRow
from evals.stats.bootstrap import Floats, percentile_interval, tabulate

PARTS = ("present", "absent", "unanswerable")
FORMULAS = {
    "decomposition": "hallucinated = sum over the parts of share x P(hallucinated | part): evidence present (reading"
    " failed), evidence absent (retrieval failed), unanswerable (no document has the answer); floor: the same questions"
    " without documents",
    "change": "how the answerable questions' rate changed since the shortest context with documents, in three that add"
    " up to it: by recall (change of recall x mean of P(present) - P(absent)), by reading (change of P(hallucinated |"
    " present) x mean recall), by absence (change of P(hallucinated | absent) x mean of 1 - recall); 95 % percentile"
    " intervals of a bootstrap of whole clusters. Source: E. M. Kitagawa, JASA 50 (1955), 1168-1194",
}


class Part(TypedDict):
    """share: of all samples asked. hallucinated, abstained: within the part; None where it is empty.

    contribution: what the part adds to the rate of all.
    """

    n: int
    share: float
    hallucinated: float | None
    abstained: float | None
    contribution: float


class Effect(TypedDict):
    effect: float
    low: float
    high: float


class Change(TypedDict):
    """Three effects that add up to `total`; `since` is the budget that is compared with."""

    since: int
    total: float
    by_recall: Effect
    by_reading: Effect
    by_absence: Effect


class Decomposition(TypedDict):
    parts: dict[str, Part]
    hallucinated: float
    floor: float | None
    change: Change | None


def decompose(rows: Sequence[SampleRow], closed_book: Sequence[SampleRow]) -> Decomposition | None:
    """The parts of one point's rate; None where no sample could have a verdict.

    Args:
        rows: those of which a verdict could be had. closed_book: the same without documents, if asked.
    """
    if not rows:
        return None
    groups = {name: [row for row in rows if _part_of(row) == name] for name in PARTS}
    parts = {name: _part(members, len(rows)) for name, members in groups.items()}
    floor = _share(closed_book, "hallucinated") if closed_book else None
    return Decomposition(
        parts=parts,
        hallucinated=sum(part["contribution"] for part in parts.values()),
        floor=floor,
        change=None,
    )


def _part_of(row: SampleRow) -> str:
    if not row.answers:
        return "unanswerable"
    return "present" if row.gold_in_context else "absent"


def _part(members: Sequence[SampleRow], total: int) -> Part:
    return Part(
        n=len(members),
        share=len(members) / total,
        hallucinated=_share(members, "hallucinated"),
        abstained=_share(members, "abstained"),
        contribution=sum(row.verdict == "hallucinated" for row in members) / total,
    )


def _share(rows: Sequence[SampleRow], verdict: str) -> float | None:
    return sum(row.verdict == verdict for row in rows) / len(rows) if rows else None


def change_since(budget: int, before: Sequence[SampleRow], after: Sequence[SampleRow]) -> Change | None:
    """Why the answerable questions' rate is another one than at the shortest context.

    None where at either length there is no question with the evidence, or none without it: nobody knows then what
    those would have done.

    Args:
        budget: of `before`. before, after: samples of which a verdict could be had.
    """
    before, after = ([row for row in rows if row.answers] for rows in (before, after))
    columns = [column for rows in (before, after) for column in _columns(rows)]
    if not all(columns):
        return None
    clusters = {row.question_id: row.cluster for row in (*before, *after)}
    table = tabulate(columns, clusters)
    effects = _effects(table.means[None])[0]
    drawn = _effects(table.resampled())
    # A resample without a question of one part says nothing of it.
    drawn = drawn[np.isfinite(drawn).all(axis=1)]
    if not len(drawn):
        return None
    intervals = [percentile_interval(drawn[:, place]) for place in range(3)]
    recall, reading, absence = (
        Effect(effect=float(effect), low=low, high=high) for effect, (low, high) in zip(effects, intervals, strict=True)
    )
    return Change(since=budget, total=float(effects.sum()), by_recall=recall, by_reading=reading, by_absence=absence)


def _columns(rows: Sequence[SampleRow]) -> list[Mapping[str, float]]:
    """Recall, and the hallucinations with and without the evidence, by question."""
    return [
        {row.question_id: float(row.gold_in_context) for row in rows},
        {row.question_id: float(row.verdict == "hallucinated") for row in rows if row.gold_in_context},
        {row.question_id: float(row.verdict == "hallucinated") for row in rows if not row.gold_in_context},
    ]


def _effects(means: Floats) -> Floats:
    """Means (n, 6) of both lengths' columns -> effects (n, 3)."""
    recall, present, absent = (np.stack([means[:, place], means[:, place + 3]]) for place in range(3))
    return np.stack(
        [
            (recall[1] - recall[0]) * (present.mean(axis=0) - absent.mean(axis=0)),
            (present[1] - present[0]) * recall.mean(axis=0),
            (absent[1] - absent[0]) * (1 - recall.mean(axis=0)),
        ],
        axis=1,
    )
