"""Drives a real `fathom serve` as a process of its own, as a user would start it."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import httpx
import psutil

ROOT = Path(__file__).resolve().parents[1]
START_TIMEOUT_S = 120.0


class ServerProcess:
    """Owns one server process. `url` is there once it is ready; `log` holds all lines so far."""

    def __init__(self, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        self.log: list[str] = []
        self._ready = threading.Event()
        variables = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"} | (environment or {})
        variables.pop("FATHOM_API_KEY", None)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fathom", "serve", "--port", "0", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            env=variables,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> "ServerProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.log.append(line.rstrip("\n"))
            if line.startswith("ready: "):
                self.url = line.split()[1]
                self._ready.set()
        self._ready.set()

    def wait_ready(self) -> "ServerProcess":
        assert self._ready.wait(START_TIMEOUT_S), "not ready in time:\n" + "\n".join(self.log)
        assert self.process.poll() is None, "the server ended:\n" + "\n".join(self.log)
        return self

    def wait_health(self, status: int, timeout_s: float) -> dict:
        """Poll /health until it answers with `status`; returns its body."""
        deadline = time.monotonic() + timeout_s
        while True:
            answer = httpx.get(f"{self.url}/health")
            if answer.status_code == status:
                return answer.json()
            assert time.monotonic() < deadline, f"health is {answer.status_code}: {answer.text}"
            time.sleep(0.02)

    def engine(self, model: str) -> psutil.Process:
        """The engine process of a model."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return next(child for child in children if f"--model={model}" in child.cmdline())

    def metrics(self) -> dict[str, float]:
        """Sample name with labels -> value."""
        lines = httpx.get(f"{self.url}/metrics").text.splitlines()
        return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if not line.startswith("#")}

    def stop(self) -> int:
        """End it as Ctrl-C would; returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            code = self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        self._reader.join(10)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code
