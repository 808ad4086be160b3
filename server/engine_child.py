"""An engine as a child process: the process, the sockets to it, and its heartbeat."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from server.config import EngineConfig
from server.frames import SOCKET_BYTES, Frames, framed
from server.messages import FromEngine, Stop, ToEngine, encode, from_engine

STOP_TIMEOUT_S = 5.0
LAST_WORDS_S = 5.0
WATCH_EVERY_S = 1.0
CATCH_UP_S = 1.0
ROOT = Path(__file__).resolve().parents[1]


def child_environment() -> dict[str, str]:
    """The variables of a process that runs one of our modules, wherever the user stands."""
    return {
        # A thread that has no work looks for some this often before it sleeps: some microseconds, which is what lies
        # between two operations. The default of milliseconds takes processors from who has work, ten times over.
        "GOMP_SPINCOUNT": "2000",
        # glibc asks for large pages: weights are read by a tenth to a quarter faster where few pages hold them. What
        # a step has used it keeps for the next, which in float32 is a thirtieth of a prefill; costs some 300 MB.
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=33554432:"
        "glibc.malloc.trim_threshold=4294967296",
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
    }


class Hearing(asyncio.Protocol):
    """Hands on what comes over a socket, message by message.

    `ended` is done when the other end is closed and all that it said is handed on; its result is what was wrong with
    that, if anything was.
    """

    def __init__(self, on_message: Callable[[FromEngine], None]) -> None:
        self._on_message = on_message
        self._frames = Frames()
        self.heard_s: float | None = None
        self.ended: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self.heard_s = time.monotonic()
        try:
            for frame in self._frames.take(data):
                if self.ended.done():
                    return
                self._on_message(from_engine.decode(frame))
        except msgspec.MsgspecError as error:
            self._end(f"it said what cannot be understood: {error}")

    def connection_lost(self, error: Exception | None) -> None:
        if error is None or isinstance(error, OSError):
            self._end(None)
        elif not self.ended.done():
            # A fault of ours in `on_message`: the event loop ends the connection over it.
            self.ended.set_exception(error)

    def _end(self, wrong: str | None) -> None:
        if not self.ended.done():
            self.ended.set_result(wrong)


class EngineChild:
    """Owns the engine process of one model, one life at a time.

    Sockets are made anew for every life: nothing that was meant for a dead engine reaches the next. There is one for
    each direction, as who writes to what has ended must not lose what it said last.

    Args:
        on_message: called with every message of the engine, in order.
    """

    def __init__(
        self, model: str, directory: Path, config: EngineConfig, *, on_message: Callable[[FromEngine], None]
    ) -> None:
        self._model = model
        self._directory = directory
        self._config = config
        self._on_message = on_message
        self._process: asyncio.subprocess.Process | None = None
        self._sender: asyncio.WriteTransport | None = None
        self._hearing: Hearing | None = None

    @property
    def pid(self) -> int | None:
        """None unless the process runs."""
        return self._process.pid if self._process and self._process.returncode is None else None

    async def live(self) -> str:
        """One life: start the process and hand on what it says until it ends; returns why it ended.

        Raises:
            OSError: the process or a socket cannot be made.
        """
        self._process = self._hearing = None
        try:
            with contextlib.ExitStack() as opened:
                return await self._live(opened)
        finally:
            self._sender = None

    def send(self, message: ToEngine) -> bool:
        """Hand a message to the process without ever waiting; False if it is not there to take it."""
        if self._sender is None or self._sender.is_closing():
            return False
        # What the socket does not take at once is kept here without bound, for the requests in it have one.
        self._sender.write(framed(encode(message)))
        return True

    async def stop(self) -> None:
        """End the process: kindly if it serves already, at once if it still loads or does not listen."""
        if self._process is None or self._process.returncode is not None:
            return
        if self._hearing is None or self._hearing.heard_s is None or not self.send(Stop()):
            self._kill()
        try:
            await asyncio.wait_for(self._process.wait(), STOP_TIMEOUT_S)
        except TimeoutError:
            self._kill()

    async def _live(self, opened: contextlib.ExitStack) -> str:
        loop = asyncio.get_running_loop()
        ours, inbox = _socket_pair(opened)
        listening, outbox = _socket_pair(opened)
        process = self._process = await asyncio.create_subprocess_exec(
            *self._command(inbox.fileno(), outbox.fileno()),
            # -P leaves out the current directory: the engine must still be of the same code as this process.
            env=child_environment(),
            pass_fds=(inbox.fileno(), outbox.fileno()),
        )
        try:
            # Its ends are its own now, so that their closing tells of its end.
            inbox.close()
            outbox.close()
            self._sender, _ = await loop.create_unix_connection(asyncio.Protocol, sock=ours)
            opened.callback(self._sender.abort)
            receiver, hearing = await loop.create_unix_connection(lambda: Hearing(self._on_message), sock=listening)
            opened.callback(receiver.abort)
            self._hearing = hearing
            return await self._until_end(process, hearing)
        finally:
            self._kill()

    async def _until_end(self, process: asyncio.subprocess.Process, hearing: Hearing) -> str:
        ended = asyncio.create_task(process.wait())
        watching = asyncio.create_task(self._watch(hearing))
        try:
            await asyncio.wait((ended, hearing.ended, watching), return_when=asyncio.FIRST_COMPLETED)
            if watching.done():
                return watching.result()
            # What it said last (its failure, its last tokens) may still be there to be read, up to the socket's end.
            # If it was the socket that ended first, the process does too, or it shall.
            if not hearing.ended.done() or hearing.ended.result() is None:
                await asyncio.wait((ended, hearing.ended), timeout=LAST_WORDS_S)
            wrong = hearing.ended.result() if hearing.ended.done() else None
            return wrong or (describe_exit(ended.result()) if ended.done() else "it listens no longer")
        finally:
            self._kill()
            watching.cancel()
            await asyncio.wait((ended, watching))

    def _command(self, inbox: int, outbox: int) -> list[str]:
        return [
            sys.executable,
            # A folder named like one of ours where the user stands must not be taken for it.
            "-P",
            "-m",
            # An interrupt from the terminal is for the server; it decides when its engines end.
            "server.engine_start",
            f"--model={self._model}",
            f"--directory={self._directory}",
            f"--config={msgspec.json.encode(self._config).decode()}",
            f"--inbox={inbox}",
            f"--outbox={outbox}",
        ]

    async def _watch(self, hearing: Hearing) -> str:
        """Returns when an engine has been silent for too long. It says nothing while it loads, in this life as in every
        other; once it serves, it reports at least once a second between steps.
        """
        started_s = time.monotonic()
        while True:
            heard_s = hearing.heard_s
            limit_s = self._config.start_timeout_s if heard_s is None else self._config.stall_timeout_s
            if time.monotonic() - (started_s if heard_s is None else heard_s) < limit_s:
                await asyncio.sleep(WATCH_EVERY_S)
                continue
            # If it was this process that stood still, its words are waiting to be read.
            await asyncio.sleep(CATCH_UP_S)
            if hearing.heard_s != heard_s:
                continue
            if heard_s is None:
                return f"it was not ready within {limit_s:g} s (--start-timeout-s)"
            return f"it was stuck: no word for {limit_s:g} s (--stall-timeout-s)"

    def _kill(self) -> None:
        if self._process and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()


def _socket_pair(opened: contextlib.ExitStack) -> tuple[socket.socket, socket.socket]:
    """Two ends of a stream, closed at the end of what is opened."""
    pair = socket.socketpair()
    for end in pair:
        opened.callback(end.close)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
        end.setblocking(False)
    return pair


def describe_exit(code: int) -> str:
    """An exit code in words; a negative one is a signal's number."""
    if code >= 0:
        return f"exit code {code}"
    return f"killed by signal {-code} ({signal.Signals(-code).name})"
