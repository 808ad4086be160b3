"""One model is asked everything that the store does not hold yet, several questions at once, with what is noted of it.

The contexts of the next question are built while the answers to the last one are waited for: what they cost is then
nobody's time.
"""

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evals.config import ConfigError
from evals.contexts import Asked, Context
from evals.draws import Draws, ask_draws
from evals.manifest import end_session, with_session
from evals.replay import Recorded
from evals.sample import RunContext, ask_sample
from evals.store import Store
from evals.tally import RunResult, Tally
from evals.workers import run_workers

Progress = Callable[[str, int, int], None]  # the model, samples done, of how many
Say = Callable[[str], None]


async def ask_noting(
    run: RunContext,
    store: Store,
    series: Sequence[Asked],
    session: Mapping[str, Any],
    *,
    progress: Progress,
    say: Say,
) -> RunResult:
    """Ask everything, with what is noted of the session before it and after it, however it ends.

    Raises:
        RunStoppedError: asking cannot go on; what was answered is stored.
    """
    key = run.config.model, run.dataset.name
    earlier = store.manifests().get(key)
    asking = _Asking(run, store, progress, say)
    store.note_manifest(*key, with_session(earlier, session))

    def note_end() -> None:
        tally = asking.tally
        ended = end_session(session, run.concurrency, asked=tally.asked, failed=tally.failed)
        store.note_manifest(*key, with_session(earlier, ended))

    try:
        draws = await asking.ask_all(series)
    except BaseException:
        with contextlib.suppress(ConfigError):  # what ended the run is the one to tell
            note_end()
        raise
    note_end()
    return _result(run, asking.tally, draws)


def _result(run: RunContext, tally: Tally, draws: Draws) -> RunResult:
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


@dataclass(frozen=True, slots=True)
class _Built:
    """Whatever the store lacks of one question."""

    asked: Asked
    missing: tuple[int, ...]
    contexts: tuple[Context | None, ...]


class _Asking:
    """What the workers of one run have in common."""

    def __init__(self, run: RunContext, store: Store, progress: Progress, say: Say) -> None:
        self._run, self._store, self._progress, self._say = run, store, progress, say
        self.tally = Tally()
        self._done = store.done_keys()
        self._told: set[str] = set()

    async def ask_all(self, series: Sequence[Asked]) -> Draws:
        """Several questions at once, the budgets of each one after the other; then further draws, if any are wanted."""
        config, waiting = self._run.config, iter(series)
        self.tally.total = sum(len(asked.budgets) for asked in series)

        async def worker() -> None:
            built: _Built | None = None
            while True:
                async with self._run.concurrency.question():
                    built = built or await self._build(next(waiting, None))
                    if built is None:
                        return
                    async with asyncio.TaskGroup() as both:
                        coming = both.create_task(self._build(next(waiting, None)))
                        await self._ask_series(built)
                    built = coming.result()

        await run_workers(worker, min(config.concurrency, len(series)))
        self._tell_missing()
        return await self._draw(series) if config.draws else Draws()

    async def _build(self, asked: Asked | None) -> _Built | None:
        """None of none."""
        if asked is None:
            return None
        missing = tuple(budget for budget in asked.budgets if self._run.key(asked, budget) not in self._done)
        self.tally.finished += len(asked.budgets) - len(missing)
        self._show_progress()
        return _Built(asked, missing, tuple(await self._run.contexts.build(asked, missing)))

    async def _ask_series(self, built: _Built) -> None:
        run, tally = self._run, self.tally
        # Ascending, so that a server with a prefix cache finds the shorter context in it.
        for budget, context in zip(built.missing, built.contexts, strict=True):
            if context is None:
                tally.left_out += 1
                tally.finished += 1
                continue
            sampled = await ask_sample(run, built.asked, budget, context)
            if sampled is None:
                tally.unrecorded += 1
                tally.finished += 1
                continue
            # Before the row: no sample may lie in the store without what must be known of it.
            self._note_changes()
            self._store.put(sampled.row, context.documents)
            tally.add(sampled)
            self._show_progress()
            tally.check_refusals(run.config)
            tally.check_presence(run.config)

    async def _draw(self, series: Sequence[Asked]) -> Draws:
        run = self._run
        draws = await ask_draws(
            run,
            self._store,
            series,
            progress=lambda done, total: self._progress(f"{run.config.model}, draws", done, total),
            note_changes=self._note_changes,
        )
        if draws.unknown:
            self._say(f"{run.config.model}: {draws.unknown} samples have no draws: the store lacks their documents")
        return draws

    def _tell_missing(self) -> None:
        """Raises:
        ConfigError: of all that was to be asked no answer is recorded.
        """
        tally, model, answerer = self.tally, self._run.config.model, self._run.answerer
        if tally.left_out:
            self._say(f"{model}: {tally.left_out} samples are left out: no such context, or none that small")
        if isinstance(answerer, Recorded) and tally.unrecorded:
            if tally.unrecorded + tally.left_out == tally.total:
                raise ConfigError(answerer.describe_missing())
            self._say(f"{model}: {tally.unrecorded} samples are left out: no answer to them is recorded")

    def _show_progress(self) -> None:
        self._progress(self._run.config.model, self.tally.finished, self.tally.total)

    def _note_changes(self) -> None:
        run = self._run
        for change in run.dialect.changes:
            if change not in self._told:
                self._told.add(change)
                self._store.note_change(run.config.model, run.dataset.name, change)
                self._say(f"{run.config.model}: {change}")
