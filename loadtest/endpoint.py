"""What an endpoint can do, found out before the load begins: its models, its tokenizer, its options."""

import http.client
import json
from dataclasses import dataclass
from typing import Any

from loadtest.client import Exchange, Target, stream_chat
from loadtest.config import EndpointError
from loadtest.wire import Usage, error_message, read_stream

MAX_BODY_BYTES = 64 * 1024 * 1024
# From what every endpoint of ours takes to what the plainest takes.
OPTION_LADDER: tuple[tuple[str, ...], ...] = (("ignore_eos", "usage"), ("usage",), ())


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    content: Any
    text: str


@dataclass(frozen=True, slots=True)
class Options:
    """Which optional request fields the endpoint accepts."""

    ignore_eos: bool
    usage: bool

    def notes(self) -> list[str]:
        notes = []
        if not self.ignore_eos:
            notes.append("the endpoint refuses ignore_eos: answers may end before --output tokens")
        if not self.usage:
            notes.append("the endpoint refuses stream_options.include_usage: token figures may be missing")
        return notes


def call(target: Target, method: str, path: str, payload: object = None) -> Reply:
    """One plain JSON exchange.

    Raises:
        EndpointError: nothing answered.
    """
    connection = target.connect()
    try:
        body = None if payload is None else json.dumps(payload).encode()
        connection.request(method, target.prefix + path, body, target.headers())
        response = connection.getresponse()
        raw = response.read(MAX_BODY_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise EndpointError(f"no answer from {_name(target)}: {type(error).__name__}: {error}") from error
    finally:
        connection.close()
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError):
        content = None
    return Reply(response.status, content, error_message(raw))


def check_model(target: Target, model: str) -> None:
    """Refuse a model that the endpoint does not list; an endpoint without a list is believed.

    Raises:
        EndpointError: unreachable, key refused, or another model than the listed ones.
    """
    reply = call(target, "GET", "/v1/models")
    if reply.status in (401, 403):
        raise EndpointError(f"{_name(target)} refuses the key (status {reply.status}): {reply.text}")
    if reply.status != 200 or not isinstance(reply.content, dict):
        return
    entries = reply.content.get("data")
    names = [entry.get("id") for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    if names and model not in names:
        raise EndpointError(
            f"--model {model} is not served by {_name(target)}; it serves: {', '.join(map(str, names))}"
        )


def chat_body(model: str, prompt: str, output_tokens: int, options: Options) -> dict[str, Any]:
    """The request that is measured."""
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": output_tokens,
        "temperature": 0,
        "stream": True,
    }
    if options.usage:
        body["stream_options"] = {"include_usage": True}
    if options.ignore_eos:
        body["ignore_eos"] = True
    return body


def find_options(target: Target, model: str, prompt: str) -> tuple[Options, Usage | None]:
    """Ask for two tokens with fewer and fewer options until the endpoint accepts.

    Returns:
        The accepted options, and the usage of the accepted request.
    Raises:
        EndpointError: even the plainest request fails.
    """
    exchange = Exchange()
    for rung in OPTION_LADDER:
        options = Options(ignore_eos="ignore_eos" in rung, usage="usage" in rung)
        exchange = Exchange()
        stream_chat(target, json.dumps(chat_body(model, prompt, 2, options)).encode(), exchange)
        if exchange.status not in (400, 422):
            break
    stream = read_stream(exchange.lines)
    if exchange.failure is not None and stream.finish_reason is None:
        raise EndpointError(
            f"{_name(target)} fails a trial request: {exchange.failure.kind}: {exchange.failure.message}"
        )
    if stream.error is not None:
        raise EndpointError(f"{_name(target)} fails a trial request: {stream.error}")
    return options, stream.usage


def count_tokens(target: Target, model: str, prompt: str) -> tuple[int, int | None] | None:
    """Tokens of the prompt as a user message in the chat template, and the model's limit where it is told.

    Returns:
        None where the endpoint offers no POST /tokenize.
    """
    payload = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "add_generation_prompt": True,
    }
    reply = call(target, "POST", "/tokenize", payload)
    if reply.status != 200 or not isinstance(reply.content, dict):
        return None
    count, limit = reply.content.get("count"), reply.content.get("max_model_len")
    if not isinstance(count, int):
        return None
    return count, limit if isinstance(limit, int) else None


def _name(target: Target) -> str:
    return f"{target.scheme}://{target.host}:{target.port}{target.prefix}"
