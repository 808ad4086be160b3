"""The server with known timings as a fixture, and plain records to compute with."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from loadtest.config import LoadConfig
from loadtest.records import RequestRecord, read_records

SERVER = Path(__file__).parents[1] / "known_timings.py"


@dataclass
class KnownServer:
    url: str
    log: Path
    process: "subprocess.Popen[str]"

    def calls(self, *, least: int = 0, timeout_s: float = 10.0) -> list[dict[str, Any]]:
        """What the server logged, without the client's trials; waits for `least` calls to be over."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            lines = self.log.read_text(encoding="utf-8").splitlines() if self.log.exists() else []
            calls = [call for call in map(json.loads, lines) if call["max_tokens"] != 2]
            if len(calls) >= least or time.monotonic() > deadline_s:
                return calls
            time.sleep(0.05)


StartServer = Callable[..., KnownServer]
MakeConfig = Callable[..., LoadConfig]


def records_of(config: LoadConfig) -> list[RequestRecord]:
    return list(read_records(config.out / "requests.jsonl"))


def faults(summary: dict[str, Any]) -> list[str]:
    """Reasons not to trust the run, less those that a busy test machine alone can give."""
    return [reason for reason in summary["verdict"]["reasons"] if not re.search(r"lag p99|of a core", reason)]


def start_command(url: str, out: Path, *more: str) -> "subprocess.Popen[bytes]":
    options = ["--endpoint", url, "--model", "steady", "--rate", "10", "--context", "100", "--output", "3"]
    command = [sys.executable, "-P", "-m", "loadtest.cli", "run", *options, "--duration", "60", "--out", str(out)]
    return subprocess.Popen([*command, *more], stdout=subprocess.DEVNULL)


def await_records(out: Path, num: int) -> None:
    """Wait until the load processes have recorded so many requests."""
    deadline_s = time.monotonic() + 30
    while sum(path.read_bytes().count(b"\n") for path in out.glob("records-*.jsonl")) < num:
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[StartServer]:
    processes: list[subprocess.Popen[str]] = []

    def start(*options: str) -> KnownServer:
        log = tmp_path / f"server-{len(processes)}.jsonl"
        command = [sys.executable, str(SERVER), "--log", str(log), *options]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        processes.append(process)
        assert process.stdout is not None
        port = int(process.stdout.readline())
        return KnownServer(f"http://127.0.0.1:{port}", log, process)

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def make_config(tmp_path: Path) -> Callable[..., LoadConfig]:
    def make(endpoint: str = "http://127.0.0.1:9", **changes: Any) -> LoadConfig:
        options = {
            "endpoint": endpoint,
            "model": "steady",
            "out": tmp_path / "run",
            "rate": 10.0,
            "context_tokens": 100,
            "output_tokens": 10,
            "duration_s": 2.0,
            "salt": "s",
            "stop_timeout_s": 10.0,
        }
        return LoadConfig(**{**options, **changes})

    return make


@pytest.fixture
def make_record() -> Callable[..., RequestRecord]:
    """A completed request: scheduled at 1.0, sent at 1.1, tokens at 1.3, 1.4, 1.5, end at 1.6."""

    def make(**changes: Any) -> RequestRecord:
        fields = {
            "index": 0,
            "worker": 0,
            "scheduled_s": 1.0,
            "dispatched_s": 1.0,
            "connect_s": 1.05,
            "sent_s": 1.1,
            "headers_s": 1.2,
            "token_times_s": (1.3, 1.4, 1.5),
            "end_s": 1.6,
            "outcome": "completed",
            "status": 200,
            "error_kind": None,
            "error": None,
            "finish_reason": "length",
            "planned_prompt_tokens": 100,
            "prompt_tokens": 100,
            "completion_tokens": 3,
            "cached_tokens": 0,
            "fathom": None,
            "saw_done": True,
        }
        return RequestRecord(**{**fields, **changes})

    return make
