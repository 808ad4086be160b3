"""`fathom eval` as a user calls it: whole, wrong, interrupted and killed."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fakes_endpoint import MODEL, Planted, serving
from typer.testing import CliRunner

from evals.records import PERMISSIONS
from evals.store import Store
from fathom import app

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


def options(url, out, *more, models=(MODEL,)):
    named = [part for model in models for part in ("--model", model)]
    planned = ["--endpoint", url, *named, "--out", str(out), "--n", str(NUM_QUESTIONS), "--budgets", BUDGETS]
    permissions = [part for name in PERMISSIONS for part in ("--permission", name)]
    return ["eval", "run", *planned, *permissions, *more]


def command(url, out, *more, models=(MODEL,)):
    return [sys.executable, "-m", "fathom", *options(url, out, *more, models=models)]


def run(*arguments):
    environment = os.environ | {"COLUMNS": "140"}
    return subprocess.run(*arguments, capture_output=True, text=True, cwd=ROOT, timeout=120, env=environment)


async def run_planted(planted, out, *more, models=(MODEL,)):
    async with serving(planted) as url:
        return await asyncio.to_thread(run, command(url, out, *more, models=models))


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


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing stopped: its endpoint, its directory, and what it printed."""
    out = tmp_path_factory.mktemp("whole") / "out"
    with Endpoint(out.parent / "log", 0.0) as endpoint:
        done = run(command(endpoint.url, out))
        assert done.returncode == 0, done.stdout + done.stderr
        assert len(endpoint.asked) == TOTAL
        yield endpoint, out, done.stdout


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_was_stopped_goes_on(whole, tmp_path, number):
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
    assert figures(tmp_path / "stopped") == figures(whole[1])
    assert stored(tmp_path / "stopped") == TOTAL


def test_outputs_and_report_again(whole, tmp_path):
    out, load = tmp_path / "out", tmp_path / "load.json"
    report = [sys.executable, "-m", "fathom", "eval", "report", str(out), "--load", str(load)]
    endpoint, finished, printed = whole
    shutil.copytree(finished, out)
    assert "report.html" in printed
    assert "must_answer" in printed
    load.write_text("{}")
    wrong = run(report)
    assert (wrong.returncode, "is not the summary.json of a load test" in wrong.stdout) == (2, True)
    load.write_text(json.dumps({"schema": "fathom.load/1", "model": MODEL}))
    (out / "report.html").unlink()
    assert run(report).returncode == 0
    assert (out / "report.html").stat().st_size < 3_000_000
    # Nothing is left to ask; the load test stays where it was.
    assert run(command(endpoint.url, out)).returncode == 0
    assert len(endpoint.asked) == TOTAL
    assert len(json.loads((out / "summary.json").read_text())["load"]) == 1


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--budgets", "0,x"], "--budgets must be whole numbers"),
        (["--permission", "may_lie"], "--permission must be one of must_answer, may_abstain"),
        (["--dataset", "trivia"], "--dataset 'trivia' is not known"),
        (["--world", "hops=2"], "--world: hops must be from 0 to 1, got 2"),
        (["--dataset", "needle", "--world", "hops=1"], "needle has none"),
        (["--dataset", "nq"], "--data: nq needs"),
        (["--n", "5000"], "--n 5000 is more than the 2000 questions"),
        (["--endpoint", "http://127.0.0.1:9"], "gives no list of models"),
        (["--out", str(ROOT / "README.md")], f"--out {ROOT / 'README.md'} cannot be written"),
        (["--rerank-depth", "0"], "--rerank-depth must be above 0"),
        (["--reranker", "nothing"], "--reranker 'nothing' is neither a directory nor the name"),
        (["--colour", "red"], "No such option"),
    ],
)
def test_wrong_options(tmp_path, more, words):
    # In this process: as processes of their own, wrong commands end below.
    done = CliRunner().invoke(app, options("http://127.0.0.1:9", tmp_path, *more), env={"COLUMNS": "140"})
    assert (done.exit_code, type(done.exception)) == (2, SystemExit)
    assert words in done.output


def test_a_directory_that_is_no_run(tmp_path):
    done = run([sys.executable, "-m", "fathom", "eval", "report", str(tmp_path)])
    assert (done.returncode, "has no samples.sqlite" in done.stdout) == (2, True)
    assert "Traceback" not in done.stderr


async def test_a_run_says_that_it_counts_by_an_estimate(tmp_path):
    done = await run_planted(Planted(tokenizes=False), tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    early, _, table = done.stdout.partition("TTFT, TPOT: medians")
    assert "planted: the endpoint counts no tokens; documents are counted by an estimate: bytes / 3" in early
    assert "planted: documents are counted by an estimate: bytes / 3." in table
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert {one["counting"] for one in summary["models"]} == {"estimate: bytes / 3"}
    assert "planted: documents are counted by an estimate" in (tmp_path / "report.html").read_text()


async def test_counts_that_end_stop_a_run_in_one_line(tmp_path):
    done = await run_planted(Planted(tokenize_refusals=[200, 200] + [500] * 1000), tmp_path)
    [error] = [line for line in done.stdout.splitlines() if "error" in line]
    assert (done.returncode, "/tokenize answers 500: planted refusal" in error) == (2, True)
    assert "Traceback" not in done.stdout + done.stderr
    assert "Group" not in done.stdout + done.stderr


async def test_a_model_that_is_not_there_is_found_before_another_is_asked(tmp_path):
    planted = Planted()
    done = await run_planted(planted, tmp_path, models=(MODEL, "missing"))
    assert (done.returncode, "'missing' is not served there" in done.stdout) == (2, True)
    assert planted.asked == []
    assert not (tmp_path / "report.html").exists()


async def test_a_later_model_that_fails_does_not_cost_the_report(tmp_path):
    planted = Planted(models=(MODEL, "second"), refused_models={"second": 404})
    done = await run_planted(planted, tmp_path, models=(MODEL, "second"))
    assert (done.returncode, "the first 5 samples of second were all refused" in done.stdout) == (2, True)
    assert "planted, must_answer, dataset world" in done.stdout
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [point["n"] for point in summary["models"][0]["points"]] == [NUM_QUESTIONS] * 3
    assert (tmp_path / "report.html").exists()


async def test_failures_are_told_with_the_first_cause(tmp_path):
    done = await run_planted(Planted(refusals=[500] * 3), tmp_path)
    assert done.returncode == 3
    assert "3 samples failed; the same command asks them again" in done.stdout
    assert "the first error: status 500: planted refusal" in done.stdout
