"""The load itself, on locust: one dispatcher user per worker, one greenlet per arrival.

locust starts the users, counts requests and stops the run; the arrivals follow the plan's absolute schedule,
not locust's pacing, which waits for free users and so is no open loop. Started by `loadtest.run` with the
plan's directory in FATHOM_LOAD_PLAN. Importing this module patches the whole process through gevent: only
locust may.
"""

import gc
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import gevent  # type: ignore[import-untyped]
from gevent.event import Event  # type: ignore[import-untyped]
from gevent.lock import BoundedSemaphore  # type: ignore[import-untyped]
from gevent.pool import Group  # type: ignore[import-untyped]
from locust import User, events, task
from locust.env import Environment
from locust.runners import Runner, WorkerRunner

from loadtest import arrivals
from loadtest.client import Exchange, Target, stream_chat
from loadtest.health import TICK_S, SelfWatch, write_health
from loadtest.plan import (
    API_KEY_VARIABLE,
    HEALTH_PREFIX,
    PLAN_VARIABLE,
    RECORDS_PREFIX,
    REQUESTS_FILE,
    START_FILE,
    read_worker_plan,
)
from loadtest.records import (
    Dispatch,
    PlannedRequest,
    RequestRecord,
    broken_record,
    finished_record,
    read_plan,
    to_line,
    unfinished_record,
)

LEAD_S = 0.5  # from the moment at which all workers are ready to the start of the schedule
LINES_PER_PAUSE = 32
READY_MESSAGE, DONE_MESSAGE = "worker_ready", "worker_done"
logger = logging.getLogger(__name__)


class UnsuccessfulRequestError(Exception):
    """How a failed request shows up in locust's own table."""


def _coordinate(environment: Environment, **_: Any) -> None:
    """On the master, or in the only process: start when all workers are ready, quit when all are done."""
    runner = environment.runner
    if runner is None or isinstance(runner, WorkerRunner):
        return
    directory = Path(os.environ[PLAN_VARIABLE])
    num_workers = read_worker_plan(directory).processes
    ready: set[int] = set()
    done: set[int] = set()

    def on_ready(msg: Any, **_: Any) -> None:
        ready.add(int(msg.data))
        if len(ready) == num_workers:
            _publish_start(directory)

    def on_done(msg: Any, **_: Any) -> None:
        done.add(int(msg.data))
        if len(done) == num_workers:
            # In a greenlet of its own: the message may come from a user that quitting is going to end.
            gevent.spawn(runner.quit)

    runner.register_message(READY_MESSAGE, on_ready)
    runner.register_message(DONE_MESSAGE, on_done)
    gevent.spawn(_quit_when_orphaned, runner, os.getppid())


def _publish_start(directory: Path) -> None:
    """Write the run's origin for all workers: processes of one machine share the monotonic clock."""
    draft = directory / f"{START_FILE}.part"
    draft.write_text(repr(time.perf_counter() + LEAD_S), encoding="utf-8")
    draft.replace(directory / START_FILE)


def _quit_when_orphaned(runner: Runner, parent: int) -> None:
    """A killed command must not leave its load behind."""
    while os.getppid() == parent:
        gevent.sleep(1)
    runner.quit()


class Dispatcher(User):
    """Sends this worker's share of the plan, each request at its instant, whatever the server does."""

    def on_start(self) -> None:
        self.directory = Path(os.environ[PLAN_VARIABLE])
        self.plan = read_worker_plan(self.directory)
        self.target = Target.parse(self.plan.endpoint, api_key=os.environ.get(API_KEY_VARIABLE))
        self.target.connect()  # opens nothing, but loads the certificates that the first request would wait for
        self.worker = int(getattr(self.environment.runner, "worker_index", 0))
        mine = arrivals.share(self.plan.num_requests, worker=self.worker, num_workers=self.plan.processes)
        self.requests = [one for one in read_plan(self.directory / REQUESTS_FILE) if one.index in mine]
        self.gate = self._gate()
        self.started = False
        self.num_dispatched = 0
        self.in_flight: dict[int, tuple[Dispatch, Exchange]] = {}
        self.greenlets = Group()
        self.out = (self.directory / f"{RECORDS_PREFIX}{self.worker}.jsonl").open("w", encoding="utf-8")
        gc.collect()
        gc.freeze()  # the plan may be large; a collection that walks it would stop every stream
        self.environment.runner.send_message(READY_MESSAGE, self.worker)
        self.origin_s = self._await_origin()
        self.watch = SelfWatch()

    @task
    def run_schedule(self) -> None:
        # locust repeats a task that returns or raises, and a repeated schedule would be sent in one burst.
        if not self.started:
            self.started = True
            with _logged("the schedule"):
                self._run_once()
            self.environment.runner.send_message(DONE_MESSAGE, self.worker)
        Event().wait()  # for the quit that the message brings about once every worker has sent it

    def _run_once(self) -> None:
        ticker = gevent.spawn(self._tick)
        interrupted = True
        try:
            for planned in self.requests:
                self._sleep_until(self.origin_s + planned.scheduled_s)
                self.greenlets.spawn(self._serve, planned)
            self.greenlets.join(timeout=self.plan.stop_timeout_s)
            interrupted = False
        finally:
            ticker.kill(block=False)
            with _logged("the unfinished requests"):
                self._censor()
            with _logged("closing the records"):
                self.out.close()
            health = self.watch.close(
                worker=self.worker,
                origin_s=self.origin_s,
                num_dispatched=self.num_dispatched,
                interrupted=interrupted,
            )
            write_health(self.directory / f"{HEALTH_PREFIX}{self.worker}.json", health)

    def _serve(self, planned: PlannedRequest) -> None:
        dispatch = Dispatch(planned, self.worker, self.origin_s, time.perf_counter())
        exchange = Exchange()
        self.in_flight[planned.index] = (dispatch, exchange)
        self.num_dispatched += 1
        try:
            with self.gate:
                stream_chat(self.target, planned.body.encode(), exchange)
            record = finished_record(dispatch, exchange, _with_pauses(exchange.lines))
        except Exception as error:
            logger.exception("request %d", planned.index)
            record = broken_record(dispatch, exchange, error, now_s=time.perf_counter())
        # Only now: a request is censored or finished, never both. No switch can happen from here on.
        del self.in_flight[planned.index]
        self._report(record, exchange)

    def _censor(self) -> None:
        """Record what is still open as unfinished, then let go of it."""
        now_s = time.perf_counter()
        self.greenlets.kill(block=False)
        for dispatch, exchange in self.in_flight.values():
            try:
                if exchange.end_s is None:
                    record = unfinished_record(dispatch, exchange, now_s=now_s)
                else:
                    record = finished_record(dispatch, exchange, exchange.lines)
            except Exception as error:
                record = broken_record(dispatch, exchange, error, now_s=now_s)
            self._report(record, exchange)
        self.in_flight.clear()

    def _report(self, record: RequestRecord, exchange: Exchange) -> None:
        """Keep the record, and tell locust: exactly one request event per arrival that was dispatched."""
        self.out.write(to_line(record))
        self.out.flush()
        error = None if record.error_kind is None else UnsuccessfulRequestError(f"{record.error_kind}: {record.error}")
        self.environment.events.request.fire(
            request_type="LLM",
            name=self.plan.name,
            response_time=(record.end_s - record.scheduled_s) * 1000,
            response_length=sum(len(line) for _, line in exchange.lines),
            exception=error,
            context={"record": record},
        )

    def _tick(self) -> None:
        while True:
            due_s = time.perf_counter() + TICK_S
            gevent.sleep(TICK_S)
            exchanges = [exchange for _, exchange in self.in_flight.values()]
            num_queued = sum(one.connect_s is None for one in exchanges)
            num_open = sum(one.connect_s is not None and one.end_s is None for one in exchanges)
            self.watch.tick(due_s=due_s, num_open=num_open, num_queued=num_queued)

    def _gate(self) -> Any:
        """This worker's part of the cap. What waits here keeps its scheduled time."""
        limit, workers = self.plan.max_in_flight, self.plan.processes
        if limit is None:
            return nullcontext()
        return BoundedSemaphore(limit // workers + (self.worker < limit % workers))

    def _await_origin(self) -> float:
        path = self.directory / START_FILE
        while not path.exists():
            gevent.sleep(0.01)
        return float(path.read_text(encoding="utf-8"))

    @staticmethod
    def _sleep_until(instant_s: float) -> None:
        # A loop, since a timer may fire early; no sleep at all when late: the schedule is never moved.
        while (left_s := instant_s - time.perf_counter()) > 0:
            gevent.sleep(left_s)


@contextmanager
def _logged(what: str) -> Iterator[None]:
    """Write an error into locust's log and go on: what is missing in the records then spoils the verdict."""
    try:
        yield
    except Exception:
        logger.exception(what)


def _with_pauses(lines: list[tuple[float, bytes]]) -> Iterator[tuple[float, bytes]]:
    """Give way to other streams between lines: parsing a long answer at once would make their stamps late."""
    for position, line in enumerate(lines):
        if position % LINES_PER_PAUSE == LINES_PER_PAUSE - 1:
            gevent.sleep(0)
        yield line


events.init.add_listener(_coordinate)  # type: ignore[no-untyped-call]
