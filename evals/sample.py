"""One sample: documents into a prompt, the prompt to the endpoint, a graded row back."""

import uuid
from dataclasses import dataclass, replace

import aiohttp

from evals.client import Answer, Answerer, Asking, ServedModel
from evals.concurrency import Concurrency
from evals.config import RunConfig
from evals.contexts import Asked, Context, ContextBuilder
from evals.dialect import Dialect
from evals.energy import EnergyLedger
from evals.keys import SampleKey
from evals.prompts import build_messages
from evals.reconcile import Reconciler
from evals.records import Dataset, Lost, SampleRow
from evals.scoring.grade import Grade, grade
from evals.scoring.normalize import words
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
    answerer: Answerer
    counter: TokenCounter
    dialect: Dialect
    contexts: ContextBuilder
    reconciler: Reconciler
    energy: EnergyLedger
    session: aiohttp.ClientSession
    concurrency: Concurrency

    def key(self, asked: Asked, budget: int) -> SampleKey:
        names = self.config.model, self.dataset.name, asked.condition, asked.permission
        return SampleKey(*names, budget, asked.question.id)


@dataclass(frozen=True, slots=True)
class Sampled:
    """A row, and the status by which the endpoint refused to answer; None where it did not.

    nobody: there was no connection, or it broke.
    """

    row: SampleRow
    refused_status: int | None
    nobody: bool = False


async def ask_sample(run: RunContext, asked: Asked, budget: int, context: Context) -> Sampled | None:
    """Ask and grade. An answer with an error, or to a prompt that was cut, has no verdict.

    None where answers are recorded ones, and none of this sample is.
    """
    question = asked.question
    asking = Asking(
        dataset=run.dataset.name,
        condition=asked.condition,
        permission=asked.permission,
        budget=budget,
        question_id=question.id,
        question=question.text,
        messages=build_messages(asked.permission, context.documents, question.text),
        salt=uuid.uuid4().hex if run.config.cache == "cold" else None,
    )
    num_characters = sum(len(message["content"]) for message in asking.messages)
    lengths = await run.reconciler.measure(asked, budget, context, num_characters)
    with run.energy.watch() as spent:
        answer = await run.answerer.ask(asking)
    if answer is None:
        return None
    cut = run.reconciler.cut(asked, lengths, answer.usage)
    error = answer.error or cut or (_reused(answer.usage) if asking.salt else None)
    verdict = UNSCORED
    if error is None:
        verdict = grade(question, answer.text, context.documents, permission=asked.permission, planted=context.planted)
    # Of a prompt that was cut nobody knows which documents the model saw.
    seen = cut is None and question.is_supported_by({document.id for document in context.documents})
    row = _row(run, asked, context, answer, verdict, budget=budget, gold_in_context=seen, error=error)
    lost = "truncated" if cut and not answer.error else _lost(row)
    # Of an answer that was asked for twice, the pause between would be counted too.
    energy_j = spent.joules if answer.attempts == 1 else None
    row = replace(row, lost=lost, expected_tokens=lengths.expected, energy_j=energy_j)
    return Sampled(row, answer.refused_status, answer.nobody)


def _lost(row: SampleRow) -> Lost | None:
    """Why a sample has no verdict; None where it has one."""
    if row.error is not None:
        return "failed"
    if row.verdict != "unscored":
        return None
    return "ungraded" if words(row.answer) else "empty"


def _reused(usage: Usage | None) -> str | None:
    """Why the cache was not cold; None where it was, or nobody says."""
    if usage is None or not usage.cached_tokens:
        return None
    return f"--cache cold: the server reused {usage.cached_tokens:,} tokens of an earlier prompt all the same"


def _row(
    run: RunContext,
    asked: Asked,
    context: Context,
    answer: Answer,
    verdict: Grade,
    *,
    budget: int,
    gold_in_context: bool,
    error: str | None,
) -> SampleRow:
    question = asked.question
    usage, times = answer.usage, answer.times
    memory = (usage.fathom if usage else None) or {}
    num_tokens = usage.completion_tokens if usage else None
    return SampleRow(
        model=run.config.model,
        kind=run.served.kind,
        dataset=run.dataset.name,
        condition=asked.condition,
        permission=asked.permission,
        budget=budget,
        question_id=question.id,
        question_kind=question.kind,
        cluster=question.cluster,
        question=question.text,
        answers=question.answers,
        gold_ids=question.gold_ids,
        doc_ids=tuple(document.id for document in context.documents),
        gold_in_context=gold_in_context,
        answer=answer.text,
        finish_reason=answer.finish_reason,
        error=error,
        verdict=verdict.verdict,
        first_line_verdict=verdict.first_line_verdict,
        hallucination_kind=verdict.hallucination_kind,
        matched=verdict.matched,
        prompt_tokens=usage.prompt_tokens if usage else None,
        document_tokens=context.tokens,
        cached_tokens=usage.cached_tokens if usage else None,
        completion_tokens=num_tokens,
        sent_s=times.sent_s if times else None,
        token_times_s=times.token_times_s if times else (),
        end_s=times.end_s if times else None,
        ttft_s=ttft_s(times) if times else None,
        tpot_s=tpot_s(times, num_tokens) if times else None,
        e2e_s=e2e_s(times) if times else None,
        kv_bytes=memory.get("kv_bytes"),
        state_bytes=memory.get("state_bytes"),
        peak_bytes=memory.get("peak_bytes"),
        attempts=answer.attempts,
        depth=context.depth,
        num_leaks=context.num_leaks,
        num_duplicates=context.num_duplicates,
        planted=context.planted,
        logprob=answer.logprob,
        logprob_tokens=answer.logprob_tokens,
    )
