"""What a judge is shown of a stored sample, and what it says of it. Plain data and the choice of samples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from evals.records import Document, Permission, SampleRow, Verdict
from evals.scoring.normalize import words

Stop = Literal["refused", "unanswered"]


@dataclass(frozen=True, slots=True)
class Case:
    """One answer to judge. No `answers`: no document has one, so that whatever is claimed is wrong."""

    question: str
    answers: tuple[str, ...]
    answer: str
    permission: Permission
    documents: tuple[Document, ...] = ()


@dataclass(frozen=True, slots=True)
class Opinion:
    """What a judge says; see evals.records.Judgement. stop: why others need not be asked, where many end alike."""

    verdict: Verdict
    score: float | None = None
    detail: str = ""
    error: str | None = None
    stop: Stop | None = None


class Judge(Protocol):
    """`name` has all that decides its opinions; `reads_documents`: it judges by them, else by the accepted answers."""

    name: str
    reads_documents: bool

    async def opinion(self, case: Case) -> Opinion: ...


def case_of(row: SampleRow, documents: Mapping[str, Document], *, with_documents: bool) -> Case | None:
    """None where there is nothing to judge: no answer, nobody who knows the right one, or documents that the store
    does not have."""
    if row.error is not None or not words(row.answer):
        return None
    found: Sequence[Document] = ()
    if with_documents:
        found = [documents[name] for name in row.doc_ids if name in documents]
        if not found or len(found) < len(row.doc_ids):
            return None
    elif row.lost == "ungraded" and not row.answers:
        return None
    return Case(row.question, row.answers, row.answer, row.permission, tuple(found))
