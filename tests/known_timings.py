"""A small real server with known timings: it writes each chunk at a planned instant and logs when it really did.

Started as a process of its own. Instants in its log are from the machine's monotonic clock, which the load
client reads too, so that a test compares the client's stamps with what truly happened and not with a plan that a
busy machine may have missed. The request's `model` chooses the behaviour:

    steady      TTFT, then tokens at a fixed gap, usage, [DONE]
    plain       as steady, without usage and without [DONE]
    pings       as steady, with comments and a role-only chunk long before the first token
    error       an error object after three tokens
    cut         the connection is closed after three tokens
    hang        three tokens, then nothing
    silent      nothing at all, not even a status line
    busy        status 429 with Retry-After
    surrogate   status 500, with a message that no UTF-8 can hold
    mixed       by arrival: steady, busy, error, cut, then again
    hang_once   the first as hang, all others as steady
"""

import argparse
import asyncio
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MIXED = ("steady", "busy", "error", "cut")
MAX_MODEL_LEN = 4096
MODELS = (
    *("steady", "plain", "pings", "error", "cut", "hang", "silent", "busy", "surrogate"),
    *("mixed", "hang_once"),
)


@dataclass
class Settings:
    ttft_s: float
    gap_s: float
    tokenize: bool
    ignore_eos: bool
    log: Path
    template_tokens: int = 7
    num_by_turns: int = 0
    key: str | None = None
    key_for: str = ""


@dataclass
class Call:
    """One chat request as the server saw it; written to the log as one line when it is over."""

    behaviour: str
    prompt: str
    max_tokens: int
    received_s: float
    chunk_times_s: list[float] = field(default_factory=list)
    end_s: float | None = None
    options: dict[str, Any] = field(default_factory=dict)


def count_tokens(text: str, settings: Settings) -> int:
    """This server's tokenizer: a word is a token, and its chat template costs seven more, or --template."""
    return len(text.split()) + settings.template_tokens


async def read_request(reader: asyncio.StreamReader) -> tuple[str, str, dict[str, str], Any]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    first, *lines = head.split("\r\n")
    method, path, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines) if name}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return method, path, headers, json.loads(body) if body else None


def write_json(writer: asyncio.StreamWriter, status: str, content: object, *extra: str) -> None:
    body = json.dumps(content).encode()
    lines = [f"HTTP/1.1 {status}", "Content-Type: application/json", f"Content-Length: {len(body)}", *extra]
    writer.write("\r\n".join([*lines, "", ""]).encode() + body)


def write_event(writer: asyncio.StreamWriter, event: str | dict[str, Any]) -> None:
    """One server-sent event as one HTTP chunk."""
    text = event if isinstance(event, str) else "data: " + json.dumps(event)
    data = (text + "\n\n").encode()
    writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")


def chunk(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return {"object": "chat.completion.chunk", "choices": [choice]}


async def sleep_until(instant_s: float) -> None:
    while (left_s := instant_s - time.perf_counter()) > 0:
        await asyncio.sleep(left_s)


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def until_client_leaves(reader: asyncio.StreamReader) -> None:
    while await reader.read(1024):
        pass


async def stream(streams: Streams, call: Call, settings: Settings) -> None:
    """Write the planned chunks at planned instants, each logged just before it is written."""
    writer = streams[1]
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
    write_event(writer, chunk({"role": "assistant", "content": ""}))
    if call.behaviour == "pings":
        for _ in range(4):
            write_event(writer, ": ping")
            await asyncio.sleep(settings.ttft_s / 5)
    num_tokens = 3 if call.behaviour in ("error", "cut", "hang") else call.max_tokens
    for position in range(num_tokens):
        await sleep_until(call.received_s + settings.ttft_s + position * settings.gap_s)
        call.chunk_times_s.append(time.perf_counter())
        write_event(writer, chunk({"content": f" w{position}"}))
        await writer.drain()
    await finish(streams, call, settings)


async def finish(streams: Streams, call: Call, settings: Settings) -> None:
    reader, writer = streams
    if call.behaviour == "error":
        write_event(writer, {"error": {"message": "engine died", "type": "server_error"}})
    if call.behaviour == "hang":
        await until_client_leaves(reader)
    if call.behaviour in ("error", "cut", "hang"):
        return
    write_event(writer, chunk({}, "length"))
    if call.behaviour != "plain":
        write_event(writer, usage_chunk(call, settings))
        call.end_s = time.perf_counter()
        write_event(writer, "data: [DONE]")
    writer.write(b"0\r\n\r\n")


def usage_chunk(call: Call, settings: Settings) -> dict[str, Any]:
    prompt_tokens = count_tokens(call.prompt, settings)
    return {
        "choices": [],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": call.max_tokens,
            "total_tokens": prompt_tokens + call.max_tokens,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
        "fathom": {"queue_s": 0.0, "peak_bytes": 1000 * prompt_tokens},
    }


def turn(model: str, settings: Settings) -> str:
    """Whose turn it is. The client's trials, which ask for two tokens, must not take one."""
    turns = {"mixed": MIXED[settings.num_by_turns % len(MIXED)], "hang_once": "steady"}
    if model == "hang_once" and settings.num_by_turns == 0:
        turns["hang_once"] = "hang"
    settings.num_by_turns += 1
    return turns.get(model, model)


async def chat(streams: Streams, body: dict[str, Any], settings: Settings, received_s: float) -> None:
    reader, writer = streams
    if "ignore_eos" in body and not settings.ignore_eos:
        write_json(writer, "400 Bad Request", {"error": {"message": "unknown field ignore_eos"}})
        return
    behaviour = body["model"] if body["max_tokens"] == 2 else turn(body["model"], settings)
    options = {key: value for key, value in body.items() if key not in ("messages", "model")}
    call = Call(behaviour, body["messages"][-1]["content"], body["max_tokens"], received_s, options=options)
    if body["max_tokens"] == 2:
        call.behaviour = "plain" if behaviour == "plain" else "steady"
    try:
        if call.behaviour == "silent":
            await until_client_leaves(reader)
        elif call.behaviour == "busy":
            write_json(writer, "429 Too Many Requests", {"error": {"message": "queue is full"}}, "Retry-After: 1")
        elif call.behaviour == "surrogate":
            write_json(writer, "500 Internal Server Error", {"error": {"message": "broken \ud83d"}})
        elif count_tokens(call.prompt, settings) + call.max_tokens > MAX_MODEL_LEN:
            write_json(writer, "400 Bad Request", {"error": {"message": "too long"}})
        else:
            await stream(streams, call, settings)
    finally:
        with settings.log.open("a", encoding="utf-8") as log:
            log.write(json.dumps(call.__dict__) + "\n")


def other(writer: asyncio.StreamWriter, path: str, body: Any, settings: Settings) -> None:
    if path == "/v1/models":
        write_json(writer, "200 OK", {"object": "list", "data": [{"id": name} for name in MODELS]})
    elif path == "/tokenize" and settings.tokenize:
        count = count_tokens(body["messages"][-1]["content"], settings)
        write_json(writer, "200 OK", {"tokens": [1] * count, "count": count, "max_model_len": MAX_MODEL_LEN})
    else:
        write_json(writer, "404 Not Found", {"detail": "Not Found"})


async def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, settings: Settings) -> None:
    try:
        _, path, headers, body = await read_request(reader)
        received_s = time.perf_counter()
        guarded = settings.key is not None and path.startswith(settings.key_for)
        if guarded and headers.get("authorization") != f"Bearer {settings.key}":
            write_json(writer, "401 Unauthorized", {"error": {"message": "wrong key"}})
        elif path == "/v1/chat/completions":
            await chat((reader, writer), body, settings, received_s)
        else:
            other(writer, path, body, settings)
        await writer.drain()
    except (ConnectionError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()


async def main(arguments: argparse.Namespace) -> None:
    settings = Settings(
        ttft_s=arguments.ttft,
        gap_s=arguments.gap,
        tokenize=not arguments.no_tokenize,
        ignore_eos=not arguments.no_ignore_eos,
        log=arguments.log,
        template_tokens=arguments.template,
        key=arguments.key,
        key_for=arguments.key_for,
    )
    server = await asyncio.start_server(
        lambda reader, writer: serve_one(reader, writer, settings), "127.0.0.1", 0, backlog=1024
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--ttft", type=float, default=0.2)
    parser.add_argument("--gap", type=float, default=0.02)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--no-tokenize", action="store_true")
    parser.add_argument("--no-ignore-eos", action="store_true")
    parser.add_argument("--template", type=int, default=7)
    parser.add_argument("--key")
    parser.add_argument("--key-for", default="", help="only paths that begin so ask for the key")
    asyncio.run(main(parser.parse_args()))
