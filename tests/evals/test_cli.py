"""`fathom eval` as a user calls it: whole, wrong, interrupted and killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fakes_endpoint import MODEL

from evals.records import PERMISSIONS
from evals.store import Store

ROOT = Path(__file__).resolve().parents[2]
NUM_QUESTIONS, BUDGETS = 10, "0,64,256"
TOTAL = NUM_QUESTIONS * 3 * 2


class Endpoint:
    """The planted endpoint in a process of its own, with its log of what was asked."""

    def __init__(self, log: Path, delay_s: float) -> None:
        self.log = log
        command = [sys.executable, ROOT / "tests/fakes_endpoint.py", "--log", log, "--delay-s", str(delay_s)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.communicate(timeout=20)

    @property
    def asked(self) -> list[str]:
        return self.log.read_text().split() if self.log.exists() else []


def command(url, out, *more):
    options = ["--endpoint", url, "--model", MODEL, "--out", str(out), "--n", str(NUM_QUESTIONS), "--budgets", BUDGETS]
    permissions = [part for name in PERMISSIONS for part in ("--permission", name)]
    return [sys.executable, "-m", "fathom", "eval", "run", *options, *permissions, *more]


def run(*arguments):
    environment = os.environ | {"COLUMNS": "140"}
    return subprocess.run(*arguments, capture_output=True, text=True, cwd=ROOT, timeout=120, env=environment)


def figures(out):
    """The totals of every point, without what a clock decides."""
    summary = json.loads((out / "summary.json").read_text())
    keys = ("budget", "n", "recall", "correct", "hallucinated", "abstained", "unscored", "prompt_tokens_mean")
    return [
        (one["permission"], [{key: point[key] for key in keys} for point in one["points"]]) for one in summary["models"]
    ]


def stop_half_way(url, out, number):
    """Start a run and send it a signal when some samples are stored; returns its output and how many were."""
    process = subprocess.Popen(command(url, out), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 60
    while stored(out) < TOTAL // 4:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    return process.returncode, output, stored(out)


def stored(out):
    if not (out / "samples.sqlite").exists():
        return 0
    with Store(out) as store:
        return len(store.done_keys())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_was_stopped_goes_on(tmp_path, number):
    with Endpoint(tmp_path / "whole.log", 0.0) as endpoint:
        whole = run(command(endpoint.url, tmp_path / "whole"))
        assert whole.returncode == 0, whole.stdout + whole.stderr
        assert len(endpoint.asked) == TOTAL
    with Endpoint(tmp_path / "stopped.log", 0.1) as endpoint:
        code, output, before = stop_half_way(endpoint.url, tmp_path / "stopped", number)
        assert code == (-signal.SIGKILL if number == signal.SIGKILL else 130)
        assert "Traceback" not in output
        assert 0 < before < TOTAL
        asked_before = len(endpoint.asked)
        # Only what was under way when the run was stopped may be asked again: nothing that was stored.
        assert before <= asked_before <= before + 4
        assert run(command(endpoint.url, tmp_path / "stopped")).returncode == 0
        assert len(endpoint.asked) - asked_before == TOTAL - before
        assert len(set(endpoint.asked)) == TOTAL
    assert figures(tmp_path / "stopped") == figures(tmp_path / "whole")
    assert stored(tmp_path / "stopped") == TOTAL


def test_outputs_and_report_again(tmp_path):
    with Endpoint(tmp_path / "log", 0.0) as endpoint:
        done = run(command(endpoint.url, tmp_path / "out"))
        load = tmp_path / "load.json"
        load.write_text("{}")
    assert done.returncode == 0
    assert "report.html" in done.stdout
    assert "must_answer" in done.stdout
    (tmp_path / "out/report.html").unlink()
    again = run([sys.executable, "-m", "fathom", "eval", "report", str(tmp_path / "out")])
    assert again.returncode == 0
    assert (tmp_path / "out/report.html").stat().st_size < 3_000_000
    wrong = run([sys.executable, "-m", "fathom", "eval", "report", str(tmp_path / "out"), "--load", str(load)])
    assert (wrong.returncode, "is not the summary.json of a load test" in wrong.stdout) == (2, True)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--budgets", "0,x"], "--budgets must be whole numbers"),
        (["--permission", "may_lie"], "--permission must be one of must_answer, may_abstain"),
        (["--dataset", "trivia"], "--dataset 'trivia' is not known"),
        (["--dataset", "nq"], "--data: nq needs"),
        (["--n", "5000"], "--n 5000 is more than the 2000 questions"),
        (["--endpoint", "http://127.0.0.1:9"], "gives no list of models"),
        (["--colour", "red"], "No such option"),
    ],
)
def test_wrong_options(tmp_path, more, words):
    done = run(command("http://127.0.0.1:9", tmp_path, *more))
    assert done.returncode == 2
    assert words in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_a_directory_that_is_no_run(tmp_path):
    done = run([sys.executable, "-m", "fathom", "eval", "report", str(tmp_path)])
    assert (done.returncode, "has no samples.sqlite" in done.stdout) == (2, True)
