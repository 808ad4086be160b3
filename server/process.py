"""The API process's end of an engine: starts it, talks to it, notices its death at once, starts it again."""

import asyncio
import contextlib
import itertools
import logging
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Literal

import msgspec
import zmq
import zmq.asyncio

from server.config import EngineConfig
from server.messages import Abort, Add, AskStats, Failure, Outputs, Ready, Stats, Stop, ToEngine, encode, from_engine
from server.request import EngineInfo, EngineRequest, EngineStats, TokenOutput

EngineState = Literal["starting", "ready", "restarting", "failed", "stopped"]

FIRST_BACKOFF_S = 0.2
MAX_BACKOFF_S = 10.0
STOP_TIMEOUT_S = 5.0
STATS_TIMEOUT_S = 5.0

log = logging.getLogger("fathom.supervisor")


class EngineError(Exception):
    """Why a request got no (complete) answer.

    EngineError
    ├── QueueFullError          too many requests are open; come again later
    ├── EngineUnavailableError  the engine is starting, restarting or has failed
    ├── EngineDiedError         the engine's process ended while it worked on the request
    └── RequestTooLongError     the request can never fit
    """


class QueueFullError(EngineError):
    def __init__(self, limit: int, retry_after_s: float) -> None:
        super().__init__(f"{limit} requests are open already, the most that are accepted")
        self.limit = limit
        self.retry_after_s = retry_after_s


class EngineUnavailableError(EngineError):
    def __init__(self, state: EngineState, retry_after_s: float, reason: str | None = None) -> None:
        super().__init__(f"the engine is {state}" + (f": {reason}" if reason else ""))
        self.state = state
        self.retry_after_s = retry_after_s


class EngineDiedError(EngineError):
    pass


class RequestTooLongError(EngineError):
    def __init__(self, num_tokens: int, limit: int) -> None:
        super().__init__(f"{num_tokens} tokens, with those to generate, do not fit into the context of {limit}")
        self.num_tokens = num_tokens
        self.limit = limit


class EngineClient:
    """One hosted model: its engine process and the requests that are open with it."""

    def __init__(self, model: str, directory: Path, config: EngineConfig) -> None:
        self.model = model
        self._directory = directory
        self._config = config
        self.state: EngineState = "starting"
        self.last_error: str | None = None
        self.info: EngineInfo | None = None
        self.plan: str | None = None
        self.stats = EngineStats()
        self.num_restarts = 0
        self._open: dict[str, asyncio.Queue[TokenOutput | EngineError]] = {}
        self._asked: dict[int, asyncio.Future[EngineStats]] = {}
        self._numbers = itertools.count(1)
        self._process: asyncio.subprocess.Process | None = None
        self._settled = asyncio.Event()
        self._supervisor: asyncio.Task[None] | None = None
        self._to_engine: zmq.asyncio.Socket | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process and self._process.returncode is None else None

    @property
    def num_open(self) -> int:
        return len(self._open)

    async def start(self) -> None:
        """Start the process and its supervision; returns at once."""
        self._supervisor = asyncio.create_task(self._supervise(), name=f"supervise {self.model}")

    async def wait_ready(self, timeout_s: float) -> EngineInfo:
        """Wait until the engine serves.

        Raises:
            EngineUnavailableError: it has failed for good, or is not ready in time.
        """
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._settled.wait(), timeout_s)
        if self.state != "ready" or self.info is None:
            raise EngineUnavailableError(self.state, FIRST_BACKOFF_S, self.last_error)
        return self.info

    async def generate(self, request: EngineRequest) -> AsyncGenerator[TokenOutput, None]:
        """Outputs of one request, the last with a finish reason. Closing the iterator aborts the request.

        Raises:
            RequestTooLongError, QueueFullError, EngineUnavailableError: before the first output; not accepted.
            EngineDiedError: on the way.
        """
        self._refuse_or_pass(request)
        outputs: asyncio.Queue[TokenOutput | EngineError] = asyncio.Queue()
        self._open[request.request_id] = outputs
        ended = False
        try:
            await self._send(Add(request))
            while not ended:
                output = await outputs.get()
                if isinstance(output, EngineError):
                    ended = True
                    raise output
                ended = output.finish_reason is not None
                yield output
        finally:
            self._open.pop(request.request_id, None)
            if not ended:
                await self._send(Abort(request.request_id))

    async def abort(self, request_id: str) -> None:
        """End an open request early: its iterator still gives the last output, with the usage."""
        await self._send(Abort(request_id))

    async def fetch_stats(self) -> EngineStats:
        """Ask the engine where it stands now; what was last known if it does not answer."""
        if self.state == "ready":
            number = next(self._numbers)
            answer = asyncio.get_running_loop().create_future()
            self._asked[number] = answer
            try:
                await self._send(AskStats(number))
                self.stats = await asyncio.wait_for(answer, STATS_TIMEOUT_S)
            except TimeoutError:
                log.warning("%s: no statistics within %s s", self.model, STATS_TIMEOUT_S)
            finally:
                self._asked.pop(number, None)
        return self.stats

    async def stop(self) -> None:
        """End the process, kindly first; open requests fail."""
        self.state = "stopped"
        if self._process and self._process.returncode is None:
            await self._send(Stop())
            try:
                await asyncio.wait_for(self._process.wait(), STOP_TIMEOUT_S)
            except TimeoutError:
                self._process.kill()
        if self._supervisor:
            self._supervisor.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._supervisor
        self._fail_open(EngineDiedError("the server is shutting down"))

    def _refuse_or_pass(self, request: EngineRequest) -> None:
        if self.state != "ready" or self.info is None:
            raise EngineUnavailableError(self.state, FIRST_BACKOFF_S * 5, self.last_error)
        num_tokens = len(request.token_ids) + request.params.max_tokens
        if num_tokens > self.info.max_context_tokens:
            raise RequestTooLongError(num_tokens, self.info.max_context_tokens)
        limit = self._config.max_running + self._config.max_queue
        if len(self._open) >= limit:
            raise QueueFullError(limit, 1.0)

    async def _send(self, message: ToEngine) -> None:
        if self._to_engine is not None:
            await self._to_engine.send(encode(message))

    async def _supervise(self) -> None:
        """Keep an engine running until stopped or failed for good."""
        backoff_s = FIRST_BACKOFF_S
        while self.state != "failed":
            started = time.monotonic()
            error = await self._run_once()
            # Requests that were open when the process ended can never be answered.
            self._fail_open(EngineDiedError(f"the engine of {self.model} ended: {error}"))
            if self.state in ("stopped", "failed"):
                break
            self.last_error = error
            self.state = "restarting"
            self._settled.clear()
            self.num_restarts += 1
            log.error("%s: %s; starting again in %.1f s", self.model, error, backoff_s)
            if time.monotonic() - started > 60:
                backoff_s = FIRST_BACKOFF_S
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)
        self._settled.set()

    async def _run_once(self) -> str:
        """One life of the process, from its start to its end; returns why it ended."""
        # Sockets are made anew for every life: nothing that was meant for a dead engine reaches the next.
        scratch = tempfile.mkdtemp(prefix="fathom-")
        context = zmq.asyncio.Context()
        inbox, outbox = f"ipc://{scratch}/to-engine", f"ipc://{scratch}/from-engine"
        self._to_engine = context.socket(zmq.PUSH)
        self._to_engine.bind(inbox)
        receiver = context.socket(zmq.PULL)
        receiver.bind(outbox)
        reader: asyncio.Task[None] | None = None
        try:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "server.engine_process",
                f"--model={self.model}",
                f"--directory={self._directory}",
                f"--config={msgspec.json.encode(self._config).decode()}",
                f"--inbox={inbox}",
                f"--outbox={outbox}",
            )
            reader = asyncio.create_task(self._read(receiver))
            code = await self._process.wait()
            # What the engine said last (its failure, its last tokens) may still be on the way.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(reader), 0.2)
            return self.last_error if self.state == "failed" and self.last_error else f"exit code {code}"
        finally:
            if self._process and self._process.returncode is None:
                self._process.kill()
            if reader:
                reader.cancel()
            self._to_engine = None
            context.destroy(linger=0)
            shutil.rmtree(scratch, ignore_errors=True)

    async def _read(self, receiver: zmq.asyncio.Socket) -> None:
        while True:
            self._handle(from_engine.decode(await receiver.recv()))

    def _handle(self, message: Ready | Outputs | Stats | Failure) -> None:
        match message:
            case Ready(info, plan):
                self.info, self.plan = info, plan
                self.state = "ready"
                self.last_error = None
                self._settled.set()
            case Outputs(outputs):
                for request_id, output in outputs:
                    # A request that was closed meanwhile has no queue any more.
                    if request_id in self._open:
                        self._open[request_id].put_nowait(output)
            case Stats(number, stats):
                self.stats = stats
                if number in self._asked and not self._asked[number].done():
                    self._asked[number].set_result(stats)
            case Failure(error, final):
                self.last_error = error
                if final:
                    self.state = "failed"

    def _fail_open(self, error: EngineError) -> None:
        for outputs in self._open.values():
            outputs.put_nowait(error)
