"""Whole runs: the real locust in its own process, against the server with known timings."""

import json
import os
import signal
import statistics
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest

from loadtest import arrivals
from loadtest.config import ConfigError, EndpointError
from loadtest.latency import Slo
from loadtest.records import read_plan
from loadtest.run import run_load

from .conftest import MakeConfig, StartServer, await_records, faults, records_of, start_command

# Every child run takes its seconds; spread over workers they take fewer.
pytestmark = pytest.mark.timeout(90)


def prompt_of(body: str) -> str:
    return str(json.loads(body)["messages"][-1]["content"])


def test_a_steady_run_agrees_with_the_servers_log(start_server: StartServer, make_config: MakeConfig) -> None:
    server = start_server("--ttft", "0.1", "--gap", "0.02")
    config = make_config(server.url, warmup_s=0.5, slo=Slo(ttft_s=5.0), seed=3)
    summary = run_load(config)
    records, calls = records_of(config), server.calls()
    expected = arrivals.schedule("poisson", rate=10.0, duration_s=2.5, seed=3)

    assert [record.scheduled_s for record in records] == list(expected)
    assert len(calls) == len(records) == summary["requests"]["planned"]
    num_warmup = sum(at < 0.5 for at in expected)
    assert summary["requests"]["warmup"] == num_warmup > 0
    assert summary["requests"]["completed"] == summary["slo"]["attainment"]["n"] == len(expected) - num_warmup
    assert faults(summary) == []
    # One row, one event per call: nothing else may enter locust's own totals.
    (row,) = json.loads((config.out / "locust.json").read_text())
    assert (row["num_requests"], row["num_failures"]) == (len(calls), 0)

    written = {call["prompt"]: call for call in calls}
    plan = {one.index: one for one in read_plan(config.out / "plan.jsonl")}
    origin_s = summary["workers"][0]["origin_s"]
    delays = []
    for record in records:
        call = written[prompt_of(plan[record.index].body)]
        instants = [origin_s + at for at in record.token_times_s]
        delays += [there - here for here, there in zip(call["chunk_times_s"], instants, strict=True)]
        assert record.sent_s is not None
        assert origin_s + record.sent_s <= call["received_s"]
        assert (record.prompt_tokens, record.completion_tokens) == (record.planned_prompt_tokens, 10)
    assert min(delays) >= 0
    assert statistics.median(delays) < 0.02
    true_ttft = statistics.median(call["chunk_times_s"][0] - call["received_s"] for call in calls)
    true_gap = statistics.median((call["chunk_times_s"][-1] - call["chunk_times_s"][0]) / 9 for call in calls)
    assert summary["latency"]["ttft_s"]["completed"]["p50"] == pytest.approx(true_ttft, abs=0.02)
    assert summary["latency"]["tpot_s"]["completed"]["p50"] == pytest.approx(true_gap, abs=0.003)
    assert summary["server"]["peak_bytes"]["mean"] == pytest.approx(100_000, rel=0.03)


def test_failures_are_counted_by_kind_and_stay_in_the_denominator(
    start_server: StartServer, make_config: MakeConfig
) -> None:
    server = start_server("--ttft", "0.02", "--gap", "0.005")
    config = make_config(server.url, model="mixed", arrivals="constant", duration_s=2.0)
    summary = run_load(config)
    behaviours = Counter(call["behaviour"] for call in server.calls())
    assert sum(behaviours.values()) == 20
    kinds = {error["kind"]: error["n"] for error in summary["errors"]}
    assert kinds == {
        "http_429": behaviours["busy"],
        "stream_error": behaviours["error"],
        "cut_off": behaviours["cut"],
    }
    assert summary["requests"]["completed"] == behaviours["steady"] == 5
    assert summary["slo"]["attainment"]["fraction"] == 0.25
    assert summary["latency"]["ttft_s"]["with_failures"] == {"p50": None, "p90": None, "p99": None, "n": 20}
    (row,) = json.loads((config.out / "locust.json").read_text())
    assert (row["num_requests"], row["num_failures"]) == (20, 15)
    # A failing server is a finding, not a fault of the client.
    assert faults(summary) == []


def test_a_slow_server_does_not_move_the_schedule(start_server: StartServer, make_config: MakeConfig) -> None:
    server = start_server("--ttft", "3", "--gap", "0.001")
    config = make_config(server.url, rate=20.0, arrivals="constant", duration_s=1.5, output_tokens=3)
    summary = run_load(config)
    records = records_of(config)
    assert [record.scheduled_s for record in records] == [i / 20 for i in range(30)]
    lag = [record.dispatched_s - record.scheduled_s for record in records]
    assert min(lag) >= 0
    assert statistics.median(lag) < 0.02
    # All were sent before the first answer came: nobody waited for anybody.
    assert max(record.sent_s or 99 for record in records) < min(record.token_times_s[0] for record in records)
    assert summary["workers"][0]["max_open"] == 30


def test_a_client_that_stood_still_keeps_its_schedule_and_says_so(
    start_server: StartServer, make_config: MakeConfig
) -> None:
    """Stop the load process for a second: late requests leave at once, later ones at their own instants."""
    server = start_server("--ttft", "0.02", "--gap", "0.001")
    config = make_config(server.url, rate=20.0, arrivals="constant", duration_s=3.0, output_tokens=3)
    results: list[dict[str, Any]] = []
    runner = threading.Thread(target=lambda: results.append(run_load(config)))
    runner.start()
    path = config.out / "records-0.jsonl"
    while not (path.exists() and path.read_bytes().count(b"\n") >= 10):
        time.sleep(0.01)
        assert runner.is_alive()
    (child,) = [one for one in psutil.Process().children() if "locust" in " ".join(one.cmdline())]
    child.suspend()
    time.sleep(1.0)
    child.resume()
    runner.join()
    lag = [record.dispatched_s - record.scheduled_s for record in records_of(config)]
    assert max(lag) > 0.7
    assert statistics.median(lag[-10:]) < 0.05
    reasons = results[0]["verdict"]["reasons"]
    assert any("dispatch lag p99" in reason for reason in reasons), reasons


def test_hung_requests_are_kept_as_unfinished(start_server: StartServer, make_config: MakeConfig) -> None:
    server = start_server("--ttft", "0.02", "--gap", "0.005")
    config = make_config(server.url, model="hang", arrivals="constant", duration_s=1.0, stop_timeout_s=1.5, rate=8.0)
    summary = run_load(config)
    assert summary["requests"]["unfinished"] == len(server.calls(least=8)) == 8
    assert summary["requests"]["completed"] == 0
    ages = summary["requests"]["unfinished_age_s"]
    assert ages["n"] == 8
    assert 1.4 < ages["p50"] < 3.5
    assert all(len(record.token_times_s) == 3 for record in records_of(config))
    (row,) = json.loads((config.out / "locust.json").read_text())
    assert (row["num_requests"], row["num_failures"]) == (8, 8)
    assert "no request completed" in " ".join(summary["verdict"]["reasons"])


def test_a_cap_holds_requests_back_and_the_run_says_so(start_server: StartServer, make_config: MakeConfig) -> None:
    server = start_server("--ttft", "0.5", "--gap", "0.001")
    config = make_config(server.url, arrivals="constant", duration_s=1.0, output_tokens=3, max_in_flight=2)
    summary = run_load(config)
    last = records_of(config)[-1]
    assert last.scheduled_s == 0.9
    assert last.dispatched_s < 1.2
    # Ten requests, two at a time, half a second each: the last begins after four rounds.
    assert last.connect_s is not None
    assert last.connect_s >= 2.0
    latency = summary["latency"]
    assert latency["ttft_s"]["completed"]["p50"] < 1.0 < latency["ttft_from_schedule_s"]["completed"]["p90"]
    assert any("--max-in-flight 2 held requests back" in reason for reason in summary["verdict"]["reasons"])
    # What waits under the cap is not open.
    assert summary["client"]["max_open"] <= 2
    assert summary["client"]["max_queued"] >= 5
    # Two at a time, half a second each, are at most four a second; ten came in the one second of the schedule.
    assert summary["requests"]["completed"] == 10
    assert 2.5 < summary["requests"]["completed_rps"] < 4.1
    assert summary["slo"]["attainment"]["goodput_rps"] == summary["requests"]["completed_rps"]


def test_several_workers_share_one_schedule(start_server: StartServer, make_config: MakeConfig) -> None:
    server = start_server("--ttft", "0.05", "--gap", "0.005")
    config = make_config(server.url, processes=2, duration_s=1.5, seed=1)
    summary = run_load(config)
    records = records_of(config)
    expected = arrivals.schedule("poisson", rate=10.0, duration_s=1.5, seed=1)
    assert [record.scheduled_s for record in records] == list(expected)
    assert all(record.worker == record.index % 2 for record in records)
    assert summary["workers"][0]["origin_s"] == summary["workers"][1]["origin_s"]
    assert summary["requests"]["completed"] == len(server.calls()) == len(expected)
    assert faults(summary) == []


def test_a_plain_endpoint_is_measured_with_notes(start_server: StartServer, make_config: MakeConfig) -> None:
    server = start_server("--ttft", "0.02", "--gap", "0.005", "--no-tokenize", "--no-ignore-eos")
    config = make_config(server.url, model="plain", duration_s=1.0)
    summary = run_load(config)
    assert faults(summary) == []
    notes = " ".join(summary["verdict"]["notes"])
    for part in ("refuses ignore_eos", "4 characters per token", "without usage", "without [DONE]"):
        assert part in notes
    assert summary["latency"]["tpot_s"]["completed"]["n"] == 0
    assert summary["latency"]["itl_s"]["completed"]["n"] > 0
    assert all("ignore_eos" not in call["options"] for call in server.calls())


def test_an_estimate_is_taken_from_a_measured_prompt(start_server: StartServer, make_config: MakeConfig) -> None:
    server = start_server("--ttft", "0.01", "--gap", "0.001", "--no-tokenize")
    config = make_config(server.url, context_tokens=400, duration_s=1.0)
    summary = run_load(config)
    assert "estimated at" in summary["tokens"]["counting"]
    assert summary["tokens"]["prompt"]["mean"] == pytest.approx(400, rel=0.15)


def test_a_key_reaches_the_server_but_no_file(start_server: StartServer, make_config: MakeConfig) -> None:
    server = start_server("--ttft", "0.01", "--gap", "0.001", "--key", "very-secret")
    with pytest.raises(EndpointError, match="refuses the key"):
        run_load(make_config(server.url, api_key="wrong"))
    chat_only = start_server("--key", "very-secret", "--key-for", "/v1/chat")
    with pytest.raises(EndpointError, match="fails a trial request: http_401: wrong key"):
        run_load(make_config(chat_only.url, api_key="wrong"))
    config = make_config(server.url, api_key="very-secret", duration_s=0.5)
    assert run_load(config)["requests"]["failed"] == 0
    for path in config.out.iterdir():
        assert b"very-secret" not in path.read_bytes()


def test_what_cannot_be_measured_is_refused_before_any_load(start_server: StartServer, make_config: MakeConfig) -> None:
    server = start_server()
    with pytest.raises(EndpointError, match="no answer"):
        run_load(make_config("http://127.0.0.1:9"))
    with pytest.raises(EndpointError, match="--model nobody is not served"):
        run_load(make_config(server.url, model="nobody"))
    with pytest.raises(EndpointError, match="trial request"):
        run_load(make_config(server.url + "/elsewhere"))
    with pytest.raises(ConfigError, match="--context plus --output is 5010; steady takes at most 4096"):
        run_load(make_config(server.url, context_tokens=5000))
    with pytest.raises(ConfigError, match="no arrival"):
        run_load(make_config(server.url, rate=0.001))
    assert server.calls() == []


def test_a_refused_run_leaves_its_directory_free(
    start_server: StartServer, make_config: MakeConfig, tmp_path: Path
) -> None:
    """Also one that is refused, or stopped with Ctrl-C, when the plan is half written."""
    server = start_server("--ttft", "0.01", "--gap", "0.001")
    config = make_config(server.url, out=tmp_path / "new" / "run", context_tokens=5)
    with pytest.raises(ConfigError, match="--context 5: the nearest prompt"):
        run_load(config)
    assert not config.out.parent.exists()
    config.out.mkdir(parents=True)
    config = make_config(server.url, out=tmp_path / "new" / "run", duration_s=1.0)

    def stop(_stage: str, done: int, _total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_load(config, stop)
    assert list(config.out.iterdir()) == []
    assert run_load(config)["requests"]["failed"] == 0


def test_another_run_is_never_overwritten(make_config: MakeConfig) -> None:
    config = make_config()
    config.out.mkdir()
    (config.out / "summary.json").write_text("{}")
    with pytest.raises(ConfigError, match="not an empty directory"):
        run_load(config)


def test_a_killed_command_leaves_no_load_behind(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server("--ttft", "0.02", "--gap", "0.001")
    command = start_command(server.url, tmp_path / "run")
    await_records(tmp_path / "run", 5)
    (child,) = psutil.Process(command.pid).children()
    os.kill(command.pid, signal.SIGKILL)
    command.wait()
    psutil.wait_procs([child], timeout=15)
    assert not child.is_running()
