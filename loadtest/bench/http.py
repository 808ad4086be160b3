"""A contender behind an OpenAI-compatible address: a server process, and streamed completions of it."""

import itertools
import json
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from loadtest.bench.child import Child, Limit
from loadtest.bench.exchange import Answer, ContenderError, CutError, Question
from loadtest.bench.vocabulary import Words
from loadtest.client import COMPLETIONS_PATH, Exchange, Target, stream_chat
from loadtest.config import EndpointError
from loadtest.endpoint import call
from loadtest.latency import StreamTimes
from loadtest.wire import read_stream

POLL_S = 0.2
DEATH_S = 1.0
HEALTH_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a server wants to be asked.

    Attributes:
        model: the name in its requests.
        as_text: prompts go as text, because it takes no ids.
        fields: what its requests hold besides the usual.
    """

    model: str
    as_text: bool = False
    fields: Mapping[str, Any] = field(default_factory=dict)

    def body(self, question: Question) -> bytes:
        if self.as_text and question.text is None:
            raise ContenderError("takes text only, and no text is cut into these tokens")
        prompt = question.text if self.as_text else list(question.tokens)
        common = {"model": self.model, "max_tokens": question.max_tokens, "temperature": 0, "stream": True}
        return json.dumps({"prompt": prompt, **common, **self.fields}).encode()


class Server:
    """A server that is started on a free port and asked over HTTP.

    Args:
        command: what starts it on the port that it is given.
        words: cuts the text of answers into tokens.
    """

    def __init__(
        self,
        command: Callable[[int], list[str]],
        dialect: Dialect,
        words: Words,
        *,
        log: Path,
        env: Mapping[str, str],
        start_s: float,
    ) -> None:
        self.child: Child | None = None
        self._command, self._dialect, self._words = command, dialect, words
        self._log, self._env, self._start_s = log, env, start_s
        self._target = Target.parse("http://127.0.0.1")

    def start(self) -> None:
        port = _free_port()
        self._target = Target.parse(f"http://127.0.0.1:{port}")
        self.child = Child(self._command(port), env=self._env, log=self._log)
        deadline_s = time.monotonic() + self._start_s
        while not self._is_healthy():
            if not self.child.running:
                raise ContenderError(f"does not start: {self.child.last_words()}")
            if time.monotonic() > deadline_s:
                raise ContenderError(f"does not start within {self._start_s:.0f} s: {self.child.last_words()}")
            time.sleep(POLL_S)

    def ask(self, questions: Sequence[Question], *, concurrency: int, limit_s: float) -> list[Answer]:
        assert self.child is not None
        bodies = [self._dialect.body(question) for question in questions]
        exchanges = [Exchange() for _ in bodies]
        limit = Limit(self.child, limit_s)
        started_s = time.perf_counter()
        try:
            with ThreadPoolExecutor(concurrency) as pool:
                self._send_all(pool, bodies, exchanges)
        finally:
            limit.cancel()
        if limit.reached:
            raise CutError(time.perf_counter() - started_s)
        return [self._read(*pair) for pair in zip(questions, exchanges, strict=True)]

    def tune(self, questions: Sequence[Question], *, concurrency: int, limit_s: float) -> None:
        self.ask(questions, concurrency=concurrency, limit_s=limit_s)

    def _send_all(self, pool: ThreadPoolExecutor, bodies: list[bytes], exchanges: list[Exchange]) -> None:
        try:
            list(pool.map(self._send, bodies, exchanges))
        except KeyboardInterrupt:
            # The pool waits for its threads, and they wait for answers that nobody wants any more.
            pool.shutdown(wait=False, cancel_futures=True)
            assert self.child is not None
            self.child.kill()
            raise

    def _send(self, body: bytes, exchange: Exchange) -> None:
        stream_chat(self._target, body, exchange, path=COMPLETIONS_PATH)

    def _is_healthy(self) -> bool:
        try:
            return call(replace(self._target, timeout_s=HEALTH_TIMEOUT_S), "GET", "/health").status == 200
        except EndpointError:
            return False

    def _read(self, question: Question, exchange: Exchange) -> Answer:
        """An answer, checked: of a race it is worth nothing if it is shorter than the others'."""
        stream = read_stream(exchange.lines)
        if exchange.failure is not None or stream.error is not None:
            wrong = stream.error if exchange.failure is None else exchange.failure.message
            assert self.child is not None
            died = f"; it died: {self.child.last_words()}" if self.child.dies_within(DEATH_S) else ""
            raise ContenderError(f"fails a request: {wrong}{died}")
        ids = tuple(self._words.cut(stream.text))
        usage = stream.usage
        num_tokens = len(ids) if usage is None else usage.completion_tokens
        if num_tokens != question.max_tokens:
            raise ContenderError(f"answers {num_tokens} tokens where {question.max_tokens} were asked for")
        if usage is not None and usage.prompt_tokens != len(question.tokens):
            raise ContenderError(f"reads {usage.prompt_tokens} tokens where {len(question.tokens)} were sent")
        assert exchange.sent_s is not None
        assert exchange.end_s is not None
        times = StreamTimes(None, exchange.sent_s, stream.token_times_s, exchange.end_s)
        return Answer(times, num_tokens, ids, None if usage is None else usage.cached_tokens)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def same_beginning(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens two answers share before they part."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False)))
