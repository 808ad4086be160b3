"""Further answers to the prompts of a run's samples, drawn at a temperature: they tell how sure the model is.

They are asked once all samples are there, so that no sample's latency is measured beside them. Each prompt is that of
the stored sample, document by document. What is there is not asked again; draws that failed are.
"""

import hashlib
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from evals.client import Answer, Asking
from evals.config import ConfigError, RunConfig
from evals.contexts import Asked
from evals.keys import key_of
from evals.prompts import build_messages
from evals.records import Document, Draw, Question, SampleRow, Verdict
from evals.retry import MAX_FIRST_REFUSALS, is_hopeless
from evals.sample import RunContext
from evals.scoring.grade import grade
from evals.store import Store
from evals.workers import run_workers


@dataclass(slots=True)
class Draws:
    """How the draws of one run went. `asked` leaves out what the store held; unknown: samples whose documents nobody
    kept, so that their prompts cannot be repeated."""

    asked: int = 0
    failed: int = 0
    unknown: int = 0
    first_error: str | None = None


@dataclass(frozen=True, slots=True)
class _Prompt:
    """What one sample was asked with, and the numbers of the draws that it lacks."""

    row: SampleRow
    question: Question
    documents: tuple[Document, ...]
    missing: tuple[int, ...]


def check_temperature(config: RunConfig, dataset: str, store: Store) -> None:
    """Raises:
    ConfigError: the store holds draws on this dataset at another temperature; together they would be neither's.
    """
    if not config.draws:
        return
    others = (draw for draw in store.draws() if draw.dataset == dataset and draw.error is None)
    other = next((draw for draw in others if draw.temperature != config.temperature), None)
    if other is not None:
        raise ConfigError(
            f"--out {config.out} holds draws of {other.model} on {dataset} at --temperature {other.temperature:g}, "
            f"now it is {config.temperature:g}. Use another directory."
        )


async def ask_draws(
    run: RunContext,
    store: Store,
    series: Sequence[Asked],
    *,
    progress: Callable[[int, int], None],
    note_changes: Callable[[], None],
) -> Draws:
    """Ask what the store lacks of the draws of these questions' samples, wherever a sample was answered.

    Args:
        progress: is told how many draws are there, of how many.
        note_changes: is called before each draw is stored.
    Raises:
        RunStoppedError: asking cannot go on; what was answered is stored.
    """
    config, result = run.config, Draws()
    prompts = _prompts(run, store, series, result)
    total = len(prompts) * config.draws
    finished = total - sum(len(prompt.missing) for prompt in prompts)
    first_refusals: list[int | None] = []
    waiting = _requests(run, prompts)

    async def worker() -> None:
        nonlocal finished
        for prompt, number, asking in waiting:
            answer = await run.answerer.ask(asking)
            assert answer is not None, "only of recorded answers there may be none, and of those no draws are asked"
            note_changes()
            store.put_draw(_draw(run, prompt, number, answer))
            finished += 1
            result.asked += 1
            progress(finished, total)
            if answer.error is not None:
                result.failed += 1
                result.first_error = result.first_error or answer.error
            if len(first_refusals) < MAX_FIRST_REFUSALS:
                first_refusals.append(answer.refused_status)
            if is_hopeless(first_refusals):
                raise ConfigError(
                    f"--draws: {config.endpoint} refuses the first {MAX_FIRST_REFUSALS} draws of {config.model} alike, "
                    f"so no more are asked: {result.first_error}"
                )

    if finished < total:
        progress(finished, total)
        await run_workers(worker, config.concurrency)
    return result


def seed_of(row: SampleRow, number: int) -> int:
    """From 0 to 2^31 - 1, which every server takes; the same for each model."""
    name = f"{row.dataset} {row.condition} {row.permission} {row.budget} {row.question_id} {number}"
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]) >> 1


def _prompts(run: RunContext, store: Store, series: Sequence[Asked], result: Draws) -> list[_Prompt]:
    """Those of all answered samples, in the order in which they were asked: a shorter context before a longer."""
    name = run.dataset.name
    done = {(key_of(draw), draw.draw) for draw in store.draws() if draw.error is None}
    rows = {key_of(row): row for row in store.rows() if row.error is None}
    known = {document.id: document for document in run.dataset.documents} | store.documents(name)
    prompts = []
    keys = [(each.question, run.key(each, budget)) for each in series for budget in each.budgets]
    for question, key in keys:
        row = rows.get(key)
        if row is None:
            continue
        # A store of an earlier format does not hold the documents that were altered for it.
        if not known.keys() >= set(row.doc_ids):
            result.unknown += 1
            continue
        missing = tuple(number for number in range(1, run.config.draws + 1) if (key, number) not in done)
        prompts.append(_Prompt(row, question, tuple(known[each] for each in row.doc_ids), missing))
    return prompts


def _requests(run: RunContext, prompts: Sequence[_Prompt]) -> Iterator[tuple[_Prompt, int, Asking]]:
    """One after the other; those of one prompt together, so that a prefix cache pays."""
    for prompt in prompts:
        if not prompt.missing:
            continue
        row = prompt.row
        asking = Asking(
            dataset=row.dataset,
            condition=row.condition,
            permission=row.permission,
            budget=row.budget,
            question_id=row.question_id,
            question=row.question,
            messages=build_messages(row.permission, prompt.documents, row.question),
            # Nobody's latency: the draws of a prompt may find what the first of them has left.
            salt=uuid.uuid4().hex if run.config.cache == "cold" else None,
        )
        for number in prompt.missing:
            yield prompt, number, replace(asking, seed=seed_of(row, number))


def _draw(run: RunContext, prompt: _Prompt, number: int, answer: Answer) -> Draw:
    row = prompt.row
    return Draw(
        model=row.model,
        dataset=row.dataset,
        condition=row.condition,
        permission=row.permission,
        budget=row.budget,
        question_id=row.question_id,
        draw=number,
        temperature=run.config.temperature,
        answer=answer.text,
        finish_reason=answer.finish_reason,
        error=answer.error,
        verdict=_verdict(prompt, answer),
        completion_tokens=answer.usage.completion_tokens if answer.usage else None,
        logprob=answer.logprob,
        logprob_tokens=answer.logprob_tokens,
    )


def _verdict(prompt: _Prompt, answer: Answer) -> Verdict:
    if answer.error is not None:
        return "unscored"
    row = prompt.row
    graded = grade(prompt.question, answer.text, prompt.documents, permission=row.permission, planted=row.planted)
    return graded.verdict
