"""The records that flow through the harness. Plain data: no I/O, no HTTP, no statistics."""

from dataclasses import dataclass
from typing import Literal

Permission = Literal["must_answer", "may_abstain"]
Verdict = Literal["correct", "hallucinated", "abstained", "unscored"]
HallucinationKind = Literal["distractor", "fabricated"]

PERMISSIONS: tuple[Permission, ...] = ("must_answer", "may_abstain")
VERDICTS: tuple[Verdict, ...] = ("correct", "hallucinated", "abstained", "unscored")
# Where the token counts of documents come from.
SERVED, ESTIMATED = "served tokenizer", "estimate: bytes / 3"


@dataclass(frozen=True, slots=True)
class Document:
    """One passage of the corpus. `id` is unique within its dataset."""

    id: str
    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Question:
    """One question of a dataset.

    `answers` are the accepted targets; none of them means that no document of the corpus supports
    any answer. `gold_ids` are the documents that together support the answer. `cluster` groups
    questions whose errors are not independent (same entity, same article): intervals are clustered on it.
    `pair` is shared by an unanswerable question and its answerable twin: the same wording about another entity.
    """

    id: str
    text: str
    answers: tuple[str, ...]
    gold_ids: tuple[str, ...]
    kind: str
    cluster: str
    pair: str | None = None

    @property
    def answerable(self) -> bool:
        return bool(self.answers)


@dataclass(frozen=True, slots=True)
class Dataset:
    """A corpus and the questions about it. `digest` is a hash of both; `source` says where they come from."""

    name: str
    documents: tuple[Document, ...]
    questions: tuple[Question, ...]
    digest: str
    source: str


@dataclass(frozen=True, slots=True)
class RunNote:
    """What a reader must know of all samples of one model and dataset beside their figures.

    counting: SERVED or ESTIMATED; None where it was not noted. request_changes: what the endpoint did not take, and
    so was not sent as for others.
    """

    counting: str | None = None
    request_changes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRow:
    """One asked question at one budget: a row of the store, keyed by (model, dataset, permission, budget, question_id).

    Times are seconds on the client's monotonic clock, relative to `sent_s`'s own clock; derived latencies
    (`ttft_s`, `tpot_s`, `e2e_s`) are kept beside the raw stamps. Byte counts are the server's own, None where
    the endpoint gives none.
    """

    model: str
    kind: str
    dataset: str
    permission: Permission
    budget: int
    question_id: str
    question_kind: str
    cluster: str
    question: str
    answers: tuple[str, ...]
    gold_ids: tuple[str, ...]
    doc_ids: tuple[str, ...]
    gold_in_context: bool
    answer: str
    finish_reason: str | None
    error: str | None
    verdict: Verdict
    first_line_verdict: Verdict
    hallucination_kind: HallucinationKind | None
    matched: str | None
    prompt_tokens: int | None
    document_tokens: int
    cached_tokens: int | None
    completion_tokens: int | None
    sent_s: float
    token_times_s: tuple[float, ...]
    end_s: float
    ttft_s: float | None
    tpot_s: float | None
    e2e_s: float
    kv_bytes: int | None
    state_bytes: int | None
    peak_bytes: int | None
    attempts: int = 1
