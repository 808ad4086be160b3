"""One request at a time against the server with known timings; both sides read the same monotonic clock."""

import itertools
import json
import socket
import ssl
import statistics
import struct
import threading
import time
from typing import Any

import pytest

from loadtest.client import Exchange, Target, stream_chat
from loadtest.wire import StreamOutcome, read_stream

from .conftest import KnownServer, StartServer


def ask(server: KnownServer, behaviour: str, *, max_tokens: int = 8, **target: Any) -> tuple[Exchange, StreamOutcome]:
    exchange = Exchange()
    body = {"model": behaviour, "messages": [{"role": "user", "content": "a b c"}], "max_tokens": max_tokens}
    stream_chat(Target.parse(server.url, **target), json.dumps(body).encode(), exchange)
    return exchange, read_stream(exchange.lines)


def test_stamps_agree_with_the_servers_log(start_server: StartServer) -> None:
    """A reader of fixed blocks would be late by several gaps, and would see the chunks in bursts."""
    server = start_server("--ttft", "0.1", "--gap", "0.02")
    exchange, stream = ask(server, "steady", max_tokens=60)
    (call,) = server.calls(least=1)
    written, read = call["chunk_times_s"], stream.token_times_s
    assert len(written) == len(read) == 60
    delays = [there - here for here, there in zip(written, read, strict=True)]
    assert min(delays) >= 0
    assert statistics.median(delays) < 0.010
    server_gaps = [b - a for a, b in itertools.pairwise(written)]
    client_gaps = [b - a for a, b in itertools.pairwise(read)]
    assert statistics.median(client_gaps) == pytest.approx(statistics.median(server_gaps), abs=0.005)
    assert exchange.sent_s is not None
    assert exchange.headers_s is not None
    assert exchange.sent_s <= call["received_s"] <= exchange.headers_s < read[0]
    assert exchange.end_s is not None
    assert exchange.end_s >= call["end_s"]
    assert exchange.end_s - call["end_s"] < 0.1


def test_a_role_chunk_and_pings_are_no_first_token(start_server: StartServer) -> None:
    server = start_server("--ttft", "0.3")
    exchange, stream = ask(server, "pings")
    (call,) = server.calls(least=1)
    assert exchange.lines[0][0] < call["received_s"] + 0.3 <= stream.token_times_s[0]
    assert len(stream.token_times_s) == 8


def test_usage_and_done(start_server: StartServer) -> None:
    server = start_server("--ttft", "0.01", "--gap", "0.001")
    _, stream = ask(server, "steady")
    assert stream.usage is not None
    assert (stream.usage.prompt_tokens, stream.usage.completion_tokens) == (10, 8)
    assert stream.usage.fathom == {"queue_s": 0.0, "peak_bytes": 10000}
    assert stream.saw_done
    exchange, stream = ask(server, "plain")
    assert stream.usage is None
    assert (stream.error, stream.saw_done, exchange.failure) == (None, False, None)
    assert len(stream.token_times_s) == 8


def test_every_way_to_fail_is_told_apart(start_server: StartServer) -> None:
    server = start_server("--ttft", "0.01", "--gap", "0.001")
    exchange, _ = ask(server, "busy")
    assert exchange.failure is not None
    assert (exchange.status, exchange.failure.kind, exchange.failure.message) == (
        429,
        "http_429",
        "queue is full",
    )
    exchange, stream = ask(server, "error")
    assert (exchange.status, exchange.failure, stream.error) == (200, None, "engine died")
    assert len(stream.token_times_s) == 3
    exchange, stream = ask(server, "cut")
    assert (exchange.status, exchange.failure) == (200, None)
    assert stream.cut_off
    assert len(stream.token_times_s) == 3


def test_a_hung_stream_can_be_read_while_it_hangs(start_server: StartServer) -> None:
    server = start_server("--ttft", "0.01", "--gap", "0.001")
    exchange = Exchange()
    body = b'{"model":"hang","messages":[{"role":"user","content":"a"}],"max_tokens":8}'
    target = Target.parse(server.url, timeout_s=1.0)
    thread = threading.Thread(target=stream_chat, args=(target, body, exchange))
    thread.start()
    deadline_s = time.monotonic() + 10
    while len(read_stream(list(exchange.lines)).token_times_s) < 3 and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert exchange.end_s is None
    thread.join()
    assert len(read_stream(exchange.lines).token_times_s) == 3
    assert exchange.failure is not None
    assert exchange.failure.kind == "disconnected"


def refuse(head: bytes, body: bytes, *, reset: bool) -> Exchange:
    """One request to a server that answers with these bytes and then closes, or breaks, the connection."""

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        request = b""
        while not request.endswith(b"{}"):  # closing with something unread would be a reset
            request += connection.recv(65536)
        connection.sendall(b"HTTP/1.1 " + head + b"\r\n\r\n" + body)
        if reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            time.sleep(0.2)  # a reset overtakes what has not been read yet
        connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        exchange = Exchange()
        stream_chat(Target.parse(f"http://127.0.0.1:{listener.getsockname()[1]}"), b"{}", exchange)
        thread.join()
    return exchange


@pytest.mark.parametrize(
    ("head", "body", "reset", "message"),
    [
        (b"500 Broken\r\nContent-Length: 99", b"half of", True, "Broken"),
        (b"503 Full\r\nTransfer-Encoding: chunked", b"7\r\nhalf of\r\n63\r\n", False, "half of"),
        (b"502 Bad Gateway\r\nContent-Length: 0", b"", False, "Bad Gateway"),
    ],
)
def test_a_status_outlives_its_body(head: bytes, body: bytes, reset: bool, message: str) -> None:
    failure = refuse(head, body, reset=reset).failure
    assert failure is not None
    assert (failure.kind, failure.message) == (f"http_{head[:3].decode()}", message)


def test_certificates_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[ssl.SSLContext] = []
    create = ssl.create_default_context
    monkeypatch.setattr(ssl, "create_default_context", lambda: read.append(create()) or read[-1])
    for _ in range(3):
        Target.parse("https://127.0.0.1:9").connect()
    assert len(read) <= 1  # none, where another test came first


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    exchange = Exchange()
    stream_chat(Target.parse(f"http://127.0.0.1:{port}"), b"{}", exchange)
    assert exchange.sent_s is None
    assert exchange.failure is not None
    assert exchange.failure.kind == "connect"
    assert exchange.end_s is not None


@pytest.mark.parametrize(
    ("endpoint", "parts"),
    [
        ("http://host:8000", ("http", "host", 8000, "")),
        ("http://host:8000/v1/", ("http", "host", 8000, "")),
        ("https://host/openai/v1", ("https", "host", 443, "/openai")),
        ("http://[::1]", ("http", "::1", 80, "")),
    ],
)
def test_endpoints(endpoint: str, parts: tuple[str, str, int, str]) -> None:
    target = Target.parse(endpoint, api_key="k")
    assert (target.scheme, target.host, target.port, target.prefix) == parts
    assert target.headers()["Authorization"] == "Bearer k"
    assert "k'" not in repr(target)
