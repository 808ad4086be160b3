"""What tells one sample of a store from every other, and whatever else is kept of it: draws, judgements."""

from collections.abc import Iterable
from typing import NamedTuple, TypeVar

from evals.records import Draw, Judgement, SampleRow

Record = TypeVar("Record", SampleRow, Draw, Judgement)


class SampleKey(NamedTuple):
    """The first columns of each table's key."""

    model: str
    dataset: str
    condition: str
    permission: str
    budget: int
    question_id: str


def key_of(record: SampleRow | Draw | Judgement) -> SampleKey:
    names = record.model, record.dataset, record.condition, record.permission
    return SampleKey(*names, record.budget, record.question_id)


def by_sample(records: Iterable[Record]) -> dict[SampleKey, list[Record]]:
    """Records by the sample that they are of, in their order."""
    found: dict[SampleKey, list[Record]] = {}
    for record in records:
        found.setdefault(key_of(record), []).append(record)
    return found
