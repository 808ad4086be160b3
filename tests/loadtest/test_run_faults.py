"""Whole runs in which something breaks: the server, the network, the client itself, or the user's patience."""

import json
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from loadtest.run import run_load

from .conftest import MakeConfig, StartServer, await_records, faults, records_of, start_command

pytestmark = pytest.mark.timeout(90)
QUICK = ("--ttft", "0.02", "--gap", "0.001")


@pytest.fixture
def sabotage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Code that the load processes, and they alone, run before anything else."""

    def plant(code: str) -> None:
        directory = tmp_path / "sabotage"
        directory.mkdir()
        (directory / "sitecustomize.py").write_text(code)
        monkeypatch.setenv("PYTHONPATH", str(directory))

    return plant


def test_a_worker_that_is_done_does_not_send_its_share_again(
    start_server: StartServer, make_config: MakeConfig, sabotage: Any
) -> None:
    """locust repeats a task that returns. Waits are cut short here, so that one of a minute would show at once."""
    server = start_server(*QUICK)
    sabotage("import gevent; sleep = gevent.sleep; gevent.sleep = lambda s=0, *a, **k: sleep(min(s, 0.3), *a, **k)")
    config = make_config(
        server.url, model="hang_once", processes=2, arrivals="constant", duration_s=1.0, stop_timeout_s=3.0
    )
    summary = run_load(config)
    calls = server.calls(least=10)
    assert len(calls) == 10
    assert len({call["prompt"] for call in calls}) == 10
    assert (summary["requests"]["completed"], summary["requests"]["unfinished"]) == (9, 1)
    assert faults(summary) == []


def test_an_error_at_the_end_of_a_worker_does_not_start_it_again(
    start_server: StartServer, make_config: MakeConfig, sabotage: Any
) -> None:
    server = start_server(*QUICK)
    sabotage("import loadtest.health as health\nhealth.write_health = lambda *_: 1 / 0")
    config = make_config(server.url, arrivals="constant", duration_s=1.0)
    begun_s = time.monotonic()
    summary = run_load(config)
    assert time.monotonic() - begun_s < 30
    assert len(server.calls()) == summary["requests"]["completed"] == 10
    assert faults(summary) == ["1 workers were started, 0 reported at the end"]


def test_no_failure_leaves_the_denominator(start_server: StartServer, make_config: MakeConfig, sabotage: Any) -> None:
    """One request breaks the client's code, one its record: both are failures, and the run is not to be trusted."""
    server = start_server(*QUICK)
    sabotage(
        """
import loadtest.client as client, loadtest.records as records
stream_chat, to_line, calls = client.stream_chat, records.to_line, []

def break_third(*arguments):
    calls.append(1)
    if len(calls) == 3:
        raise RuntimeError("\\ud83d")
    stream_chat(*arguments)

def break_fifth(item):
    return to_line(item) if item.index != 5 else 1 / 0

client.stream_chat, records.to_line = break_third, break_fifth
"""
    )
    config = make_config(server.url, arrivals="constant", duration_s=1.0)
    summary = run_load(config)
    requests = summary["requests"]
    assert (requests["planned"], requests["dispatched"], requests["completed"]) == (10, 9, 8)
    assert (requests["failed"], requests["lost"]) == (2, 1)
    assert {error["kind"]: error["n"] for error in summary["errors"]} == {"client_error": 1, "lost": 1}
    assert (summary["slo"]["attainment"]["good"], summary["slo"]["attainment"]["n"]) == (8, 10)
    assert summary["latency"]["ttft_s"]["with_failures"]["n"] == 10
    assert [record.index for record in records_of(config)] == list(range(10))
    reasons = " ".join(faults(summary))
    assert "10 requests were planned, 9 were recorded" in reasons
    assert "1 requests failed on an error of the client itself" in reasons


def test_an_error_message_that_cannot_be_encoded_is_counted_like_any_other(
    start_server: StartServer, make_config: MakeConfig
) -> None:
    """Two workers, since they send the messages to locust's master."""
    server = start_server(*QUICK)
    config = make_config(server.url, model="surrogate", processes=2, arrivals="constant", duration_s=1.0)
    summary = run_load(config)
    assert summary["errors"] == [{"kind": "http_500", "n": 10, "example": "broken ?"}]
    assert summary["requests"]["failed"] == summary["slo"]["attainment"]["n"] == 10
    (row,) = json.loads((config.out / "locust.json").read_text())
    assert row["num_failures"] == 10


def test_a_server_that_dies_is_a_finding(start_server: StartServer, make_config: MakeConfig) -> None:
    server = start_server("--ttft", "0.3", "--gap", "0.01")
    config = make_config(server.url, arrivals="constant", rate=20.0, duration_s=2.0)
    results: list[dict[str, Any]] = []
    runner = threading.Thread(target=lambda: results.append(run_load(config)))
    runner.start()
    await_records(config.out, 5)
    server.process.kill()
    runner.join()
    (summary,) = results
    requests = summary["requests"]
    assert requests["completed"] >= 5
    assert requests["completed"] + requests["failed"] == requests["planned"] == 40
    kinds = {error["kind"]: error["n"] for error in summary["errors"]}
    assert kinds["connect"] > 5
    assert kinds.keys() <= {"connect", "disconnected", "cut_off"}
    assert kinds.keys() > {"connect"}
    assert faults(summary) == []


@pytest.mark.parametrize("processes", [1, 2])
def test_an_interrupted_run_keeps_what_it_has(start_server: StartServer, tmp_path: Path, processes: int) -> None:
    server = start_server(*QUICK)
    command = start_command(server.url, tmp_path / "run", "--processes", str(processes))
    await_records(tmp_path / "run", 20)
    command.send_signal(signal.SIGINT)
    assert command.wait(30) == 3
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    requests = summary["requests"]
    assert requests["completed"] >= 20
    # One that was about to connect is counted by the client and never seen by the server.
    assert requests["completed"] <= len(server.calls(least=requests["completed"])) <= requests["dispatched"]
    assert requests["dispatched"] - requests["completed"] <= 5
    # What was not yet due is neither sent nor lost, and the seconds it would have taken are not counted.
    assert requests["lost"] == 0
    assert requests["dispatched"] == summary["slo"]["attainment"]["n"] < requests["planned"] / 2
    assert 5 < requests["completed_rps"] < 20
    assert any("interrupted" in reason for reason in summary["verdict"]["reasons"])
    assert len(summary["workers"]) == processes


def test_the_users_own_locust_options_do_not_steer_the_run(
    start_server: StartServer, make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / ".locust.conf").write_text("run-time = 1s\n")
    monkeypatch.setenv("HOME", str(home))
    summary = run_load(make_config(start_server(*QUICK).url, arrivals="constant", duration_s=3.0))
    assert summary["requests"]["completed"] == summary["requests"]["planned"] == 30
    assert faults(summary) == []


def test_prompts_at_the_models_limit_are_not_refused(start_server: StartServer, make_config: MakeConfig) -> None:
    """With a long template the first guess is 35 tokens too long: within 1 % of the target, beyond the model."""
    server = start_server(*QUICK, "--template", "40")
    config = make_config(server.url, context_tokens=4086, arrivals="constant", duration_s=0.5)
    summary = run_load(config)
    assert summary["errors"] == []
    assert all(4000 < record.planned_prompt_tokens <= 4086 for record in records_of(config))
