"""One request as it was planned and as it went: raw instants, from which every metric is derived later.

Instants are seconds since the start of the run, on one monotonic clock.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from loadtest.client import Exchange
from loadtest.latency import StreamTimes
from loadtest.wire import StreamOutcome, read_stream

Outcome = Literal["completed", "failed", "unfinished"]
LOST = "lost"


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """One arrival. `prompt_tokens` is what the prompt was counted or estimated to hold."""

    index: int
    scheduled_s: float
    prompt_tokens: int
    body: str


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """What became of one arrival.

    Attributes:
        dispatched_s: when the client began to work on it; minus scheduled_s it is the client's own lag. None =
            unknown, of a lost request.
        connect_s: when it began to connect, after the wait under --max-in-flight; None = it still waited.
        sent_s: just before the request was written, on an open connection; None = never sent.
        headers_s: arrival of status and headers.
        token_times_s: arrival of each chunk with non-empty output.
        end_s: end of the answer, or when it failed, or when the client stopped waiting (outcome unfinished);
            of a lost request its scheduled time.
        error_kind: connect, disconnected, client_limit, client_error, http_<status>, stream_error, cut_off,
            unfinished or lost.
        prompt_tokens, completion_tokens, cached_tokens: the server's usage; None where it gave none.
    """

    index: int
    worker: int
    scheduled_s: float
    dispatched_s: float | None
    connect_s: float | None
    sent_s: float | None
    headers_s: float | None
    token_times_s: tuple[float, ...]
    end_s: float
    outcome: Outcome
    status: int | None
    error_kind: str | None
    error: str | None
    finish_reason: str | None
    planned_prompt_tokens: int
    prompt_tokens: int | None
    completion_tokens: int | None
    cached_tokens: int | None
    fathom: dict[str, Any] | None
    saw_done: bool

    @property
    def times(self) -> StreamTimes | None:
        """None when nothing was sent."""
        if self.sent_s is None:
            return None
        return StreamTimes(self.scheduled_s, self.sent_s, self.token_times_s, self.end_s)


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Who worked on a request and since when; `origin_s` is the run's start on the raw clock."""

    planned: PlannedRequest
    worker: int
    origin_s: float
    dispatched_s: float


def finished_record(dispatch: Dispatch, exchange: Exchange, lines: Iterable[tuple[float, bytes]]) -> RequestRecord:
    """The record of a request that ended, well or not. `lines` are the exchange's.

    The caller may hand them over in its own time, to let other streams be stamped in between. A stream that
    closes without [DONE] after its finish_reason is complete.
    """
    stream = read_stream(lines)
    failure, kind, message = exchange.failure, None, stream.error
    if failure is not None and stream.finish_reason is None:
        kind, message = failure.kind, failure.message
    elif message is not None:
        kind = "cut_off" if stream.cut_off else "stream_error"
    outcome: Outcome = "completed" if kind is None else "failed"
    return _record(dispatch, exchange, stream, outcome=outcome, error_kind=kind, error=message)


def unfinished_record(dispatch: Dispatch, exchange: Exchange, *, now_s: float) -> RequestRecord:
    """The censored record of a request that the client stopped waiting for; `now_s` is on the raw clock."""
    age_s = now_s - dispatch.origin_s - dispatch.planned.scheduled_s
    return _record(
        dispatch,
        exchange,
        read_stream(exchange.lines),
        outcome="unfinished",
        error_kind="unfinished",
        error=f"unfinished {age_s:.3f} s after its scheduled time",
        end_s=now_s,
    )


def broken_record(dispatch: Dispatch, exchange: Exchange, error: Exception, *, now_s: float) -> RequestRecord:
    """The record of a request that the client itself could not handle: a defect must not make it vanish."""
    text = f"{type(error).__name__}: {error}".encode("utf-8", errors="replace").decode()
    return _record(
        dispatch,
        exchange,
        read_stream(()),
        outcome="failed",
        error_kind="client_error",
        error=text,
        end_s=now_s,
    )


def lost_record(planned: PlannedRequest, *, worker: int) -> RequestRecord:
    """Stands for a request that was to be sent and of which no record exists."""
    dispatch = Dispatch(planned, worker, origin_s=0.0, dispatched_s=planned.scheduled_s)
    record = _record(
        dispatch,
        Exchange(),
        read_stream(()),
        outcome="failed",
        error_kind=LOST,
        error="the client left no record of this request",
        end_s=planned.scheduled_s,
    )
    return replace(record, dispatched_s=None)


def _record(
    dispatch: Dispatch,
    exchange: Exchange,
    stream: StreamOutcome,
    *,
    outcome: Outcome,
    error_kind: str | None,
    error: str | None,
    end_s: float | None = None,
) -> RequestRecord:
    planned, origin_s, usage = dispatch.planned, dispatch.origin_s, stream.usage
    ended_s = end_s if end_s is not None else exchange.end_s
    if ended_s is None:
        raise ValueError(f"request {planned.index} has not ended")
    return RequestRecord(
        index=planned.index,
        worker=dispatch.worker,
        scheduled_s=planned.scheduled_s,
        dispatched_s=dispatch.dispatched_s - origin_s,
        connect_s=_since(origin_s, exchange.connect_s),
        sent_s=_since(origin_s, exchange.sent_s),
        headers_s=_since(origin_s, exchange.headers_s),
        token_times_s=tuple(arrival_s - origin_s for arrival_s in stream.token_times_s),
        end_s=ended_s - origin_s,
        outcome=outcome,
        status=exchange.status,
        error_kind=error_kind,
        error=error,
        finish_reason=stream.finish_reason,
        planned_prompt_tokens=planned.prompt_tokens,
        prompt_tokens=usage.prompt_tokens if usage else None,
        completion_tokens=usage.completion_tokens if usage else None,
        cached_tokens=usage.cached_tokens if usage else None,
        fathom=usage.fathom if usage else None,
        saw_done=stream.saw_done,
    )


def _since(origin_s: float, instant_s: float | None) -> float | None:
    return None if instant_s is None else instant_s - origin_s


def to_line(item: PlannedRequest | RequestRecord) -> str:
    """One line of JSON, with its line ending; ASCII, since text from a server may hold what UTF-8 cannot."""
    return json.dumps(asdict(item), separators=(",", ":")) + "\n"


def read_plan(path: Path) -> Iterator[PlannedRequest]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield PlannedRequest(**json.loads(line))


def read_records(path: Path) -> Iterator[RequestRecord]:
    """Records of one worker. A last line that a kill cut off is left out, and shows as a lost request."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if line.endswith("\n"):
                yield _from_json(json.loads(line))


def _from_json(content: dict[str, Any]) -> RequestRecord:
    names = {one.name for one in fields(RequestRecord)}
    if content.keys() != names:
        raise ValueError(f"not a request record: fields differ by {sorted(content.keys() ^ names)}")
    return RequestRecord(**{**content, "token_times_s": tuple(content["token_times_s"])})
