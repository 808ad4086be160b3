"""One load run from configuration to summary: plan, a locust child process, its records, the files it leaves.

locust runs in a process of its own, because importing it patches every socket and thread of the process.
"""

import contextlib
import json
import os
import signal
import site
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from loadtest.config import ConfigError, LoadConfig, LoadError
from loadtest.health import WorkerHealth, read_health
from loadtest.plan import (
    API_KEY_VARIABLE,
    HEALTH_PREFIX,
    PLAN_VARIABLE,
    RECORDS_PREFIX,
    REQUESTS_DRAFT,
    REQUESTS_FILE,
    START_FILE,
    WORKERS_FILE,
    Progress,
    make_plan,
)
from loadtest.records import RequestRecord, lost_record, read_plan, read_records
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
    with _claimed(config.out):
        plan = make_plan(config, progress)
    started = time.time()
    interrupted = _run_child(config, len(plan.scheduled_s), progress)
    records = _collect(config.out)
    health = read_health(sorted(config.out.glob(f"{HEALTH_PREFIX}*.json")))
    if not health and not records:
        raise ChildError(f"locust recorded nothing; see {config.out / LOG_FILE}")
    facts = RunFacts(started, interrupted=interrupted, locust_count=_locust_count(config.out))
    records += _lost(config, records, health, interrupted=interrupted)
    records.sort(key=lambda one: one.index)
    result = summarise(config, plan, records, health, facts)
    write_summary(config.out, result, records)
    _tidy(config.out)
    return result


@contextlib.contextmanager
def _claimed(out: Path) -> Iterator[None]:
    """Make the run's directory before anything is asked, and take it back if no run comes of it.

    Raises:
        ConfigError: it cannot be made, cannot be written to, or is not empty.
    """
    missing: list[Path] = []
    try:
        missing += [path for path in (out, *out.parents) if not path.exists()]
        out.mkdir(parents=True, exist_ok=True)
        empty = not any(out.iterdir())
    except FileExistsError:
        empty = False
    except OSError as error:
        _remove(missing)
        raise ConfigError(f"--out {out} cannot be made: {error}") from error
    if not empty:
        raise ConfigError(f"--out {out} is not an empty directory; a run never overwrites another")
    if not os.access(out, os.W_OK | os.X_OK):
        raise ConfigError(f"--out {out} cannot be written to")
    try:
        yield
    except BaseException:  # Ctrl-C too
        for name in (REQUESTS_DRAFT, REQUESTS_FILE, WORKERS_FILE):
            (out / name).unlink(missing_ok=True)
        _remove(missing)
        raise


def _remove(directories: Sequence[Path]) -> None:
    """Inmost first; what is not there, or not empty, stays as it is."""
    for path in directories:
        with contextlib.suppress(OSError):
            path.rmdir()


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
    # -P: a module in the working directory must not pass for one of locust's or ours.
    command = [sys.executable, "-P", "-m", "locust", "--locustfile", str(PACKAGE / "locustfile.py"), "--headless"]
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
    # ~/.locust.conf would steer it too. What pip installed for this user alone must still be found.
    kept["PYTHONUSERBASE"] = site.getuserbase()
    kept["HOME"] = str(config.out.resolve())
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
    return [one for path in directory.glob(f"{RECORDS_PREFIX}*.jsonl") for one in read_records(path)]


def _lost(
    config: LoadConfig, records: Sequence[RequestRecord], health: Sequence[WorkerHealth], *, interrupted: bool
) -> list[RequestRecord]:
    """A failed record for each planned request that has none, so that it stays in every denominator.

    An interrupted run is excused for what its workers, by their own account, had not yet dispatched.
    """
    recorded = {record.index for record in records}
    dispatched = {worker.worker: worker.num_dispatched for worker in health} if interrupted else {}
    lost = []
    for planned in read_plan(config.out / REQUESTS_FILE):
        rank, worker = divmod(planned.index, config.processes)
        if planned.index not in recorded and rank < dispatched.get(worker, rank + 1):
            lost.append(lost_record(planned, worker=worker))
    return lost


def _locust_count(directory: Path) -> int | None:
    """How many requests locust itself counted: the sum over its rows, of which there is one per name."""
    try:
        rows = json.loads((directory / f"{LOCUST_FILE}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return sum(int(row["num_requests"]) for row in rows)
