"""The records that flow through the harness. Plain data: no I/O, no HTTP, no statistics."""

from collections.abc import Container
from dataclasses import dataclass
from typing import Literal

Permission = Literal["must_answer", "may_abstain"]
Verdict = Literal["correct", "hallucinated", "abstained", "unscored"]
HallucinationKind = Literal["conflict", "distractor", "fabricated"]
Condition = Literal["closed", "oracle", "natural", "gold+distractors", "no-gold", "conflict"]
Order = Literal["rank", "reversed", "random"]
Unit = Literal["tokens", "documents"]
CacheState = Literal["warm", "cold"]
Energy = Literal["auto", "local", "off"]
Lost = Literal["failed", "truncated", "empty", "ungraded"]

PERMISSIONS: tuple[Permission, ...] = ("must_answer", "may_abstain")
CONDITIONS: tuple[Condition, ...] = ("closed", "oracle", "natural", "gold+distractors", "no-gold", "conflict")
# Whose contexts have no length of their own: they are asked once, at a budget of 0.
WITHOUT_LENGTH: tuple[Condition, ...] = ("closed", "oracle")
ORDERS: tuple[Order, ...] = ("rank", "reversed", "random")
UNITS: tuple[Unit, ...] = ("tokens", "documents")
CACHE_STATES: tuple[CacheState, ...] = ("warm", "cold")
ENERGIES: tuple[Energy, ...] = ("auto", "local", "off")
LOST: tuple[Lost, ...] = ("failed", "truncated", "empty", "ungraded")
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
    `topic_ids` are the documents that it was written about, whether they answer it or not. `any_gold`: any one of the
    gold documents is enough. `long_form`: the answers are so long that words do not tell whether another is right.
    `known`: somebody knows what is right; else `answers` are empty, which then says nothing.
    """

    id: str
    text: str
    answers: tuple[str, ...]
    gold_ids: tuple[str, ...]
    kind: str
    cluster: str
    pair: str | None = None
    topic_ids: tuple[str, ...] = ()
    any_gold: bool = False
    long_form: bool = False
    known: bool = True

    @property
    def answerable(self) -> bool:
        return bool(self.answers)

    def is_supported_by(self, doc_ids: Container[str]) -> bool:
        """Whether what supports the answer is among these documents."""
        found = [gold in doc_ids for gold in self.gold_ids]
        return any(found) if self.any_gold else bool(found) and all(found)


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
    so was not sent as for others. cache: whether the server was asked to recompute every prompt. adapted_concurrency:
    requests under way at once on average, where their number was adapted to the endpoint; None where it was fixed.
    """

    counting: str | None = None
    request_changes: tuple[str, ...] = ()
    cache: CacheState | None = None
    adapted_concurrency: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRow:
    """One asked question at one budget: a row of the store, keyed by model, dataset, condition, permission, budget and
    question_id.

    budget: most tokens, or documents, of the context; 0 where the condition has no length. depth: where the first
    document that supports the answer stood, 0 = first of all, 1 = last. num_leaks: other documents with an answer in
    their words. num_duplicates: documents that say the same as one before. planted: what an altered document says in
    place of the answer.

    lost: why there is no verdict: the request failed, the server cut the prompt, the answer has not a single word, or
    words do not tell whether it is right. expected_tokens: of the whole prompt, as the client counts them with the
    served tokenizer. logprob: the sum of the answer's log probabilities, over `logprob_tokens` of them. energy_j: what
    the GPU took for this answer, as far as it can be told.

    Times are seconds on the client's monotonic clock, relative to `sent_s`'s own clock; derived latencies
    (`ttft_s`, `tpot_s`, `e2e_s`) are kept beside the raw stamps. All are None of an answer that was recorded before
    and not asked for. Byte counts are the server's own, None where
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
    sent_s: float | None
    token_times_s: tuple[float, ...]
    end_s: float | None
    ttft_s: float | None
    tpot_s: float | None
    e2e_s: float | None
    kv_bytes: int | None
    state_bytes: int | None
    peak_bytes: int | None
    attempts: int = 1
    condition: Condition = "natural"
    depth: float | None = None
    num_leaks: int = 0
    num_duplicates: int = 0
    planted: str | None = None
    lost: Lost | None = None
    expected_tokens: int | None = None
    logprob: float | None = None
    logprob_tokens: int | None = None
    energy_j: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """One more answer to the prompt of a sample, drawn at a temperature; keyed by the sample and `draw`, from 1 on."""

    model: str
    dataset: str
    condition: Condition
    permission: Permission
    budget: int
    question_id: str
    draw: int
    temperature: float
    answer: str
    finish_reason: str | None
    error: str | None
    verdict: Verdict
    completion_tokens: int | None
    logprob: float | None
    logprob_tokens: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What another grader says of a stored sample; keyed by the sample and the grader's name with its settings.

    score: the grader's own figure (of claims that are supported, say), from 0 to 1. detail: its words, or JSON, for
    whoever doubts it. error: why it gave no verdict; such a sample is judged again.
    """

    model: str
    dataset: str
    condition: Condition
    permission: Permission
    budget: int
    question_id: str
    grader: str
    verdict: Verdict
    score: float | None
    detail: str
    error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scrape:
    """One figure that the server gave at /metrics while samples were asked; keyed by all but its value.

    at_s: on the clock of the samples' `sent_s`. name: as evals/scrape.py has it, whatever the server calls it.
    """

    model: str
    dataset: str
    at_s: float
    name: str
    value: float
