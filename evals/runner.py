"""The flow of a run: check every model, then ask each. It can be stopped at any sample, and goes on there."""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import aiohttp

from evals.client import Answerer, Served, open_session
from evals.conditions import corpus_of
from evals.config import ConfigError, RunConfig
from evals.contexts import Asked, ContextBuilder
from evals.dialect import Dialect
from evals.draws import Draws, ask_draws, check_temperature
from evals.energy import ledger_for
from evals.fingerprint import take_fingerprint
from evals.prompts import SYSTEM_PROMPTS, build_messages
from evals.reconcile import Reconciler
from evals.records import ESTIMATED, WITHOUT_LENGTH, Dataset
from evals.replay import Recorded
from evals.retrieval import open_retriever
from evals.retrieval.ranking import Retriever
from evals.retrieval.recall_file import note_recall
from evals.retry import MAX_FIRST_REFUSALS, is_hopeless
from evals.sample import RunContext, Sampled, ask_sample
from evals.scrape import Scraper, find_metrics, scraping
from evals.store import Store
from evals.tokens import TokenCounter
from evals.workers import run_workers

Progress = Callable[[str, int, int], None]  # the model, samples done, of how many
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class RunResult:
    """How one run went. `asked` leaves out what the store held already; `failed` are rows with an error; `left_out`
    are those for which the question has no context: no gold to give, or none that fits into the budget; `unrecorded`
    those of which a file of recorded answers has none. `draws` were asked beside them, of which `failed_draws` have an
    error.
    """

    total: int
    asked: int
    failed: int
    first_error: str | None
    kind: str
    counting: str
    left_out: int = 0
    unrecorded: int = 0
    draws: int = 0
    failed_draws: int = 0


@dataclass(slots=True)
class _Tally:
    """Counts one run's samples; `finished` has those that the store held already."""

    total: int
    finished: int = 0
    asked: int = 0
    failed: int = 0
    left_out: int = 0
    unrecorded: int = 0
    first_error: str | None = None
    first_refusals: list[int | None] = field(default_factory=list)

    def add(self, sampled: Sampled) -> None:
        self.finished += 1
        self.asked += 1
        if sampled.row.error is not None:
            self.failed += 1
            self.first_error = self.first_error or sampled.row.error
        if len(self.first_refusals) < MAX_FIRST_REFUSALS:
            self.first_refusals.append(sampled.refused_status)

    @property
    def is_refused(self) -> bool:
        return is_hopeless(self.first_refusals)


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
) -> list[RunResult]:
    """Ask each model in turn everything that the store does not hold yet; all have the same --out.

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
            dialect = Dialect(config.target.changes)
            answerer = _answerer(config, dialect, session, num_models=len(configs))
            served = await answerer.find_model()
            counter = TokenCounter(session, config)
            await counter.start()
            contexts = ContextBuilder(config, counter, retriever, corpus)
            run = RunContext(
                config=config,
                dataset=dataset,
                served=served,
                answerer=answerer,
                counter=counter,
                dialect=dialect,
                contexts=contexts,
                reconciler=Reconciler(counter, config.unit),
                energy=ledger_for(config),
                session=session,
            )
            await _check_context(run)
            runs.append(run)
        for run in runs:
            _check_store(run, store, retriever)
            check_temperature(run.config, dataset.name, store)
            if run.counter.source == ESTIMATED:
                say(f"{run.config.model}: the endpoint counts no tokens; documents are counted by an {ESTIMATED}")
        if retriever is not None and any(set(config.asked_conditions) - set(WITHOUT_LENGTH) for config in configs):
            # Before anything is asked: it would take processor time from what is timed.
            await asyncio.to_thread(note_recall, configs[0], dataset, retriever)
        results = []
        for run in runs:
            scraper = await _find_metrics(run, say)
            async with scraping(scraper, dataset.name, store.put_scrapes):
                results.append(await _ask_all(run, store, progress=progress, say=say))
        return results


async def _find_metrics(run: RunContext, say: Say) -> Scraper | None:
    if run.config.target.replayed is not None:
        return None
    scraper = await find_metrics(run.session, run.config)
    if scraper is None and run.config.scrape_interval_s:
        say(f"{run.config.model}: the endpoint tells nothing at /metrics: of its memory only what usage says is known")
    return scraper


def _answerer(config: RunConfig, dialect: Dialect, session: aiohttp.ClientSession, *, num_models: int) -> Answerer:
    if config.target.replayed is not None:
        return Recorded(config, config.target.replayed, num_models=num_models)
    return Served(session, config, dialect)


def _open_retriever(config: RunConfig, dataset: Dataset) -> Retriever | None:
    if not dataset.documents:
        return None
    return open_retriever(
        config.retriever,
        dataset.documents,
        model=config.retriever_model,
        seed=config.seed,
        cache=config.index_cache,
        rerank=config.rerank,
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


def _check_store(run: RunContext, store: Store, retriever: Retriever | None) -> None:
    name = "none" if retriever is None else retriever.name
    fingerprint = take_fingerprint(run.config, run.dataset, run.served, retriever=name, counting=run.counter.source)
    store.check_run(run.config.model, run.dataset.name, fingerprint)


async def _ask_all(run: RunContext, store: Store, *, progress: Progress, say: Say) -> RunResult:
    """Several questions at once, the budgets of each one after the other."""
    config = run.config
    series = plan(config, run.dataset)
    done = store.done_keys()
    waiting = iter(series)
    tally = _Tally(total=sum(len(asked.budgets) for asked in series))
    told: set[str] = set()

    async def worker() -> None:
        for asked in waiting:
            missing = [budget for budget in asked.budgets if run.key(asked, budget) not in done]
            tally.finished += len(asked.budgets) - len(missing)
            progress(config.model, tally.finished, tally.total)
            contexts = await run.contexts.build(asked, missing)
            # Ascending, so that a server with a prefix cache finds the shorter context in it.
            for budget, context in zip(missing, contexts, strict=True):
                if context is None:
                    tally.left_out += 1
                    tally.finished += 1
                    continue
                sampled = await ask_sample(run, asked, budget, context)
                if sampled is None:
                    tally.unrecorded += 1
                    tally.finished += 1
                    continue
                # Before the row: no sample may lie in the store without what must be known of it.
                _note_changes(run, store, told, say)
                store.put(sampled.row, context.documents)
                tally.add(sampled)
                progress(config.model, tally.finished, tally.total)
                _check_refusals(run, tally)

    await run_workers(worker, min(config.concurrency, len(series)))
    _tell_missing(run, tally, say)
    draws = Draws()
    if config.draws:
        draws = await ask_draws(
            run,
            store,
            series,
            progress=lambda done, total: progress(f"{config.model}, draws", done, total),
            note_changes=lambda: _note_changes(run, store, told, say),
        )
    if draws.unknown:
        say(f"{config.model}: {draws.unknown} samples have no draws: the store does not hold their documents")
    return _result(run, tally, draws)


def _result(run: RunContext, tally: _Tally, draws: Draws) -> RunResult:
    return RunResult(
        total=tally.total,
        asked=tally.asked,
        failed=tally.failed,
        first_error=tally.first_error or draws.first_error,
        kind=run.served.kind,
        counting=run.counter.source,
        left_out=tally.left_out,
        unrecorded=tally.unrecorded,
        draws=draws.asked,
        failed_draws=draws.failed,
    )


def _tell_missing(run: RunContext, tally: _Tally, say: Say) -> None:
    """Raises:
    ConfigError: of all that was to be asked no answer is recorded.
    """
    if tally.left_out:
        say(f"{run.config.model}: {tally.left_out} samples are left out: no such context, or none that small")
    if isinstance(run.answerer, Recorded) and tally.unrecorded:
        if tally.unrecorded + tally.left_out == tally.total:
            raise ConfigError(run.answerer.describe_missing())
        say(f"{run.config.model}: {tally.unrecorded} samples are left out: no answer to them is recorded")


def _note_changes(run: RunContext, store: Store, told: set[str], say: Say) -> None:
    for change in run.dialect.changes:
        if change not in told:
            told.add(change)
            store.note_change(run.config.model, run.dataset.name, change)
            say(f"{run.config.model}: {change}")


def _check_refusals(run: RunContext, tally: _Tally) -> None:
    """Raises:
    ConfigError: the endpoint refuses all that it is asked.
    """
    if tally.is_refused:
        raise ConfigError(
            f"--endpoint {run.config.api_url}: the first {MAX_FIRST_REFUSALS} samples of {run.config.model} were all "
            f"refused, so no more are asked: {tally.first_error}"
        )
