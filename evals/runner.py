"""The flow of one run: retrieve, pack, prompt, ask, grade, store. Resumable at any sample."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import aiohttp

from evals.client import Answer, ServedModel, ask, fetch_model, open_session
from evals.config import ConfigError, RunConfig
from evals.packing import pack
from evals.prompts import build_messages
from evals.records import Dataset, Document, Permission, Question, SampleRow
from evals.retrieval import Retriever
from evals.scoring.grade import Grade, grade
from evals.store import SampleKey, Store
from evals.tokens import TokenCounter
from loadtest.latency import e2e_s, tpot_s, ttft_s

# Room in the context for the system message, the question and the chat template, beside documents and answer.
PROMPT_FRAME_TOKENS = 256

Progress = Callable[[int, int], None]  # samples done, of how many


@dataclass(frozen=True, slots=True)
class RunResult:
    """How one run went. `asked` leaves out what the store held already; `failed` are rows with an error."""

    total: int
    asked: int
    failed: int
    kind: str
    counting: str


@dataclass(frozen=True, slots=True)
class _Context:
    """Everything that the samples of one run share."""

    config: RunConfig
    dataset: Dataset
    served: ServedModel
    session: aiohttp.ClientSession
    counter: TokenCounter
    retriever: Retriever


def plan(config: RunConfig, dataset: Dataset) -> list[tuple[Question, Permission]]:
    """What is asked at all budgets, in order.

    Raises:
        ConfigError: more questions are wanted than there are.
    """
    if config.num_questions > len(dataset.questions):
        raise ConfigError(
            f"--n {config.num_questions} is more than the {len(dataset.questions)} questions of {dataset.name}"
        )
    questions = dataset.questions[: config.num_questions]
    return [(question, permission) for permission in config.permissions for question in questions]


async def run_eval(config: RunConfig, dataset: Dataset, progress: Progress = lambda *_: None) -> RunResult:
    """Ask everything that the store does not hold yet.

    Raises:
        ConfigError: an option does not fit the endpoint, the dataset or the store.
    """
    series = plan(config, dataset)
    total = len(series) * len(config.budgets)
    with Store(config.out) as store:
        async with open_session(config) as session:
            served = await fetch_model(session, config)
            _check_context(config, served)
            counter = TokenCounter(session, config)
            await counter.start()
            fingerprint = config.fingerprint(dataset.digest, Retriever.name, counter.source)
            store.check_run(config.model, dataset.name, fingerprint)
            retriever = await asyncio.to_thread(Retriever, dataset.documents)
            context = _Context(config, dataset, served, session, counter, retriever)
            asked, failed = await _ask_all(context, store, series, progress)
    return RunResult(total, asked, failed, served.kind, counter.source)


def _check_context(config: RunConfig, served: ServedModel) -> None:
    needed = config.budgets[-1] + config.max_tokens + PROMPT_FRAME_TOKENS
    if served.max_context_tokens is not None and needed > served.max_context_tokens:
        raise ConfigError(
            f"--budgets: {config.budgets[-1]} tokens of documents, with question and answer about {needed} tokens, "
            f"do not fit into the {served.max_context_tokens} tokens of {config.model}"
        )


async def _ask_all(
    context: _Context, store: Store, series: Sequence[tuple[Question, Permission]], progress: Progress
) -> tuple[int, int]:
    """Several questions at once, the budgets of each one after the other; returns how many asked and failed."""
    done = store.done_keys()
    total = len(series) * len(context.config.budgets)
    waiting = iter(series)
    finished, asked, failed = 0, 0, 0

    async def worker() -> None:
        nonlocal finished, asked, failed
        for question, permission in waiting:
            missing = [
                budget for budget in context.config.budgets if _key(context, permission, budget, question) not in done
            ]
            finished += len(context.config.budgets) - len(missing)
            progress(finished, total)
            contexts = await _nested_contexts(context, question, missing)
            # Ascending, so that a server with a prefix cache finds the shorter context in it.
            for budget, documents in zip(missing, contexts, strict=True):
                row = await _sample(context, question, permission, budget, documents)
                store.put(row)
                finished, asked, failed = finished + 1, asked + 1, failed + (row.error is not None)
                progress(finished, total)

    async with asyncio.TaskGroup() as workers:
        for _ in range(min(context.config.concurrency, len(series))):
            workers.create_task(worker())
    return asked, failed


def _key(context: _Context, permission: Permission, budget: int, question: Question) -> SampleKey:
    return SampleKey(context.config.model, context.dataset.name, permission, budget, question.id)


async def _nested_contexts(context: _Context, question: Question, budgets: Sequence[int]) -> list[tuple[Document, ...]]:
    """The packed documents for each budget. Only as many documents are counted as the largest can hold."""
    if not budgets:
        return []
    ranked: list[Document] = []
    counts: dict[str, int] = {}
    room = budgets[-1]
    for document in context.retriever.top(question.text, len(context.dataset.documents)):
        if room <= 0:
            break
        counts[document.id] = await context.counter.count(document)
        ranked.append(document)
        room -= counts[document.id]
    return [pack(ranked, counts, budget) for budget in budgets]


async def _sample(
    context: _Context, question: Question, permission: Permission, budget: int, documents: Sequence[Document]
) -> SampleRow:
    messages = build_messages(permission, documents, question.text)
    answer = await ask(context.session, context.config, messages)
    tokens = sum([await context.counter.count(document) for document in documents])
    verdict = (
        Grade("unscored", "unscored", None, None)
        if answer.error is not None
        else grade(question, answer.text, documents, permission=permission)
    )
    return _row(
        context,
        question,
        answer,
        verdict,
        permission=permission,
        budget=budget,
        doc_ids=tuple(document.id for document in documents),
        document_tokens=tokens,
    )


def _row(
    context: _Context,
    question: Question,
    answer: Answer,
    verdict: Grade,
    *,
    permission: Permission,
    budget: int,
    doc_ids: tuple[str, ...],
    document_tokens: int,
) -> SampleRow:
    usage = answer.usage
    memory = (usage.fathom if usage else None) or {}
    num_tokens = usage.completion_tokens if usage else None
    return SampleRow(
        model=context.config.model,
        kind=context.served.kind,
        dataset=context.dataset.name,
        permission=permission,
        budget=budget,
        question_id=question.id,
        question_kind=question.kind,
        cluster=question.cluster,
        question=question.text,
        answers=question.answers,
        gold_ids=question.gold_ids,
        doc_ids=doc_ids,
        gold_in_context=bool(question.gold_ids) and set(question.gold_ids) <= set(doc_ids),
        answer=answer.text,
        finish_reason=answer.finish_reason,
        error=answer.error,
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
