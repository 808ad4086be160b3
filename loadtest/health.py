"""How the load process itself fared: its CPU, the lateness of its event loop, its peak of open requests.

A client that is short of CPU stamps late, and a late stamp looks like a slow server. So each worker watches
itself.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from loadtest.latency import Summary, summary

TICK_S = 0.02
CPU_WINDOW_S = 2.0


@dataclass(frozen=True, slots=True)
class WorkerHealth:
    """One worker over the whole run.

    Attributes:
        origin_s: the run's start on the machine's monotonic clock.
        cpu_mean, cpu_max: CPU seconds per second of this process; max over windows of CPU_WINDOW_S.
        loop_lag_s: how late a timer of TICK_S fired: an upper estimate of how late any stamp may be.
        max_open: most requests at once for which a connection was open, or being opened.
        max_queued: most requests at once that waited under --max-in-flight.
        num_dispatched: how many of its requests it began to work on, in the order of the schedule.
        ended_s: when it stopped, in seconds since the start of the run.
        interrupted: stopped before the schedule was over, from outside or by an error.
    """

    worker: int
    origin_s: float
    cpu_mean: float
    cpu_max: float
    loop_lag_s: Summary
    max_open: int
    max_queued: int
    num_dispatched: int
    ended_s: float
    interrupted: bool


@dataclass(slots=True)
class SelfWatch:
    """Collects ticks; the owner calls `tick` after each sleep of TICK_S."""

    started_s: float = field(default_factory=time.perf_counter)
    started_cpu_s: float = field(default_factory=time.process_time)
    lags_s: list[float] = field(default_factory=list)
    windows: list[float] = field(default_factory=list)
    window_start: tuple[float, float] = (0.0, 0.0)
    max_open: int = 0
    max_queued: int = 0

    def __post_init__(self) -> None:
        self.window_start = (self.started_s, self.started_cpu_s)

    def tick(self, *, due_s: float, num_open: int, num_queued: int) -> None:
        now_s, cpu_s = time.perf_counter(), time.process_time()
        self.lags_s.append(max(0.0, now_s - due_s))
        self.max_open = max(self.max_open, num_open)
        self.max_queued = max(self.max_queued, num_queued)
        begun_s, begun_cpu_s = self.window_start
        if now_s - begun_s >= CPU_WINDOW_S:
            self.windows.append((cpu_s - begun_cpu_s) / (now_s - begun_s))
            self.window_start = (now_s, cpu_s)

    def close(self, *, worker: int, origin_s: float, num_dispatched: int, interrupted: bool) -> WorkerHealth:
        now_s = time.perf_counter()
        mean = (time.process_time() - self.started_cpu_s) / (now_s - self.started_s)
        return WorkerHealth(
            worker=worker,
            origin_s=origin_s,
            cpu_mean=mean,
            cpu_max=max(self.windows, default=mean),
            loop_lag_s=summary(self.lags_s),
            max_open=self.max_open,
            max_queued=self.max_queued,
            num_dispatched=num_dispatched,
            ended_s=now_s - origin_s,
            interrupted=interrupted,
        )


def write_health(path: Path, health: WorkerHealth) -> None:
    path.write_text(json.dumps(asdict(health)), encoding="utf-8")


def read_health(paths: Sequence[Path]) -> list[WorkerHealth]:
    return [WorkerHealth(**json.loads(path.read_text(encoding="utf-8"))) for path in paths]
