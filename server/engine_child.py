"""An engine as a child process: the process, the sockets to it, and its heartbeat."""

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import zmq
import zmq.asyncio
from zmq.utils.monitor import parse_monitor_message

from server.config import EngineConfig
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
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
    }


class EngineChild:
    """Owns the engine process of one model, one life at a time.

    Sockets are made anew for every life: nothing that was meant for a dead engine reaches the next.

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
        self._socket: zmq.Socket[bytes] | None = None
        self._heard_s: float | None = None

    @property
    def pid(self) -> int | None:
        """None unless the process runs."""
        return self._process.pid if self._process and self._process.returncode is None else None

    async def live(self) -> str:
        """One life: start the process and hand on what it says until it ends; returns why it ended.

        Raises:
            OSError, zmq.ZMQError: the process or a socket cannot be made.
        """
        self._process, self._heard_s = None, None
        scratch = tempfile.mkdtemp(prefix="fathom-")
        context = zmq.asyncio.Context()
        try:
            return await self._live(context, f"ipc://{scratch}/to-engine", f"ipc://{scratch}/from-engine")
        finally:
            if self._socket is not None:
                self._socket.close(linger=0)
            self._socket = None
            context.destroy(linger=0)
            shutil.rmtree(scratch, ignore_errors=True)

    def send(self, message: ToEngine) -> bool:
        """Hand a message to the process without ever waiting; False if it is not there to take it."""
        if self._socket is None:
            return False
        try:
            self._socket.send(encode(message), zmq.DONTWAIT)
        except zmq.Again:
            return False
        return True

    async def stop(self) -> None:
        """End the process: kindly if it serves already, at once if it still loads or does not listen."""
        if self._process is None or self._process.returncode is not None:
            return
        if self._heard_s is None or not self.send(Stop()):
            self._kill()
        try:
            await asyncio.wait_for(self._process.wait(), STOP_TIMEOUT_S)
        except TimeoutError:
            self._kill()

    async def _live(self, context: zmq.asyncio.Context, inbox: str, outbox: str) -> str:
        # Sending is synchronous and never waits: a process that died must not hold up who talks to it. The queue
        # has no bound of its own, for the requests in it have one.
        self._socket = sender = zmq.Context(context).socket(zmq.PUSH)
        sender.setsockopt(zmq.SNDHWM, 0)
        sender.bind(inbox)
        receiver = context.socket(zmq.PULL)
        connections = receiver.get_monitor_socket(zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED)
        receiver.bind(outbox)
        process = self._process = await asyncio.create_subprocess_exec(
            *self._command(inbox, outbox),
            # -P leaves out the current directory: the engine must still be of the same code as this process.
            env=child_environment(),
            # An interrupt from the terminal is for the server; it decides when its engines end.
            process_group=0,
        )
        ended = asyncio.create_task(process.wait())
        reading = asyncio.create_task(self._read(receiver))
        watching = asyncio.create_task(self._watch())
        try:
            await asyncio.wait((ended, reading, watching), return_when=asyncio.FIRST_COMPLETED)
            for task in (reading, watching):
                if task.done():
                    return task.result()
            # What the engine said last (its failure, its last tokens) may still be on the way.
            last = asyncio.create_task(read_out(receiver, connections))
            await asyncio.wait((reading, last), timeout=LAST_WORDS_S, return_when=asyncio.FIRST_COMPLETED)
            last.cancel()
            return reading.result() if reading.done() else describe_exit(ended.result())
        finally:
            self._kill()
            for task in (reading, watching):
                task.cancel()
            await asyncio.wait((ended, reading, watching))

    def _command(self, inbox: str, outbox: str) -> list[str]:
        return [
            sys.executable,
            # A folder named like one of ours where the user stands must not be taken for it.
            "-P",
            "-m",
            "server.engine_process",
            f"--model={self._model}",
            f"--directory={self._directory}",
            f"--config={msgspec.json.encode(self._config).decode()}",
            f"--inbox={inbox}",
            f"--outbox={outbox}",
            f"--parent={os.getpid()}",
        ]

    async def _read(self, receiver: zmq.asyncio.Socket) -> str:
        """Hand on messages; returns only when one cannot be understood."""
        while True:
            frame = await receiver.recv()
            self._heard_s = time.monotonic()
            try:
                message = from_engine.decode(frame)
            except msgspec.MsgspecError as error:
                return f"it said what cannot be understood: {error}"
            self._on_message(message)

    async def _watch(self) -> str:
        """Returns when an engine has been silent for too long. It says nothing while it loads, in this life as in every
        other; once it serves, it reports at least once a second between steps.
        """
        started_s = time.monotonic()
        while True:
            heard_s = self._heard_s
            limit_s = self._config.start_timeout_s if heard_s is None else self._config.stall_timeout_s
            if time.monotonic() - (started_s if heard_s is None else heard_s) < limit_s:
                await asyncio.sleep(WATCH_EVERY_S)
                continue
            # If it was this process that stood still, its words are waiting to be read.
            await asyncio.sleep(CATCH_UP_S)
            if self._heard_s != heard_s:
                continue
            if heard_s is None:
                return f"it was not ready within {limit_s:g} s (--start-timeout-s)"
            return f"it was stuck: no word for {limit_s:g} s (--stall-timeout-s)"

    def _kill(self) -> None:
        if self._process and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()


async def read_out(receiver: zmq.asyncio.Socket, connections: zmq.asyncio.Socket) -> None:
    """Returns when who reads `receiver` has all that an ended process sent: at once if it never connected.

    A connection is made before anything comes over it, and its end is told after all that came is there to be read:
    what has ended needs no guess at how long its words may take.

    Args:
        connections: the monitor of `receiver`, from before it was bound, with nothing read of it yet.
    """
    num_connected = 0
    while num_connected or await connections.poll(0):
        event = parse_monitor_message(await connections.recv_multipart())["event"]
        num_connected += 1 if event == zmq.EVENT_ACCEPTED else -1
    # The reader takes what is there in one go, when it is its turn.
    await asyncio.sleep(0)
    while int(receiver.get(zmq.EVENTS)) & zmq.POLLIN:
        await asyncio.sleep(0)
    await asyncio.sleep(0)


def describe_exit(code: int) -> str:
    """An exit code in words; a negative one is a signal's number."""
    if code >= 0:
        return f"exit code {code}"
    return f"killed by signal {-code} ({signal.Signals(-code).name})"
