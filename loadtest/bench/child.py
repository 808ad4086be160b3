"""One process of a contender and all that it starts: begun, stopped for a while, ended for good. Knows no HTTP."""

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import IO

END_TIMEOUT_S = 15.0
TAIL_CHARS = 20_000


class Child:
    """A process with a session of its own, so that signals reach all that it starts as well.

    Attributes:
        log: where its error output goes, and its output too unless that is a pipe.
    """

    def __init__(self, command: list[str], *, env: Mapping[str, str], log: Path, pipes: bool = False) -> None:
        self.log = log
        with log.open("ab") as stream:
            self._process = subprocess.Popen(
                command,
                env={**os.environ, **env},
                stdin=subprocess.PIPE if pipes else subprocess.DEVNULL,
                stdout=subprocess.PIPE if pipes else stream,
                stderr=stream,
                start_new_session=True,
            )

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def dies_within(self, seconds: float) -> bool:
        """Whether it is gone by then; a process that drops its connections may need a moment to end."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        return not self.running

    @property
    def input(self) -> IO[bytes]:
        assert self._process.stdin is not None
        return self._process.stdin

    @property
    def output(self) -> IO[bytes]:
        assert self._process.stdout is not None
        return self._process.stdout

    def pause(self) -> None:
        """Nothing of it runs until `resume`: whoever is timed has the machine to itself."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def end(self) -> None:
        """Ask, wait, insist."""
        self._signal(signal.SIGCONT)
        self._signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(END_TIMEOUT_S)
        self.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def last_words(self) -> str:
        """The line of its log that most likely says what went wrong."""
        lines = [line.strip() for line in self.log.read_text("utf-8", "replace")[-TAIL_CHARS:].splitlines()]
        telling = [line for line in lines if "Error" in line or "error:" in line or "failed" in line]
        words = (telling or [line for line in lines if line] or ["it said nothing"])[-1]
        return words if len(words) <= 200 else words[:200] + "..."

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


class Limit:
    """Kills a child that takes longer than it may, from now until `cancel`."""

    def __init__(self, child: Child, seconds: float) -> None:
        self.reached = False
        self._child = child
        self._timer = threading.Timer(seconds, self._reach)
        self._timer.daemon = True
        self._timer.start()

    def cancel(self) -> None:
        self._timer.cancel()

    def _reach(self) -> None:
        self.reached = True
        self._child.kill()
