"""One sample: documents into a prompt, the prompt to the endpoint, a graded row back."""

from collections.abc import Sequence
from dataclasses import dataclass

import aiohttp

from evals.client import Answer, ServedModel, ask
from evals.config import RunConfig
from evals.dialect import Dialect
from evals.packing import pack
from evals.prompts import build_messages
from evals.records import SERVED, Dataset, Document, Permission, Question, SampleRow
from evals.retrieval import Retriever
from evals.scoring.grade import Grade, grade
from evals.store import SampleKey
from evals.tokens import TokenCounter
from loadtest.latency import e2e_s, tpot_s, ttft_s
from loadtest.wire import Usage

UNSCORED = Grade("unscored", "unscored", None, None)


@dataclass(frozen=True, slots=True)
class RunContext:
    """Everything that the samples of one run share."""

    config: RunConfig
    dataset: Dataset
    served: ServedModel
    session: aiohttp.ClientSession
    counter: TokenCounter
    dialect: Dialect

    def key(self, permission: Permission, budget: int, question: Question) -> SampleKey:
        return SampleKey(self.config.model, self.dataset.name, permission, budget, question.id)


@dataclass(frozen=True, slots=True)
class Sampled:
    """A row, and the status by which the endpoint refused to answer; None where it did not."""

    row: SampleRow
    refused_status: int | None


async def nested_contexts(
    run: RunContext, retriever: Retriever, question: Question, budgets: Sequence[int]
) -> list[tuple[Document, ...]]:
    """The packed documents for each budget. Only as many documents are counted as the largest can hold."""
    if not budgets:
        return []
    ranked: list[Document] = []
    counts: dict[str, int] = {}
    room = budgets[-1]
    for document in retriever.top(question.text, len(run.dataset.documents)):
        if room <= 0:
            break
        counts[document.id] = await run.counter.count(document)
        ranked.append(document)
        room -= counts[document.id]
    return [pack(ranked, counts, budget) for budget in budgets]


async def ask_sample(
    run: RunContext, question: Question, permission: Permission, budget: int, documents: Sequence[Document]
) -> Sampled:
    """Ask and grade. An answer with an error, or to a prompt that was cut, has no verdict."""
    document_tokens = sum([await run.counter.count(document) for document in documents])
    answer = await ask(run.session, run.config, run.dialect, build_messages(permission, documents, question.text))
    cut = _cut(answer.usage, document_tokens) if run.counter.source == SERVED else None
    error = answer.error or cut
    verdict = UNSCORED if error is not None else grade(question, answer.text, documents, permission=permission)
    gold_ids, doc_ids = question.gold_ids, tuple(document.id for document in documents)
    row = _row(
        run.key(permission, budget, question),
        question,
        answer,
        verdict,
        permission=permission,
        kind=run.served.kind,
        doc_ids=doc_ids,
        # Of a prompt that was cut nobody knows which documents the model saw.
        gold_in_context=cut is None and bool(gold_ids) and set(gold_ids) <= set(doc_ids),
        document_tokens=document_tokens,
        error=error,
    )
    return Sampled(row, answer.refused_status)


def _cut(usage: Usage | None, document_tokens: int) -> str | None:
    """Why the documents cannot all have reached the model; None where they can."""
    if usage is None or usage.prompt_tokens >= document_tokens:
        return None
    return (
        f"the server cut the prompt: it counts {usage.prompt_tokens:,} tokens in it, "
        f"where the documents alone have {document_tokens:,}"
    )


def _row(
    key: SampleKey,
    question: Question,
    answer: Answer,
    verdict: Grade,
    *,
    permission: Permission,
    kind: str,
    doc_ids: tuple[str, ...],
    gold_in_context: bool,
    document_tokens: int,
    error: str | None,
) -> SampleRow:
    usage = answer.usage
    memory = (usage.fathom if usage else None) or {}
    num_tokens = usage.completion_tokens if usage else None
    return SampleRow(
        model=key.model,
        kind=kind,
        dataset=key.dataset,
        permission=permission,
        budget=key.budget,
        question_id=question.id,
        question_kind=question.kind,
        cluster=question.cluster,
        question=question.text,
        answers=question.answers,
        gold_ids=question.gold_ids,
        doc_ids=doc_ids,
        gold_in_context=gold_in_context,
        answer=answer.text,
        finish_reason=answer.finish_reason,
        error=error,
        verdict=verdict.verdict,
        first_line_verdict=verdict.first_line_verdict,
        hallucination_kind=verdict.hallucination_kind,
        matched=verdict.matched,
        prompt_tokens=usage.prompt_tokens if usage else None,
        document_tokens=document_tokens,
        cached_tokens=usage.cached_tokens if usage else None,
        completion_tokens=num_tokens,
        sent_s=answer.times.sent_s,
        token_times_s=answer.times.token_times_s,
        end_s=answer.times.end_s,
        ttft_s=ttft_s(answer.times),
        tpot_s=tpot_s(answer.times, num_tokens),
        e2e_s=e2e_s(answer.times),
        kv_bytes=memory.get("kv_bytes"),
        state_bytes=memory.get("state_bytes"),
        peak_bytes=memory.get("peak_bytes"),
        attempts=answer.attempts,
    )
