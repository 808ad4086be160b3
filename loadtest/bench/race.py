"""Runs the workloads: all contenders in turn, again and again, each alone on the machine while it is timed."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from loadtest.bench import shapes
from loadtest.bench.checkpoint import copy_embedded, write_checkpoint
from loadtest.bench.exchange import Answer, Contender, ContenderError, CutError, Question
from loadtest.bench.http import same_beginning
from loadtest.bench.results import Agreement, Cut, Key, Results, Sample, Trouble
from loadtest.bench.rivals import OURS, Race, Rival
from loadtest.bench.vocabulary import Words
from loadtest.bench.workloads import Workload

GREEDY_PROMPTS, GREEDY_TOKENS = (8, 60, 200), 16
LEAST_LIMIT_S = 20.0
OWN_LIMIT_S = 3600.0
SETTLE_S = 0.3
FAMILIES = {"transformer": "llama", "mamba": "mamba2"}
Tell = Callable[[str], None]
T = TypeVar("T")


def full_models() -> dict[str, Callable[[Path], Path]]:
    """What writes each model's checkpoint, by the model's name."""
    every = {"llama": shapes.llama(), "mamba2": shapes.mamba2(), "mamba": shapes.mamba()}
    return {name: partial(write_checkpoint, shape=shape) for name, shape in every.items()} | _embedded()


def quick_models() -> dict[str, Callable[[Path], Path]]:
    every = {
        "llama": shapes.llama(layers=2, width=128, heads=4, inner=256, vocab=2000),
        "mamba2": shapes.mamba2(layers=2, width=128, heads=8, state=32, vocab=2000),
        "mamba": shapes.mamba(layers=2, width=128, vocab=2000),
    }
    return {name: partial(write_checkpoint, shape=shape) for name, shape in every.items()} | _embedded()


def _embedded() -> dict[str, Callable[[Path], Path]]:
    return {f"embedded-{name}": partial(copy_embedded, name=name) for name in FAMILIES}


def family(model: str) -> str:
    """The model_type of a model's checkpoint."""
    return FAMILIES.get(model.removeprefix("embedded-"), model) if model.startswith("embedded-") else model


@dataclass(frozen=True, slots=True)
class Rules:
    """Attributes:
    runs: how often each contender runs each workload.
    patience: a rival that takes so many times longer than ours did is stopped.
    """

    runs: int
    patience: float


class Entrant:
    """A rival in one race: started when first needed, and again when it died or was stopped."""

    def __init__(self, rival: Rival, race: Race) -> None:
        self.name = rival.name
        self.out: str | None = None
        self._rival, self._race = rival, race
        self._contender: Contender | None = None

    @contextmanager
    def on_the_machine(self) -> Iterator[Contender]:
        """The contender, running; it stands still afterwards. Raises ContenderError where it cannot start."""
        contender = self._contender
        if contender is None or contender.child is None or not contender.child.running:
            self.end()
            contender = self._start()
        assert contender.child is not None
        contender.child.resume()
        try:
            yield contender
        finally:
            contender.child.pause()

    def end(self) -> None:
        if self._contender is not None and self._contender.child is not None:
            self._contender.child.end()
        self._contender = None

    def _start(self) -> Contender:
        try:
            self._contender = self._rival.enter(self._race)
            self._contender.start()
        except ContenderError as error:
            self.out = str(error)
            self.end()
            raise
        return self._contender


class Meeting:
    """All entrants of one race, and where their results go."""

    def __init__(self, model: str, race: Race, rivals: Sequence[Rival], results: Results, tell: Tell) -> None:
        self._model, self._race, self._results, self._tell = model, race, results, tell
        short = [Entrant(rival, race) for rival in rivals]
        # Who is set up otherwise for one long context enters a second time.
        long = [
            Entrant(rival, replace(race, long=True)) if rival.minds_length else entrant
            for rival, entrant in zip(rivals, short, strict=True)
        ]
        self._entrants = {False: short, True: long}

    def __enter__(self) -> "Meeting":
        return self

    def __exit__(self, *_: object) -> None:
        for entrant in [*self._entrants[False], *self._entrants[True]]:
            entrant.end()

    def out(self) -> set[str]:
        """Who could not start."""
        return {entrant.name for entrant in [*self._entrants[False], *self._entrants[True]] if entrant.out is not None}

    def check(self, *, long: bool) -> None:
        """Everyone's greedy tokens beside ours."""
        questions = [
            question
            for length in GREEDY_PROMPTS
            for question in Workload("greedy", "", length, GREEDY_TOKENS, ()).questions(self._race.words, "")
        ]
        ours: list[Answer] | None = None
        for entrant in self._entrants[long]:
            answers = self._try(entrant, None, lambda contender: contender.ask(questions, concurrency=1, limit_s=600.0))
            ours = answers if entrant.name == OURS else ours
            if answers is None or ours is None or entrant.name == OURS:
                continue
            same = sum(same_beginning(*pair) for pair in zip(_ids(answers), _ids(ours), strict=True))
            of = GREEDY_TOKENS * len(questions)
            self._results.add(Agreement(self._model, self._race.dtype, entrant.name, same, of))
            self._tell(f"  {entrant.name}: {same} of {of} greedy tokens are ours")

    def run(self, workload: Workload, rules: Rules) -> None:
        """Warm everyone up, then let them run in turn."""
        warm_up = workload.warm_up().questions(self._race.words, "warm-up")
        racing = list[Entrant]()
        limit_s = OWN_LIMIT_S
        for entrant in self._entrants[workload.long]:
            started_s = time.monotonic()
            tune = partial(_tune, warm_up, workload.concurrency, limit_s)
            if self._try(entrant, workload.name, tune) is not None:
                racing.append(entrant)
            if entrant.name == OURS:
                limit_s = max(3 * LEAST_LIMIT_S, 4 * rules.patience * (time.monotonic() - started_s))
        for run in range(rules.runs):
            racing = self._turn(racing, workload, run, rules)

    def _turn(self, racing: Sequence[Entrant], workload: Workload, run: int, rules: Rules) -> list[Entrant]:
        """One run of each; returns who goes on."""
        questions = workload.questions(self._race.words, f"run {run}")
        key = Key(self._model, self._race.dtype, workload.name)
        going_on, ours_s = list[Entrant](), OWN_LIMIT_S
        for entrant in racing:
            limit_s = OWN_LIMIT_S if entrant.name == OURS else max(LEAST_LIMIT_S, rules.patience * ours_s)
            started_s = time.monotonic()
            try:
                ask = partial(_ask, questions, workload.concurrency, limit_s)
                answers = self._try(entrant, workload.name, ask)
            except CutError as cut:
                self._results.add(Cut(key, entrant.name, run, cut.after_s, ours_s))
                self._tell(f"  {workload.name} run {run + 1}, {entrant.name}: {cut}")
                continue
            if answers is None:
                continue
            seconds = time.monotonic() - started_s - SETTLE_S
            ours_s = seconds if entrant.name == OURS else ours_s
            figures = {figure.name: figure.read(answers) for figure in workload.figures}
            cached = [answer.cached_tokens for answer in answers if answer.cached_tokens is not None]
            total = sum(cached) if cached else None
            self._results.add(Sample(key, entrant.name, run, round(seconds, 3), figures, total))
            shown = ", ".join(f"{name} {value:,.4g}" for name, value in figures.items())
            self._tell(f"  {workload.name} run {run + 1}, {entrant.name}: {shown}")
            going_on.append(entrant)
        return going_on

    def _try(self, entrant: Entrant, workload: str | None, act: Callable[[Contender], T]) -> T | None:
        """Do something with a contender that is running alone; its failure is a result, and the others go on."""
        if entrant.out is not None:
            return None
        try:
            with entrant.on_the_machine() as contender:
                return act(contender)
        except ContenderError as error:
            where = None if entrant.out is not None else workload
            self._results.add(Trouble(self._model, self._race.dtype, where, entrant.name, str(error)))
            self._tell(f"  {entrant.name}: {error}")
            return None


def _tune(questions: list[Question], concurrency: int, limit_s: float, contender: Contender) -> bool:
    """What is too slow even to warm up within the limit is stopped when it is timed, and shown with its time."""
    with suppress(CutError):
        contender.tune(questions, concurrency=concurrency, limit_s=limit_s)
    return True


def _ask(questions: list[Question], concurrency: int, limit_s: float, contender: Contender) -> list[Answer]:
    time.sleep(SETTLE_S)
    return contender.ask(questions, concurrency=concurrency, limit_s=limit_s)


def _ids(answers: Sequence[Answer]) -> list[tuple[int, ...]]:
    return [answer.ids for answer in answers]


def _contexts(workloads: Sequence[Workload]) -> tuple[int, int]:
    """Most tokens of a prompt and its answer where many are asked at once, and at all."""
    short = max(max(GREEDY_PROMPTS) + GREEDY_TOKENS, *(load.context for load in workloads if not load.long), 0)
    return short, max(short, *(load.context for load in workloads))


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole bench.

    Attributes:
        models: what writes each one's checkpoint, by name.
        weights: where the checkpoints are, or will be.
        logs: where contenders write.
    """

    models: dict[str, Callable[[Path], Path]]
    dtypes: tuple[str, ...]
    workloads: tuple[Workload, ...]
    rules: Rules
    weights: Path
    logs: Path
    threads: int
    cache_gib: int
    start_s: float
    serve_options: tuple[str, ...] = ()


def run_plan(plan: Plan, rivals: Sequence[Rival], results: Results, tell: Tell) -> None:
    """Race everything of the plan, model by model."""
    for model, write in plan.models.items():
        checkpoint = write(plan.weights / model)
        words = Words.read(checkpoint)
        able = list(rivals)
        for dtype in plan.dtypes:
            race = Race(
                checkpoint=checkpoint,
                family=family(model),
                dtype=dtype,
                words=words,
                contexts=_contexts(plan.workloads),
                streams=max(workload.concurrency for workload in plan.workloads),
                threads=plan.threads,
                cache_gib=plan.cache_gib,
                start_s=plan.start_s,
                directory=plan.logs,
                serve_options=plan.serve_options,
            )
            tell(f"{model} in {dtype}")
            with Meeting(model, race, able, results, tell) as meeting:
                meeting.check(long=plan.workloads[0].long)
                for workload in plan.workloads:
                    meeting.run(workload, plan.rules)
                # Who cannot start a model, cannot in any number format.
                able = [rival for rival in able if rival.name not in meeting.out()]
