"""The samples behind each point, as the report shows them: all kinds of verdict, capped, never silently."""

from collections.abc import Sequence
from dataclasses import dataclass

from evals.records import VERDICTS, SampleRow, Verdict

MAX_TEXT = 600
MAX_DOCUMENTS = 16

PointKey = tuple[str, str, str, str, int]  # model, dataset, condition, permission, budget


@dataclass(frozen=True, slots=True)
class SampleView:
    """One sample as text; the template escapes it."""

    row: SampleRow
    question: str
    answer: str
    documents: tuple[tuple[str, bool], ...]  # id, whether it supports the answer
    documents_left_out: int


@dataclass(frozen=True, slots=True)
class VerdictGroup:
    """Samples of one verdict: `total` of them, of which `shown`."""

    verdict: Verdict
    total: int
    shown: tuple[SampleView, ...]


def point_key(model: str, dataset: str, condition: str, permission: str, budget: int) -> PointKey:
    """Where every curve begins there is one point for all of them: that without documents."""
    return model, dataset, "closed" if budget == 0 and condition != "oracle" else condition, permission, budget


def by_point(rows: Sequence[SampleRow]) -> dict[PointKey, list[SampleRow]]:
    points: dict[PointKey, list[SampleRow]] = {}
    for row in rows:
        key = point_key(row.model, row.dataset, row.condition, row.permission, row.budget)
        points.setdefault(key, []).append(row)
    return points


def groups(rows: Sequence[SampleRow], cap: int) -> list[VerdictGroup]:
    """The first `cap` samples of each verdict, in the order in which they were given."""
    found = []
    for verdict in VERDICTS:
        members = [row for row in rows if row.verdict == verdict]
        if members:
            found.append(VerdictGroup(verdict, len(members), tuple(map(_view, members[:cap]))))
    return found


def _view(row: SampleRow) -> SampleView:
    gold = frozenset(row.gold_ids)
    # What supports the answer is shown wherever it stood in the context.
    kept = [(name, name in gold) for place, name in enumerate(row.doc_ids) if place < MAX_DOCUMENTS or name in gold]
    return SampleView(row, shorten(row.question), shorten(row.answer), tuple(kept), len(row.doc_ids) - len(kept))


def shorten(text: str) -> str:
    """At most MAX_TEXT characters, with the number of those left out."""
    if len(text) <= MAX_TEXT:
        return text
    return f"{text[:MAX_TEXT]} … ({len(text) - MAX_TEXT:,} more characters)"
