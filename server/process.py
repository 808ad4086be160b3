"""The API process's end of an engine: the requests that are open with it, and its supervision."""

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path

from server.answers import Answered, Answers
from server.backlog import Backlog
from server.config import EngineConfig
from server.engine_child import EngineChild
from server.engine_errors import (
    DeadlineExceededError,
    EngineBusyError,
    EngineDiedError,
    EngineError,
    EngineState,
    EngineUnavailableError,
    QueueFullError,
    QueueTokensFullError,
    RequestTooLongError,
    TooManyAtOnceError,
)
from server.messages import (
    Abort,
    Add,
    Answer,
    AskCache,
    AskStats,
    Cache,
    ClearCache,
    Cleared,
    Failure,
    FromEngine,
    Outputs,
    Question,
    Ready,
    Stats,
)
from server.request import CacheContent, CacheFreed, EngineInfo, EngineRequest, EngineStats, TokenOutput

__all__ = [
    "DeadlineExceededError",
    "EngineBusyError",
    "EngineClient",
    "EngineDiedError",
    "EngineError",
    "EngineState",
    "EngineUnavailableError",
    "QueueFullError",
    "QueueTokensFullError",
    "RequestTooLongError",
    "TooManyAtOnceError",
]

FIRST_BACKOFF_S = 0.2
MAX_BACKOFF_S = 10.0
LONG_LIFE_S = 60.0
RETRY_AFTER_S = 1.0
STATS_TIMEOUT_S = 5.0
CACHE_TIMEOUT_S = 30.0

log = logging.getLogger("fathom.supervisor")


class EngineClient:
    """One hosted model: its engine process and the requests that are open with it.

    `last_error` is why the engine last ended, until it serves again. `num_failed` counts the requests that an
    engine's end left without a complete answer.
    """

    def __init__(self, model: str, directory: Path, config: EngineConfig) -> None:
        self.model = model
        self._config = config
        self.state: EngineState = "starting"
        self.last_error: str | None = None
        self.info: EngineInfo | None = None
        self.plan: str | None = None
        self.stats = EngineStats()
        self.num_restarts = 0
        self.num_failed = 0
        self._backlog = Backlog(config.max_queue_tokens)
        self._open: dict[str, Answers] = {}
        self._asked: dict[int, asyncio.Future[Answer | None]] = {}
        self._numbers = itertools.count(1)
        self._child = EngineChild(model, directory, config, on_message=self._handle)
        self._ready_s: float | None = None
        self._reason: str | None = None
        self._settled = asyncio.Event()
        self._supervisor: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        return self._child.pid

    @property
    def num_open(self) -> int:
        return len(self._open)

    @property
    def num_queued_tokens(self) -> int:
        """Prompt tokens of the requests that the engine has not begun with; a prompt counts once for all of `n`."""
        return self._backlog.num_tokens

    async def start(self) -> None:
        """Start the process and its supervision; returns at once. For once only."""
        if self._supervisor is not None:
            raise RuntimeError(f"the engine of {self.model} was started before")
        self._supervisor = asyncio.create_task(self._supervise(), name=f"supervise {self.model}")
        self._supervisor.add_done_callback(self._end_supervision)

    async def wait_ready(self, timeout_s: float) -> EngineInfo:
        """Wait until the engine serves.

        Raises:
            EngineUnavailableError: it has failed for good, was stopped, or is not ready in time.
        """
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._settled.wait(), timeout_s)
        if self.state != "ready" or self.info is None:
            raise EngineUnavailableError(self.state, RETRY_AFTER_S, self.last_error)
        return self.info

    async def generate(self, *requests: EngineRequest, num_prompts: int = 1) -> AsyncGenerator[list[Answered], None]:
        """Outputs of some requests as they come, each with its request's place; each's last has a finish reason.

        They are accepted together or not at all, and closing the iterator aborts those that have not ended.

        Args:
            requests: as many of each prompt, one prompt's after the other's.
        Raises:
            RequestTooLongError, TooManyAtOnceError, QueueFullError, QueueTokensFullError, EngineUnavailableError:
                before the first output; none is accepted.
            EngineDiedError: on the way.
            ValueError: a request of one of the ids is open.
        """
        # The others find what each prompt's first computes.
        firsts = requests[:: len(requests) // num_prompts]
        self._refuse_or_pass(requests, firsts)
        request_ids = [request.request_id for request in requests]
        answers = Answers(request_ids)
        self._open |= dict.fromkeys(request_ids, answers)
        for first in firsts:
            self._backlog.add(first.request_id, len(first.token_ids))
        try:
            if not all(self._child.send(Add(request)) for request in requests):
                # It has just ended, and this is the first to notice.
                raise EngineUnavailableError("restarting", RETRY_AFTER_S, self.last_error)
            num_left = len(requests)
            while num_left:
                outputs = await answers.take()
                num_left -= sum(output.finish_reason is not None for _, output in outputs)
                yield outputs
        finally:
            # Those that were answered in full, or that the engine's end has failed, are open no longer.
            for request_id in request_ids:
                self._backlog.leave(request_id)
                if self._open.get(request_id) is answers:
                    del self._open[request_id]
                    self._child.send(Abort(request_id))

    async def abort(self, request_id: str) -> None:
        """End an open request early: its iterator still gives the last output, with the usage."""
        self._child.send(Abort(request_id))

    async def fetch_stats(self) -> EngineStats:
        """Ask the engine where it stands now; what was last known if it does not answer."""
        await self._ask(AskStats(next(self._numbers)), STATS_TIMEOUT_S)
        return self.stats

    async def fetch_cache(self, limit: int) -> CacheContent:
        """What the engine keeps for prompts that begin alike; of its entries the `limit` used last.

        Raises:
            EngineUnavailableError, EngineBusyError
        """
        answer = await self._ask(AskCache(next(self._numbers), limit), CACHE_TIMEOUT_S)
        if isinstance(answer, Cache):
            return answer.content
        raise self._no_answer()

    async def clear_cache(self) -> CacheFreed:
        """Have the engine give up what it keeps and no running sequence uses.

        Raises:
            EngineUnavailableError, EngineBusyError
        """
        answer = await self._ask(ClearCache(next(self._numbers)), CACHE_TIMEOUT_S)
        if isinstance(answer, Cleared):
            return answer.freed
        raise self._no_answer()

    async def stop(self) -> None:
        """End the process, kindly first; open requests fail. Nothing starts it again."""
        self.state = "stopped"
        self._fail_open("the server is shutting down")
        await self._child.stop()
        if self._supervisor:
            self._supervisor.cancel()
            await asyncio.wait((self._supervisor,))
        self._settled.set()

    async def _ask(self, question: Question, timeout_s: float) -> Answer | None:
        """The engine's answer; None if it is not there, or ends, or is silent for too long."""
        if self.state != "ready" or not self._child.send(question):
            return None
        answer = self._asked[question.number] = asyncio.get_running_loop().create_future()
        try:
            return await asyncio.wait_for(answer, timeout_s)
        except TimeoutError:
            log.warning("%s: no answer to %s within %s s", self.model, type(question).__name__, timeout_s)
            return None
        finally:
            self._asked.pop(question.number, None)

    def _no_answer(self) -> EngineError:
        if self.state == "ready":
            return EngineBusyError(CACHE_TIMEOUT_S)
        return EngineUnavailableError(self.state, RETRY_AFTER_S, self.last_error)

    def _refuse_or_pass(self, requests: Sequence[EngineRequest], firsts: Sequence[EngineRequest]) -> None:
        if self.state != "ready" or self.info is None:
            raise EngineUnavailableError(self.state, RETRY_AFTER_S, self.last_error)
        for request in requests:
            if request.request_id in self._open:
                raise ValueError(f"request id {request.request_id!r} is in use")
            num_tokens = len(request.token_ids) + request.params.max_tokens
            if num_tokens > self.info.max_context_tokens:
                raise RequestTooLongError(num_tokens, self.info.max_context_tokens)
        limit = self._config.max_running + self._config.max_queue
        if len(requests) > limit:
            raise TooManyAtOnceError(len(requests), limit, num_prompts=len(firsts))
        num_open = len(self._open)
        if num_open + len(requests) > limit:
            asked = {"num_asked": len(requests), "num_prompts": len(firsts)}
            raise QueueFullError(limit, RETRY_AFTER_S, num_open=num_open, **asked)
        self._backlog.refuse_or_pass(sum(len(first.token_ids) for first in firsts), RETRY_AFTER_S)

    async def _supervise(self) -> None:
        """Keep an engine running until stopped or failed for good."""
        backoff_s = FIRST_BACKOFF_S
        while await self._live_once():
            if self._ready_s is not None and time.monotonic() - self._ready_s > LONG_LIFE_S:
                backoff_s = FIRST_BACKOFF_S
            log.error("%s: %s; starting again in %.1f s", self.model, self.last_error, backoff_s)
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)
            self.num_restarts += 1

    def _end_supervision(self, supervisor: asyncio.Task[None]) -> None:
        """However supervision ends, nobody may be left waiting for an engine that nobody will start."""
        error = None if supervisor.cancelled() else supervisor.exception()
        if error is not None:
            self.last_error = f"its supervision failed: {error!r}"
            log.error("%s: %s", self.model, self.last_error, exc_info=error)
        if self.state != "stopped":
            self.state = "failed"
        self._fail_open(f"the engine of {self.model} is {self.state}: {self.last_error}")
        self._settled.set()

    async def _live_once(self) -> bool:
        """One life of the process, from its start to its end; True if it shall be started again."""
        self._ready_s = None
        self._reason = None
        try:
            ended = await self._child.live()
        except OSError as error:
            ended = f"it cannot be started: {error}"
        if self.state == "stopped":
            return False
        # What the engine itself said last tells more than its exit code.
        self.last_error = self._reason or ended
        if self.state != "failed":
            self.state = "restarting"
            self._settled.clear()
        # Requests that were open when the process ended can never be answered.
        self._fail_open(f"the engine of {self.model} ended: {self.last_error}")
        self.stats = EngineStats()
        return self.state != "failed"

    def _handle(self, message: FromEngine) -> None:
        match message:
            case Ready(info, plan):
                self._become_ready(info, plan)
            case Outputs(outputs, begun):
                for request_id in begun:
                    self._backlog.leave(request_id)
                for request_id, output in outputs:
                    self._hand_on(request_id, output)
            case Stats(stats=stats):
                self.stats = stats
                self._take_answer(message)
            case Cache() | Cleared():
                self._take_answer(message)
            case Failure(error, final):
                self._reason = error
                if final and self.state != "stopped":
                    self.state = "failed"

    def _take_answer(self, answer: Answer) -> None:
        waiting = self._asked.get(answer.number)
        if waiting is not None and not waiting.done():
            waiting.set_result(answer)

    def _become_ready(self, info: EngineInfo, plan: str) -> None:
        if self.state == "stopped":
            return
        self.info, self.plan = info, plan
        self.state = "ready"
        self.last_error = None
        self._ready_s = time.monotonic()
        self._settled.set()

    def _hand_on(self, request_id: str, output: TokenOutput) -> None:
        self._backlog.leave(request_id)
        # A request that was closed meanwhile is open no more; nor is one that is answered in full.
        answers = self._open.get(request_id) if output.finish_reason is None else self._open.pop(request_id, None)
        if answers is not None:
            answers.put(request_id, output)

    def _fail_open(self, reason: str) -> None:
        """Tell every open request that its answer will never be complete."""
        failed, self._open = self._open, {}
        self.num_failed += len(failed)
        self._backlog.clear()
        for answers in failed.values():
            answers.fail(EngineDiedError(reason))
        for answer in self._asked.values():
            if not answer.done():
                answer.set_result(None)
