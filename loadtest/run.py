"""One load run from configuration to summary: plan, a locust child process, its records, the files it leaves.

locust runs in a process of its own, because importing it patches every socket and thread of the process.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from loadtest.config import ConfigError, LoadConfig, LoadError
from loadtest.health import read_health
from loadtest.plan import (
    API_KEY_VARIABLE,
    HEALTH_PREFIX,
    PLAN_VARIABLE,
    RECORDS_PREFIX,
    START_FILE,
    WORKERS_FILE,
    Progress,
    make_plan,
)
from loadtest.records import RequestRecord, read_records
from loadtest.report.summary import summarise, write_summary
from loadtest.selfcheck import RunFacts

LOG_FILE, LOCUST_FILE = "locust.log", "locust"  # locust itself adds .json to the second
PACKAGE = Path(__file__).resolve().parent
STARTUP_S = 60.0
GRACE_S = 15.0
POLL_S = 0.2


class ChildError(LoadError):
    """locust could not run; its log says why."""


def run_load(config: LoadConfig, progress: Progress = lambda *_: None) -> dict[str, Any]:
    """Run and summarise; the summary is also written into config.out, beside the records.

    Args:
        progress: called with a stage ("prompts" or "requests"), how many are done, and of how many.
    Raises:
        ConfigError, EndpointError: before any load. ChildError: locust recorded nothing.
    """
    if config.out.exists() and (not config.out.is_dir() or any(config.out.iterdir())):
        raise ConfigError(f"--out {config.out} is not an empty directory; a run never overwrites another")
    plan = make_plan(config, progress)
    started = time.time()
    interrupted = _run_child(config, len(plan.scheduled_s), progress)
    records = _collect(config.out)
    health = read_health(sorted(config.out.glob(f"{HEALTH_PREFIX}*.json")))
    if not health and not records:
        raise ChildError(f"locust recorded nothing; see {config.out / LOG_FILE}")
    facts = RunFacts(started, interrupted=interrupted, locust_count=_locust_count(config.out))
    result = summarise(config, plan, records, health, facts)
    write_summary(config.out, result, records)
    _tidy(config.out)
    return result


def _run_child(config: LoadConfig, num_requests: int, progress: Progress) -> bool:
    """Start locust, report progress until it ends, and say whether it was interrupted."""
    deadline_s = time.monotonic() + STARTUP_S + config.schedule_s + config.stop_timeout_s
    with (config.out / LOG_FILE).open("wb") as log:
        child = subprocess.Popen(
            _command(config),
            cwd=config.out,
            env=_environment(config),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            # Ctrl-C goes to this process alone, which then ends the child in an orderly way.
            start_new_session=True,
        )
        try:
            while child.poll() is None and time.monotonic() < deadline_s:
                progress("requests", _num_recorded(config.out), num_requests)
                time.sleep(POLL_S)
            interrupted = child.poll() is None
        except KeyboardInterrupt:
            interrupted = True
        finally:
            _end(child)
    progress("requests", _num_recorded(config.out), num_requests)
    return interrupted


def _end(child: "subprocess.Popen[bytes]") -> None:
    if child.poll() is None:
        child.send_signal(signal.SIGINT)
        try:
            child.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            child.kill()
    # Workers of a killed master would go on sending.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _command(config: LoadConfig) -> list[str]:
    command = [sys.executable, "-m", "locust", "--locustfile", str(PACKAGE / "locustfile.py"), "--headless"]
    command += ["--users", str(config.processes), "--spawn-rate", str(config.processes)]
    command += ["--only-summary", "--json-file", LOCUST_FILE, "--exit-code-on-error", "0"]
    if config.processes > 1:
        port = str(_free_port())
        command += ["--processes", str(config.processes)]
        command += ["--master-bind-host", "127.0.0.1", "--master-bind-port", port, "--master-port", port]
    return command


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _environment(config: LoadConfig) -> dict[str, str]:
    """The caller's environment without what would steer locust or turn gevent's warnings into errors."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LOCUST_")}
    kept.pop("PYTHONWARNINGS", None)
    search = [str(PACKAGE.parent), *kept.get("PYTHONPATH", "").split(os.pathsep)]
    kept["PYTHONPATH"] = os.pathsep.join(filter(None, search))
    kept[PLAN_VARIABLE] = str(config.out.resolve())
    if config.api_key is not None:
        kept[API_KEY_VARIABLE] = config.api_key
    return kept


def _tidy(directory: Path) -> None:
    """Remove what the summary and requests.jsonl now hold."""
    for pattern in (f"{RECORDS_PREFIX}*.jsonl", f"{HEALTH_PREFIX}*.json", START_FILE, WORKERS_FILE):
        for path in directory.glob(pattern):
            path.unlink()


def _num_recorded(directory: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in directory.glob(f"{RECORDS_PREFIX}*.jsonl"))


def _collect(directory: Path) -> list[RequestRecord]:
    paths = sorted(directory.glob(f"{RECORDS_PREFIX}*.jsonl"))
    return sorted((one for path in paths for one in read_records(path)), key=lambda one: one.index)


def _locust_count(directory: Path) -> int | None:
    """How many requests locust itself counted: the sum over its rows, of which there is one per name."""
    try:
        rows = json.loads((directory / f"{LOCUST_FILE}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return sum(int(row["num_requests"]) for row in rows)
