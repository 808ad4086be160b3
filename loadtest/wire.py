"""OpenAI streaming as it looks on the wire: one line of server-sent events in, one event out. No I/O.

Chat and text completions chunks are both understood. `read_stream` folds a whole recorded stream, so that a
client can stamp and keep raw lines while they arrive and parse them when nothing is being timed any more.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

MAX_ERROR_CHARS = 500


@dataclass(frozen=True, slots=True)
class Usage:
    """The server's own token counts, and what Fathom's server adds beside them."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int | None = None
    fathom: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Delta:
    """One chunk of the first choice. Reasoning and tool calls are output too, but not the answer's text.

    logprobs: of the tokens that a chat's chunk tells of; one that cannot be read is not a number.
    """

    text: str
    finish_reason: str | None
    reasoning: str = ""
    tool_text: str = ""
    usage: Usage | None = None
    logprobs: tuple[float, ...] = ()

    @property
    def has_output(self) -> bool:
        """False for a role-only or closing chunk: such a chunk is no token."""
        return bool(self.text or self.reasoning or self.tool_text)


@dataclass(frozen=True, slots=True)
class Done:
    """The literal [DONE]."""


@dataclass(frozen=True, slots=True)
class StreamError:
    """An error reported inside a stream that had begun with status 200, or a line that is no chunk."""

    message: str


@dataclass(frozen=True, slots=True)
class Ignored:
    """A blank line, a comment (": ping"), or a field other than data."""


Event = Delta | Usage | Done | StreamError | Ignored


def parse_sse_line(line: bytes) -> Event:
    """Read one line, with or without its line ending. Never raises: what cannot be read is a StreamError."""
    line = line.strip()
    if line.startswith(b"{"):
        return StreamError(f"not an event stream: {error_message(line)}")
    if not line.startswith(b"data:"):
        return Ignored()
    data = line[len(b"data:") :].strip()
    if data == b"[DONE]":
        return Done()
    if not data:
        return Ignored()
    try:
        chunk = json.loads(data)
        return _parse_chunk(chunk, data)
    except ValueError:
        return StreamError(f"chunk is not JSON: {_shorten(data)}")
    except RecursionError:
        return StreamError(f"chunk is nested too deeply: {_shorten(data)}")


def error_message(body: bytes) -> str:
    """The readable part of an error body of any shape, for a failed status as for a broken stream.

    The text can be encoded: a lone surrogate, which JSON can spell, would break whoever writes or sends it.
    """
    try:
        return _find_error(json.loads(body)) or _shorten(body)
    except (ValueError, RecursionError):
        return _shorten(body)


def parse_usage(payload: Mapping[str, Any]) -> Usage | None:
    """Usage of a whole response or of a chunk; None where it is absent, null or unreadable."""
    usage = payload.get("usage")
    if not isinstance(usage, dict):
        return None
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if not isinstance(prompt, int) or not isinstance(completion, int):
        return None
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    fathom = payload.get("fathom")
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        cached_tokens=cached if isinstance(cached, int) else None,
        fathom=fathom if isinstance(fathom, dict) else None,
    )


@dataclass(frozen=True, slots=True)
class StreamOutcome:
    """A whole stream, folded.

    Attributes:
        token_times_s: arrival of each chunk with non-empty output.
        error: the first error inside the stream, or why the stream counts as cut off; None = complete.
        cut_off: it ended too early and no error was reported: a crash or a lost connection.
        saw_done: False where the server closes without [DONE]; with a finish_reason that is no error.
        logprob: the sum over the `logprob_tokens` tokens of which the server told it; None where it told of none, or
            one of them is no finite number.
    """

    text: str
    reasoning: str
    token_times_s: tuple[float, ...]
    finish_reason: str | None
    usage: Usage | None
    error: str | None
    cut_off: bool
    saw_done: bool
    logprob: float | None = None
    logprob_tokens: int | None = None


def read_stream(lines: Iterable[tuple[float, bytes]]) -> StreamOutcome:
    """Fold (arrival, raw line) pairs, in order of arrival, up to [DONE] or the end."""
    text: list[str] = []
    reasoning: list[str] = []
    instants: list[float] = []
    logprobs: list[float] = []
    finish_reason: str | None = None
    usage: Usage | None = None
    error: str | None = None
    saw_done = False
    for arrival_s, line in lines:
        match parse_sse_line(line):
            case Delta() as delta:
                text.append(delta.text)
                reasoning.append(delta.reasoning)
                logprobs += delta.logprobs
                if delta.has_output:
                    instants.append(arrival_s)
                finish_reason = delta.finish_reason or finish_reason
                usage = delta.usage or usage
            case Usage() as counted:
                usage = counted
            case StreamError(message):
                error = error or message
            case Done():
                saw_done = True
                break
            case Ignored():
                pass
    missing = _incomplete(finish_reason, saw_done=saw_done, num_chunks=len(instants))
    has_logprob = bool(logprobs) and all(map(math.isfinite, logprobs))
    return StreamOutcome(
        text="".join(text),
        reasoning="".join(reasoning),
        token_times_s=tuple(instants),
        finish_reason=finish_reason,
        usage=usage,
        error=error or missing,
        cut_off=error is None and finish_reason is None and missing is not None,
        saw_done=saw_done,
        logprob=math.fsum(logprobs) if has_logprob else None,
        logprob_tokens=len(logprobs) if has_logprob else None,
    )


def _incomplete(finish_reason: str | None, *, saw_done: bool, num_chunks: int) -> str | None:
    if finish_reason == "error":
        return "the server finished the request with an error"
    if finish_reason is not None or (saw_done and num_chunks):
        return None
    return f"the stream ended after {num_chunks} output chunks without a finish_reason"


def _parse_chunk(chunk: object, data: bytes) -> Event:
    if not isinstance(chunk, dict):
        return StreamError(f"chunk is not an object: {_shorten(data)}")
    if chunk.get("error") is not None or chunk.get("object") == "error":
        return StreamError(_find_error(chunk) or "unnamed error")
    usage = parse_usage(chunk)
    choices = chunk.get("choices")
    if isinstance(choices, list) and choices and isinstance(choices[0], dict):
        return _parse_choice(choices[0], usage)
    return usage or Ignored()


def _parse_choice(choice: Mapping[str, Any], usage: Usage | None) -> Delta:
    delta = choice.get("delta")
    if not isinstance(delta, dict):  # the text completions shape
        delta = {"content": choice.get("text")}
    finish_reason = choice.get("finish_reason")
    return Delta(
        text=_string(delta.get("content")),
        finish_reason=finish_reason if isinstance(finish_reason, str) else None,
        reasoning=_string(delta.get("reasoning_content")) or _string(delta.get("reasoning")),
        tool_text=_tool_text(delta.get("tool_calls")),
        usage=usage,
        logprobs=_logprobs(choice.get("logprobs")),
    )


def _logprobs(told: object) -> tuple[float, ...]:
    """Those of a chat's chunk."""
    content = told.get("content") if isinstance(told, dict) else None
    if not isinstance(content, list):
        return ()
    return tuple(_number(entry.get("logprob") if isinstance(entry, dict) else None) for entry in content)


def _number(value: object) -> float:
    """Not a number where it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        return float(value)
    except OverflowError:  # a whole number of hundreds of digits
        return math.nan


def _tool_text(calls: object) -> str:
    if not isinstance(calls, list):
        return ""
    functions = [call.get("function") for call in calls if isinstance(call, dict)]
    return "".join(
        _string(function.get("name")) + _string(function.get("arguments"))
        for function in functions
        if isinstance(function, dict)
    )


def _string(value: object) -> str:
    return value if isinstance(value, str) else ""


def _find_error(content: object) -> str | None:
    """Dig the message out of {"error": {"message"}}, {"error": str}, {"message"} or {"detail"}."""
    if isinstance(content, str):
        return _shorten(content.encode("utf-8", errors="replace"))
    if not isinstance(content, dict):
        return None
    for key in ("error", "message", "detail"):
        value = content.get(key)
        if value:
            return _find_error(value) or _shorten(json.dumps(value).encode())
    return None


def _shorten(raw: bytes) -> str:
    text = raw.decode("utf-8", errors="replace").strip()
    return text if len(text) <= MAX_ERROR_CHARS else text[:MAX_ERROR_CHARS] + "..."
