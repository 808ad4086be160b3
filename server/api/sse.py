"""Server-sent events: how the chunks of a stream are written."""

import uuid
from collections.abc import Callable
from typing import Any, Protocol

import msgspec

SSE = "text/event-stream"
DONE = b"data: [DONE]\n\n"
# A comment of server-sent events, which clients skip: tokens come, though none with text.
SILENT_TOKEN = b": a token without text\n\n"

Json = dict[str, Any]


class MakesChunk(Protocol):
    """How a chunk says a text."""

    def __call__(self, index: int, text: str, reason: None, *, logprobs: Json | None) -> Json: ...


def event(content: Json) -> bytes:
    return b"data: " + msgspec.json.encode(content) + b"\n\n"


class TextEvents:
    """Events that differ in their text and log-probabilities only: all else of them is written once per choice."""

    def __init__(self, chunk: MakesChunk) -> None:
        self._chunk = chunk
        self._frames: dict[int, tuple[bytes, bytes, bytes]] = {}
        self._encode: Callable[[Any], bytes] = msgspec.json.Encoder().encode

    def write(self, index: int, text: str, logprobs: Json | None) -> bytes:
        frame = self._frames.get(index)
        if frame is None:
            frame = self._frames[index] = self._frame(index)
        before, between, behind = frame
        told = b"null" if logprobs is None else self._encode(logprobs)
        return b"".join((before, self._encode(text), between, told, behind))

    def _frame(self, index: int) -> tuple[bytes, bytes, bytes]:
        """What comes before the text, between it and the log-probabilities, and behind them."""
        text, logprobs = uuid.uuid4().hex, {uuid.uuid4().hex: None}  # found nowhere else in it
        before, _, rest = event(self._chunk(index, text, None, logprobs=logprobs)).partition(self._encode(text))
        between, _, behind = rest.partition(self._encode(logprobs))
        return before, between, behind
