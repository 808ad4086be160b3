"""The flow of a run: check every model, then ask each. It can be stopped at any sample, and goes on there."""

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import aiohttp

from evals.asking import Progress, Say, ask_noting
from evals.client import Answerer, Served, open_session
from evals.concurrency import Concurrency
from evals.conditions import Corpus, corpus_of
from evals.config import ConfigError, RunConfig
from evals.contexts import Asked, ContextBuilder
from evals.dialect import Dialect
from evals.draws import check_temperature
from evals.energy import ledger_for
from evals.fingerprint import Fingerprint, take_fingerprint
from evals.manifest import Origin, begin_session
from evals.prompts import SYSTEM_PROMPTS, build_messages
from evals.reconcile import Reconciler
from evals.records import ESTIMATED, WITHOUT_LENGTH, Dataset
from evals.replay import Recorded
from evals.retrieval import open_retriever
from evals.retrieval.ranking import Retriever
from evals.retrieval.recall_file import note_recall
from evals.sample import RunContext
from evals.scrape import Scraper, find_metrics, scraping
from evals.store import Store
from evals.tally import RunResult
from evals.tokens import TokenCounter


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
            run = await _open_run(config, dataset, session, retriever, corpus, num_models=len(configs))
            await _check_context(run)
            runs.append(run)
        name = "none" if retriever is None else retriever.name
        for run in runs:
            fingerprint = _fingerprint(run, name)
            _check_earlier(fingerprint, earlier or {})
            store.check_run(run.config.model, dataset.name, fingerprint)
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
                noted, series = _session(run, origin, name), plan(run.config, dataset)
                results.append(await ask_noting(run, store, series, noted, progress=progress, say=say))
        return results


async def _open_run(
    config: RunConfig,
    dataset: Dataset,
    session: aiohttp.ClientSession,
    retriever: Retriever | None,
    corpus: Corpus,
    *,
    num_models: int,
) -> RunContext:
    """Raises:
    ConfigError: nobody answers at the endpoint, or not for this model.
    """
    dialect = Dialect(config.target.changes)
    concurrency = Concurrency(config.concurrency, adaptive=config.adaptive)
    answerer: Answerer = Served(session, config, dialect, concurrency)
    if config.target.replayed is not None:
        answerer = Recorded(config, config.target.replayed, num_models=num_models)
    served = await answerer.find_model()
    counter = TokenCounter(session, config)
    await counter.start()
    return RunContext(
        config=config,
        dataset=dataset,
        served=served,
        answerer=answerer,
        counter=counter,
        dialect=dialect,
        contexts=ContextBuilder(config, counter, retriever, corpus),
        reconciler=Reconciler(counter, config.unit),
        energy=ledger_for(config),
        session=session,
        concurrency=concurrency,
    )


async def _find_metrics(run: RunContext, say: Say) -> Scraper | None:
    if run.config.target.replayed is not None:
        return None
    scraper = await find_metrics(run.session, run.config)
    if scraper is None and run.config.scrape_interval_s:
        say(f"{run.config.model}: the endpoint tells nothing at /metrics: of its memory only what usage says is known")
    return scraper


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
