"""Judges the stored samples of a run: each once, several at a time; it can be stopped anywhere, and goes on there."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from evals.config import RunStoppedError
from evals.judging.cases import Case, Judge, Opinion, Stop, case_of
from evals.keys import key_of
from evals.records import Judgement, SampleRow
from evals.store import Store
from evals.workers import run_workers

# So many in a row that failed alike mean that the others would, too.
MAX_FAILURES_IN_A_ROW = 5

Progress = Callable[[int, int], None]  # samples done, of how many
T = TypeVar("T")


@dataclass(slots=True)
class Tally:
    """`known`: judged before. `left_out`: with nothing to judge. `failed`: no verdict, judged again next time."""

    total: int = 0
    known: int = 0
    judged: int = 0
    failed: int = 0
    left_out: int = 0
    first_error: str | None = None


class Patience:
    """Watches failures: stops where one came after the other, all of the same kind."""

    def __init__(self) -> None:
        self._kind: Stop | None = None
        self._count = 0

    def see(self, opinion: Opinion) -> None:
        """Raises:
        RunStoppedError: asking on is of no use.
        """
        self._count = self._count + 1 if opinion.stop is not None and opinion.stop == self._kind else 1
        self._kind = opinion.stop
        if self._kind is not None and self._count >= MAX_FAILURES_IN_A_ROW:
            raise RunStoppedError(
                f"--judge: {self._count} requests in a row were {self._kind}, so no more are sent: {opinion.error}"
            )


def waiting(store: Store, judge: Judge, limit: int | None) -> tuple[list[tuple[SampleRow, Case]], Tally]:
    """Samples that the judge has not judged yet, at most `limit`, and how many there are of the others."""
    done = {key_of(one) for one in store.judgements() if one.grader == judge.name and one.error is None}
    tally = Tally()
    found: list[tuple[SampleRow, Case]] = []
    rows = list(store.rows())
    datasets = {row.dataset for row in rows} if judge.reads_documents else ()
    documents = {name: store.documents(name) for name in datasets}
    for row in rows:
        if key_of(row) in done:
            tally.known += 1
            continue
        case = case_of(row, documents.get(row.dataset, {}), with_documents=judge.reads_documents)
        if case is None:
            tally.left_out += 1
        elif limit is None or len(found) < limit:
            found.append((row, case))
    tally.total = len(found)
    return found, tally


async def judge_store(
    store: Store, judge: Judge, *, concurrency: int, limit: int | None = None, progress: Progress = lambda *_: None
) -> Tally:
    """Raises:
    RunStoppedError: the judge is gone, or refuses all; what was judged is stored.
    """
    rows, tally = waiting(store, judge, limit)
    patience = Patience()

    def keep(row: SampleRow, opinion: Opinion) -> None:
        store.put_judgement(_judgement(row, judge.name, opinion))
        tally.judged += opinion.error is None
        tally.failed += opinion.error is not None
        tally.first_error = tally.first_error or opinion.error
        progress(tally.judged + tally.failed, tally.total)
        patience.see(opinion)

    await each(iter(rows), judge, keep, concurrency=concurrency)
    return tally


async def each(
    cases: Iterator[tuple[T, Case]], judge: Judge, keep: Callable[[T, Opinion], None], *, concurrency: int
) -> None:
    """Have every case judged, so many at once, and hand each opinion over as it comes."""

    async def worker() -> None:
        for subject, case in cases:
            keep(subject, await judge.opinion(case))

    await run_workers(worker, concurrency)


def _judgement(row: SampleRow, grader: str, opinion: Opinion) -> Judgement:
    return Judgement(
        model=row.model,
        dataset=row.dataset,
        condition=row.condition,
        permission=row.permission,
        budget=row.budget,
        question_id=row.question_id,
        grader=grader,
        verdict=opinion.verdict,
        score=opinion.score,
        detail=opinion.detail,
        error=opinion.error,
    )
