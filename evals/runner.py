"""The flow of a run: check every model, then ask each. It can be stopped at any sample, and goes on there."""

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evals.client import fetch_model, open_session
from evals.concurrency import Concurrency
from evals.conditions import corpus_of
from evals.config import ConfigError, RunConfig
from evals.contexts import Asked, Context, ContextBuilder
from evals.dialect import Dialect
from evals.fingerprint import Fingerprint, take_fingerprint
from evals.manifest import Origin, begin_session, end_session, with_session
from evals.prompts import SYSTEM_PROMPTS, build_messages
from evals.records import ESTIMATED, Dataset
from evals.retrieval import open_retriever
from evals.retrieval.ranking import Retriever
from evals.sample import RunContext, ask_sample
from evals.store import Store
from evals.tally import RunResult, Tally
from evals.tokens import TokenCounter
from evals.workers import run_workers

Progress = Callable[[str, int, int], None]  # the model, samples done, of how many
Say = Callable[[str], None]


def plan(config: RunConfig, dataset: Dataset) -> list[Asked]:
    """What is asked, in order: one question after the other, under all its conditions.

    Raises:
        ConfigError: more questions are wanted than there are, or documents of a dataset that has none.
    """
    if config.num_questions > len(dataset.questions):
        raise ConfigError(
            f"--n {config.num_questions} is more than the {len(dataset.questions)} questions of {dataset.name}"
        )
    if not dataset.documents and config.asked_conditions != ("closed",):
        raise ConfigError(f"--budgets: {dataset.name} has questions without documents; ask it with --budgets 0")
    return [
        Asked(question, number, permission, condition, config.budgets_of(condition))
        for permission in config.permissions
        for number, question in enumerate(dataset.questions[: config.num_questions])
        if config.has_part_in(number)
        for condition in config.asked_conditions
    ]


async def run_eval(config: RunConfig, dataset: Dataset) -> RunResult:
    """`run_evals` for one model."""
    [result] = await run_evals([config], dataset)
    return result


async def run_evals(
    configs: Sequence[RunConfig],
    dataset: Dataset,
    progress: Progress = lambda *_: None,
    say: Say = lambda _: None,
    *,
    origin: Origin | None = None,
    earlier: Mapping[str, str] | None = None,
) -> list[RunResult]:
    """Ask each model in turn everything that the store does not hold yet; all have the same --out.

    Args:
        origin: of the dataset, to be noted: without it the run cannot be repeated from its store.
        earlier: the settings of a run that this one must be like, its server aside.
    Raises:
        ConfigError: an option does not fit an endpoint, the dataset or the store; nothing was asked.
        RunStoppedError: asking cannot go on; what was answered is stored.
    """
    for config in configs:
        plan(config, dataset)
    async with contextlib.AsyncExitStack() as stack:
        store = stack.enter_context(Store(configs[0].out))
        retriever = await asyncio.to_thread(_open_retriever, configs[0], dataset)
        corpus = corpus_of(dataset, configs[0].seed)
        runs = []
        for config in configs:
            session = await stack.enter_async_context(open_session(config))
            served = await fetch_model(session, config)
            counter = TokenCounter(session, config)
            await counter.start()
            contexts = ContextBuilder(config, counter, retriever, corpus)
            concurrency = Concurrency(config.concurrency, adaptive=config.adaptive)
            run = RunContext(config, dataset, served, session, counter, Dialect(), contexts, concurrency)
            await _check_context(run)
            runs.append(run)
        name = "none" if retriever is None else retriever.name
        for run in runs:
            fingerprint = _fingerprint(run, name)
            _check_earlier(fingerprint, earlier or {})
            store.check_run(run.config.model, dataset.name, fingerprint)
            if run.counter.source == ESTIMATED:
                say(f"{run.config.model}: the endpoint counts no tokens; documents are counted by an {ESTIMATED}")
        return [await _ask_noting(run, store, _session(run, origin, name), progress=progress, say=say) for run in runs]


def _open_retriever(config: RunConfig, dataset: Dataset) -> Retriever | None:
    if not dataset.documents:
        return None
    return open_retriever(
        config.retriever,
        dataset.documents,
        model=config.retriever_model,
        seed=config.seed,
        cache=config.index_cache,
    )


async def _check_context(run: RunContext) -> None:
    """Raises:
    ConfigError: the longest prompt and its answer do not fit into the model's context.
    """
    config, limit = run.config, run.served.max_context_tokens
    if limit is None:
        return
    permission = max(config.permissions, key=lambda name: len(SYSTEM_PROMPTS[name]))
    question = max((asked.question.text for asked in plan(config, run.dataset)), key=len)
    frame = await run.counter.count_chat(build_messages(permission, (), question))
    # Of documents nobody knows the tokens yet: what does not fit then, the server refuses.
    needed = (config.budgets[-1] if config.unit == "tokens" else 0) + frame + config.max_tokens
    if needed > limit:
        option = "--max-tokens" if config.max_tokens > config.budgets[-1] else "--budgets"
        raise ConfigError(
            f"{option}: {config.budgets[-1]} tokens of documents, {frame} of instruction and question and "
            f"{config.max_tokens} of answer are {needed}; "
            f"they do not fit into the {limit} tokens of {config.model}"
        )


def _fingerprint(run: RunContext, retriever: str) -> Fingerprint:
    return take_fingerprint(run.config, run.dataset, run.served, retriever=retriever, counting=run.counter.source)


def _check_earlier(fingerprint: Fingerprint, earlier: Mapping[str, str]) -> None:
    """Raises:
    ConfigError: what was asked then cannot be asked now.
    """
    differences = [
        f"{name} was {earlier[name]}, now it is {value}"
        for name, value in fingerprint.shared.items()
        if earlier.get(name, value) != value
    ]
    if differences:
        raise ConfigError(f"the run cannot be repeated as it was: {'; '.join(differences)}")


def _session(run: RunContext, origin: Origin | None, retriever: str) -> dict[str, Any]:
    counting = run.counter.source
    return begin_session(run.config, run.dataset, run.served, origin=origin, retriever=retriever, counting=counting)


async def _ask_noting(
    run: RunContext, store: Store, session: Mapping[str, Any], *, progress: Progress, say: Say
) -> RunResult:
    """Ask everything, with what is noted of the session before it and after it, however it ends."""
    key = run.config.model, run.dataset.name
    earlier = store.manifests().get(key)
    tally = Tally()
    store.note_manifest(*key, with_session(earlier, session))

    def note_end() -> None:
        ended = end_session(session, run.concurrency, asked=tally.asked, failed=tally.failed)
        store.note_manifest(*key, with_session(earlier, ended))

    try:
        await _ask_all(run, store, tally, progress=progress, say=say)
    except BaseException:
        with contextlib.suppress(ConfigError):  # what ended the run is the one to tell
            note_end()
        raise
    note_end()
    return RunResult(
        total=tally.total,
        asked=tally.asked,
        failed=tally.failed,
        first_error=tally.first_error,
        kind=run.served.kind,
        counting=run.counter.source,
        left_out=tally.left_out,
    )


async def _ask_all(run: RunContext, store: Store, tally: Tally, *, progress: Progress, say: Say) -> None:
    """Several questions at once, the budgets of each one after the other."""
    config = run.config
    series = plan(config, run.dataset)
    tally.total = sum(len(asked.budgets) for asked in series)
    asking = _Asking(run, store, tally, progress, say)
    waiting = iter(series)

    async def worker() -> None:
        built: _Built | None = None
        while True:
            async with run.concurrency.question():
                built = built or await asking.build(next(waiting, None))
                if built is None:
                    return
                # The next contexts while these are waited for: what they cost is then nobody's time.
                async with asyncio.TaskGroup() as both:
                    coming = both.create_task(asking.build(next(waiting, None)))
                    await asking.ask_series(built)
                built = coming.result()

    await run_workers(worker, min(config.concurrency, len(series)))
    if tally.left_out:
        say(f"{config.model}: {tally.left_out} samples are left out: no such context, or none that small")


@dataclass(frozen=True, slots=True)
class _Built:
    """Whatever the store lacks of one question."""

    asked: Asked
    missing: tuple[int, ...]
    contexts: tuple[Context | None, ...]


class _Asking:
    """What the workers of one run have in common."""

    def __init__(self, run: RunContext, store: Store, tally: Tally, progress: Progress, say: Say) -> None:
        self._run, self._store, self._tally, self._say = run, store, tally, say
        self._progress = progress
        self._done = store.done_keys()
        self._told: set[str] = set()

    async def build(self, asked: Asked | None) -> _Built | None:
        """None of none."""
        if asked is None:
            return None
        missing = tuple(budget for budget in asked.budgets if self._run.key(asked, budget) not in self._done)
        self._tally.finished += len(asked.budgets) - len(missing)
        self._show_progress()
        return _Built(asked, missing, tuple(await self._run.contexts.build(asked, missing)))

    async def ask_series(self, built: _Built) -> None:
        run, tally = self._run, self._tally
        # Ascending, so that a server with a prefix cache finds the shorter context in it.
        for budget, context in zip(built.missing, built.contexts, strict=True):
            if context is None:
                tally.left_out += 1
                tally.finished += 1
                continue
            sampled = await ask_sample(run, built.asked, budget, context)
            # Before the row: no sample may lie in the store without what must be known of it.
            self._note_changes()
            self._store.put(sampled.row, context.documents)
            tally.add(sampled)
            self._show_progress()
            tally.check_refusals(run.config)
            tally.check_presence(run.config)

    def _show_progress(self) -> None:
        self._progress(self._run.config.model, self._tally.finished, self._tally.total)

    def _note_changes(self) -> None:
        run = self._run
        for change in run.dialect.changes:
            if change not in self._told:
                self._told.add(change)
                self._store.note_change(run.config.model, run.dataset.name, change)
                self._say(f"{run.config.model}: {change}")
