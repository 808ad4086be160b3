"""One streaming chat completion over a raw, unbuffered reader: bytes and the instants at which they came.

Each line is stamped when it leaves the socket and kept as it is; parsing waits until the stream is over,
because parsing while other streams arrive would make their stamps late. Only the standard library is used:
readers that fetch blocks of a fixed size deliver the first line of a stream late by several tokens. The
module knows neither gevent nor locust; under locust's monkey-patching the same sockets become cooperative.
"""

import errno
import functools
import http.client
import ssl
import time
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from loadtest.wire import error_message

MAX_ERROR_BODY_BYTES = 65536
CHAT_PATH = "/v1/chat/completions"
COMPLETIONS_PATH = "/v1/completions"
# Running out of these is the client machine's fault, not the server's.
CLIENT_LIMITS = frozenset({errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOBUFS, errno.ENOMEM})


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go. `timeout_s` bounds each socket operation; None waits for ever."""

    scheme: str
    host: str
    port: int
    prefix: str
    api_key: str | None = field(default=None, repr=False)
    timeout_s: float | None = None

    @classmethod
    def parse(cls, endpoint: str, *, api_key: str | None = None, timeout_s: float | None = None) -> "Target":
        """Read http://host:port, with or without a path and a closing /v1."""
        parts = urlsplit(endpoint)
        return cls(
            scheme=parts.scheme,
            host=parts.hostname or "",
            port=parts.port if parts.port is not None else (443 if parts.scheme == "https" else 80),
            prefix=parts.path.rstrip("/").removesuffix("/v1"),
            api_key=api_key,
            timeout_s=timeout_s,
        )

    def connect(self) -> http.client.HTTPConnection:
        """A new connection, not yet opened."""
        if self.scheme == "https":
            return http.client.HTTPSConnection(self.host, self.port, timeout=self.timeout_s, context=_tls_context())
        return http.client.HTTPConnection(self.host, self.port, timeout=self.timeout_s)

    def headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        return headers if self.api_key is None else {**headers, "Authorization": f"Bearer {self.api_key}"}


@functools.cache
def _tls_context() -> ssl.SSLContext:
    """One for all connections: reading the certificates takes tens of milliseconds, in which no stamp is taken."""
    return ssl.create_default_context()


@dataclass(frozen=True, slots=True)
class Failure:
    """kind: connect | disconnected | client_limit | client_error | http_<status>."""

    kind: str
    message: str


@dataclass(slots=True)
class Exchange:
    """What is known so far of one request; it can be read at any moment, also while the request hangs.

    Attributes:
        connect_s: when the client began to open the connection.
        sent_s: just before the request is written; the connection is open by then.
        headers_s: when the status line and headers had come.
        lines: (arrival, raw line).
        end_s: arrival of [DONE] or of the end of the answer, or when it failed; None = still running.
    """

    connect_s: float | None = None
    sent_s: float | None = None
    headers_s: float | None = None
    status: int | None = None
    lines: list[tuple[float, bytes]] = field(default_factory=list)
    end_s: float | None = None
    failure: Failure | None = None


def stream_chat(target: Target, body: bytes, exchange: Exchange, *, path: str = CHAT_PATH) -> None:
    """Send one request and record its answer in `exchange`, and what goes wrong on the wire likewise."""
    connection = target.connect()
    exchange.connect_s = time.perf_counter()
    try:
        connection.connect()
        exchange.sent_s = time.perf_counter()
        connection.request("POST", target.prefix + path, body, target.headers())
        response = connection.getresponse()
        exchange.headers_s = time.perf_counter()
        exchange.status = response.status
        if response.status == 200:
            _read_lines(response, exchange)
        else:
            _read_refusal(response, exchange)
    except http.client.IncompleteRead:
        pass  # an early end, announced or not: the lines that came tell whether anything is missing
    except (OSError, http.client.HTTPException) as error:
        if exchange.failure is None:  # a status that came tells more than the loss of its body
            exchange.failure = _describe(error, sent=exchange.sent_s is not None)
    finally:
        connection.close()
    if exchange.end_s is None:
        exchange.end_s = time.perf_counter()


def _read_lines(response: http.client.HTTPResponse, exchange: Exchange) -> None:
    lines, clock = exchange.lines, time.perf_counter
    while line := response.readline():
        arrival_s = clock()
        lines.append((arrival_s, line))
        if line.startswith(b"data:") and line[5:].strip() == b"[DONE]":
            exchange.end_s = arrival_s
            return


def _read_refusal(response: http.client.HTTPResponse, exchange: Exchange) -> None:
    """Keep the status before the body is read, which may never come whole."""
    kind = f"http_{response.status}"
    exchange.failure = Failure(kind, response.reason)
    try:
        body = response.read(MAX_ERROR_BODY_BYTES)
    except http.client.IncompleteRead as error:
        body = error.partial
    exchange.failure = Failure(kind, error_message(body) or response.reason)


def _describe(error: Exception, *, sent: bool) -> Failure:
    message = f"{type(error).__name__}: {error}"
    if isinstance(error, OSError) and error.errno in CLIENT_LIMITS:
        return Failure("client_limit", message)
    return Failure("disconnected" if sent else "connect", message)
