"""What was measured, and what follows from it: medians, and ratios within each run. No I/O but one file."""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import IO, Any

from loadtest.bench.rivals import OURS
from loadtest.bench.workloads import Workload


@dataclass(frozen=True, slots=True)
class Key:
    """What was raced."""

    model: str
    dtype: str
    workload: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One contender's run of one workload: its figures by name."""

    key: Key
    contender: str
    run: int
    seconds: float
    figures: dict[str, float]
    cached_tokens: int | None


@dataclass(frozen=True, slots=True)
class Cut:
    """A contender that was stopped after so many seconds, where ours had taken `ours_s`."""

    key: Key
    contender: str
    run: int
    after_s: float
    ours_s: float


@dataclass(frozen=True, slots=True)
class Trouble:
    """A contender that did not take part, wholly (no workload named) or in one workload."""

    model: str
    dtype: str
    workload: str | None
    contender: str
    message: str


@dataclass(frozen=True, slots=True)
class Agreement:
    """How many of the greedy tokens after the same prompts are ours, each answer up to its first other one."""

    model: str
    dtype: str
    contender: str
    same: int
    of: int


Event = Sample | Cut | Trouble | Agreement


@dataclass(slots=True)
class Results:
    """All events so far; each is written to `file` when it comes, so that an interrupted race loses none."""

    file: IO[str] | None = None
    samples: list[Sample] = field(default_factory=list)
    cuts: list[Cut] = field(default_factory=list)
    troubles: list[Trouble] = field(default_factory=list)
    agreements: list[Agreement] = field(default_factory=list)

    def add(self, event: Event) -> None:
        match event:
            case Sample():
                self.samples.append(event)
            case Cut():
                self.cuts.append(event)
            case Trouble():
                self.troubles.append(event)
            case Agreement():
                self.agreements.append(event)
        if self.file is not None:
            self.file.write(json.dumps({"event": type(event).__name__.lower(), **asdict(event)}) + "\n")
            self.file.flush()

    def raced(self) -> list[Key]:
        """What was raced, in the order in which it was."""
        keys = [sample.key for sample in self.samples] + [cut.key for cut in self.cuts]
        return list(dict.fromkeys(keys))

    def of(self, key: Key, contender: str) -> list[Sample]:
        return [sample for sample in self.samples if sample.key == key and sample.contender == contender]

    def cut(self, key: Key, contender: str) -> Cut | None:
        return next((cut for cut in self.cuts if cut.key == key and cut.contender == contender), None)

    def differs(self, model: str, dtype: str, contender: str) -> bool:
        """Whether it computes something else: in float32 the same weights give the same greedy tokens."""
        mine = [entry for entry in self.agreements if (entry.model, entry.contender) == (model, contender)]
        return any(entry.same < entry.of for entry in mine if dtype == entry.dtype == "float32")


@dataclass(frozen=True, slots=True)
class Spread:
    """A median of some runs with their extremes."""

    median: float
    low: float
    high: float

    @classmethod
    def over(cls, values: Sequence[float]) -> "Spread":
        return cls(statistics.median(values), min(values), max(values))


def ratios(results: Results, key: Key, contender: str, figure: str, *, is_time: bool) -> Spread | None:
    """How many times faster ours is, run by run: what disturbs a machine for long disturbs both."""
    ours = {sample.run: sample.figures[figure] for sample in results.of(key, OURS)}
    theirs = {sample.run: sample.figures[figure] for sample in results.of(key, contender)}
    both = [(ours[run], theirs[run]) for run in ours.keys() & theirs.keys()]
    values = [other / mine if is_time else mine / other for mine, other in both]
    values = [value for value in values if math.isfinite(value)]
    return Spread.over(values) if values else None


def summary_rows(results: Results, plan: Sequence[Workload], contenders: Sequence[str]) -> list[dict[str, Any]]:
    """One row for each figure of each contender, plain enough for JSON."""
    workloads = {workload.name: workload for workload in plan}
    rows = list[dict[str, Any]]()
    for key in results.raced():
        for figure in workloads[key.workload].figures:
            for contender in contenders:
                common = {**asdict(key), "figure": figure.name, "unit": figure.unit, "contender": contender}
                cut = results.cut(key, contender)
                if cut is not None:
                    rows.append({**common, "cut_after_s": round(cut.after_s, 1), "at_least": _at_least(cut)})
                values = [sample.figures[figure.name] for sample in results.of(key, contender)]
                if not values:
                    continue
                row = {**common, "median": statistics.median(values), "values": values}
                spread = ratios(results, key, contender, figure.name, is_time=figure.is_time)
                if contender != OURS and spread is not None:
                    row |= {"ratio": spread.median, "ratio_low": spread.low, "ratio_high": spread.high}
                if results.differs(key.model, key.dtype, contender):
                    row["computes_something_else"] = True
                rows.append(row)
    return rows


def _at_least(cut: Cut) -> float:
    """How many times longer than ours it took at least."""
    return round(cut.after_s / cut.ours_s, 2)
