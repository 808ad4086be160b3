"""Asks an OpenAI-compatible endpoint one question, timed and streaming; knows nothing of datasets and verdicts."""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import aiohttp

from evals.concurrency import Concurrency
from evals.config import ConfigError, RunConfig
from evals.dialect import GREEDY, REFUSALS, Dialect, Wanted
from evals.retry import come_again_s, pause
from loadtest.latency import StreamTimes
from loadtest.wire import StreamOutcome, Usage, error_message, read_stream

READ_BUFFER = 16 << 20  # one line of a stream must fit into it
LOADING, READY_POLL_S = frozenset({"starting", "restarting"}), 0.25


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back. `error` says why the answer is none, or not whole; `attempts` counts the requests sent.

    times: None where nobody measured any, as of a recorded answer.
    refused_status: the status by which the last request was refused; None where it was not, or nobody answered.
    logprob: the sum of the log probabilities of `logprob_tokens` tokens, where the server told them.
    nobody: there was no connection, or it broke.
    """

    text: str
    finish_reason: str | None
    error: str | None
    usage: Usage | None
    times: StreamTimes | None
    attempts: int
    refused_status: int | None
    logprob: float | None = None
    logprob_tokens: int | None = None
    nobody: bool = False


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What the endpoint says of the model; `kind` is "unknown" and the others None where it says nothing.

    computation: number format and kind of device, e.g. "bfloat16 on cuda".
    """

    kind: str
    max_context_tokens: int | None
    weights_digest: str | None
    computation: str | None


@dataclass(frozen=True, slots=True)
class Asking:
    """One sample that wants an answer: what tells it from others, and what a server is sent.

    salt, seed: as `Wanted` has them.
    """

    dataset: str
    condition: str
    permission: str
    budget: int
    question_id: str
    question: str
    messages: Sequence[dict[str, str]]
    salt: str | None = None
    seed: int | None = None


class Answerer(Protocol):
    """Whoever answers: a server (`Served`), or a file of what one answered before (evals/replay.py)."""

    async def find_model(self) -> ServedModel: ...

    async def ask(self, asking: Asking) -> Answer | None:
        """None where no answer is recorded."""
        ...


@dataclass(frozen=True, slots=True)
class Served:
    """A server that answers over HTTP."""

    session: aiohttp.ClientSession
    config: RunConfig
    dialect: Dialect
    concurrency: Concurrency

    async def find_model(self) -> ServedModel:
        return await fetch_model(self.session, self.config)

    async def ask(self, asking: Asking) -> Answer:
        wanted, turns = Wanted(asking.salt, asking.seed), self.concurrency
        return await ask(self.session, self.config, self.dialect, asking.messages, wanted, concurrency=turns)


@dataclass(frozen=True, slots=True)
class _Attempt:
    outcome: StreamOutcome | None
    error: str | None
    again_after_s: float | None  # None: asking again would give the same
    times: StreamTimes
    refused_status: int | None = None
    refusal: bytes = b""
    nobody: bool = False


def open_session(config: RunConfig) -> aiohttp.ClientSession:
    headers = {"Authorization": f"Bearer {config.api_key}"} if config.api_key else {}
    return aiohttp.ClientSession(
        headers=headers,
        read_bufsize=READ_BUFFER,
        timeout=aiohttp.ClientTimeout(total=config.timeout_s),
        connector=aiohttp.TCPConnector(limit=0),
        cookie_jar=aiohttp.DummyCookieJar(),
    )


async def fetch_model(session: aiohttp.ClientSession, config: RunConfig) -> ServedModel:
    """Look the model up in /v1/models, and wait while the endpoint says that it is loading it.

    Raises:
        ConfigError: nothing answers, the model is not served, or it does not become ready.
    """
    deadline_s = time.monotonic() + config.timeout_s
    while True:
        entry = await _find_model(session, config)
        extra = entry.get("fathom")
        extra = extra if isinstance(extra, dict) else {}
        state = extra.get("state", "ready")
        if state not in LOADING:
            break
        if time.monotonic() > deadline_s:
            raise ConfigError(f"--model {config.model!r} is still {state} after --timeout {config.timeout_s:g}")
        await asyncio.sleep(READY_POLL_S)
    if state != "ready":
        raise ConfigError(f"--model {config.model!r} is {state}; the server's log says why")
    limit = extra.get("max_context_tokens", entry.get("max_model_len"))
    digest = extra.get("weights_digest")
    return ServedModel(
        kind=str(extra.get("kind") or "unknown"),
        max_context_tokens=limit if isinstance(limit, int) else None,
        weights_digest=digest if isinstance(digest, str) and digest else None,
        computation=_computation(extra.get("dtype"), extra.get("device")),
    )


def _computation(dtype: object, device: object) -> str | None:
    """Which one of several equal devices it is does not matter."""
    if not isinstance(dtype, str) or not isinstance(device, str):
        return None
    return f"{dtype} on {device.partition(':')[0]}"


async def _find_model(session: aiohttp.ClientSession, config: RunConfig) -> dict[str, Any]:
    """The model's entry; an empty one where the endpoint has no list of models."""
    url = config.target.models_url
    if url is None:
        return {}
    try:
        status, raw = await _get_patiently(session, url, config.max_attempts)
        if status == 404:
            return {}
        if status != 200:
            raise ConfigError(f"--endpoint: {url} answers {status}: {error_message(raw)}")
        content = json.loads(raw)
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        raise ConfigError(f"--endpoint: {url} gives no list of models: {type(error).__name__}: {error}") from error
    # Some servers give the bare list.
    entries = content.get("data") if isinstance(content, dict) else content
    entries = entries if isinstance(entries, list) else []
    models = {str(entry.get("id")): entry for entry in entries if isinstance(entry, dict)}
    # Google lists "models/NAME", and is asked for NAME.
    entry = models.get(config.model) or models.get(f"models/{config.model}")
    if entry is None:
        raise ConfigError(f"--model {config.model!r} is not served there; there are: {', '.join(models)}")
    return entry


async def _get_patiently(session: aiohttp.ClientSession, url: str, max_attempts: int) -> tuple[int, bytes]:
    """Status and body; asked for again while the server says to come later. Nobody there is said at once."""
    num_failures = 0
    while True:
        async with session.get(url) as answer:
            raw = await answer.read()
        num_failures += 1
        again_after_s = come_again_s(answer)
        if again_after_s is None or num_failures == max_attempts:
            return answer.status, raw
        await pause(num_failures, again_after_s)


async def ask(
    session: aiohttp.ClientSession,
    config: RunConfig,
    dialect: Dialect,
    messages: Sequence[dict[str, str]],
    wanted: Wanted = GREEDY,
    *,
    concurrency: Concurrency | None = None,
) -> Answer:
    """Ask, and ask again while the server says to come later or cannot be reached, or would take other fields.

    Args:
        concurrency: whose turns are waited for; none waits for nobody.
    """
    concurrency = concurrency or Concurrency(1)
    attempts, num_failures = 0, 0
    while True:
        body = dialect.body(config, messages, wanted)
        async with concurrency.request() as turn:
            attempt = await _attempt(session, config.target.chat_url, body)
            turn.answered = attempt.error is None
            turn.refused = attempt.again_after_s is not None
            turn.pause_s = attempt.again_after_s or 0.0
        attempts += 1
        if attempt.refused_status in REFUSALS:
            dialect.learn(attempt.refusal, wanted)
            # Compared with what was sent: another request may have learned it meanwhile.
            if dialect.body(config, messages, wanted) != body:
                continue
        num_failures += 1
        if attempt.again_after_s is None or num_failures == config.max_attempts:
            break
        await pause(num_failures, attempt.again_after_s)
    outcome = attempt.outcome
    return Answer(
        text=outcome.text if outcome else "",
        finish_reason=outcome.finish_reason if outcome else None,
        error=attempt.error,
        usage=outcome.usage if outcome else None,
        times=attempt.times,
        attempts=attempts,
        refused_status=attempt.refused_status,
        logprob=outcome.logprob if outcome else None,
        logprob_tokens=outcome.logprob_tokens if outcome else None,
        nobody=attempt.nobody,
    )


async def _attempt(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> _Attempt:
    lines: list[tuple[float, bytes]] = []
    sent_s = time.perf_counter()
    try:
        async with session.post(url, json=body) as answer:
            if answer.status != 200:
                raw = await answer.read()
                error = f"status {answer.status}: {error_message(raw)}"
                times = StreamTimes(None, sent_s, (), time.perf_counter())
                return _Attempt(None, error, come_again_s(answer), times, answer.status, raw)
            async for line in answer.content:
                # Stamped before anything else is done with it.
                lines.append((time.perf_counter(), line))
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        # aiohttp raises ValueError for a line that is longer than its buffer.
        times = StreamTimes(None, sent_s, (), time.perf_counter())
        nobody = isinstance(error, aiohttp.ClientConnectionError)
        return _Attempt(None, f"{type(error).__name__}: {error}", 0.0, times, nobody=nobody)
    outcome = read_stream(lines)
    times = StreamTimes(None, sent_s, outcome.token_times_s, time.perf_counter())
    return _Attempt(outcome, outcome.error, None if outcome.error is None else 0.0, times)
