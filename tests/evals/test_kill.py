"""A run that is killed, or whose endpoint fails, again and again ends as one that nothing disturbed."""

import asyncio
import hashlib
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from evals_rows import without_times
from fakes_endpoint import MODEL, Planted, serving

from evals import retry
from evals.config import RunConfig
from evals.output import write_outputs
from evals.prompts import build_messages
from evals.runner import run_eval
from evals.store import Store

ROOT = Path(__file__).resolve().parents[2]
KILLS, CONCURRENCY = 20, 4
NUM_QUESTIONS, BUDGETS = 36, "0,48,96,256"
TOTAL = NUM_QUESTIONS * 4


def table(out):
    return without_times(json.loads((out / "summary.json").read_text()))


def contents(out):
    """Every sample without what a clock decides."""
    times = ("sent_s", "token_times_s", "end_s", "ttft_s", "tpot_s", "e2e_s", "attempts")
    with Store(out) as store:
        return [{name: getattr(row, name) for name in row.__slots__ if name not in times} for row in store.rows()]


def held(out):
    """The prompts of all answered samples, as the endpoint's log has them."""
    if not (out / "samples.sqlite").exists():
        return set()
    with Store(out) as store:
        documents = store.documents("world")
        return {
            hashlib.sha256(
                json.dumps(
                    build_messages(row.permission, [documents[name] for name in row.doc_ids], row.question)
                ).encode()
            ).hexdigest()
            for row in store.rows()
            if row.error is None
        }


class Endpoint:
    """The planted endpoint in a process of its own, with its log of what was asked."""

    def __init__(self, log):
        self.log = log
        command = [sys.executable, ROOT / "tests/fakes_endpoint.py", "--log", log, "--delay-s", "0.05"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.url = self._process.stdout.readline().strip()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.communicate(timeout=20)

    @property
    def asked(self):
        return self.log.read_text().split() if self.log.exists() else []


def command(url, out):
    # What `fathom eval` is, without the server and the load test that `fathom` mounts beside it.
    program = "from evals.cli import app; app()"
    planned = ["--n", str(NUM_QUESTIONS), "--budgets", BUDGETS, "--concurrency", str(CONCURRENCY)]
    return [sys.executable, "-c", program, "run", "--endpoint", url, "--model", MODEL, "--out", str(out), *planned]


def kill_somewhere(endpoint, out, rng):
    """Start the command and kill it: while it starts, or when some more were asked, and then a moment later."""
    process = subprocess.Popen(command(endpoint.url, out), cwd=ROOT, stdout=subprocess.DEVNULL)
    wanted = len(endpoint.asked) + rng.choice((0, 1, 2, 3, 5, 8, 13))
    deadline_s = time.monotonic() + 60
    while len(endpoint.asked) < wanted and process.poll() is None:
        assert time.monotonic() < deadline_s
        time.sleep(0.005)
    time.sleep(rng.uniform(0, 0.06))
    process.send_signal(signal.SIGKILL)
    return process.wait(timeout=60)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    with Endpoint(out.parent / "log") as endpoint:
        done = subprocess.run(command(endpoint.url, out), cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        assert len(endpoint.asked) == len(set(endpoint.asked)) == TOTAL
    return out


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_twenty_kills_change_nothing(undisturbed, tmp_path):
    rng, out = random.Random(20), tmp_path / "killed"
    with Endpoint(tmp_path / "log") as endpoint:
        killed = 0
        for _ in range(KILLS):
            before, asked_before = held(out), len(endpoint.asked)
            killed += kill_somewhere(endpoint, out, rng) == -signal.SIGKILL
            after, asked = held(out), endpoint.asked[asked_before:]
            assert before <= after, "a sample that the store held is lost"
            assert not before & set(asked), "a sample that the store held was asked again"
            assert len(asked) == len(set(asked))
            # Asked, but not stored: what was under way when the process died.
            assert after - before <= set(asked)
            assert len(asked) - len(after - before) <= CONCURRENCY
        assert killed == KILLS, "the run ended before all kills were done"
        before, asked_before = held(out), len(endpoint.asked)
        done = subprocess.run(command(endpoint.url, out), cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        assert 0 < len(before) < TOTAL
        assert len(endpoint.asked) - asked_before == TOTAL - len(before)
        assert len(set(endpoint.asked)) == TOTAL
        assert len(endpoint.asked) <= TOTAL + KILLS * CONCURRENCY
    assert contents(out) == contents(undisturbed)
    assert table(out) == table(undisturbed)
    with Store(out) as store:
        [manifest] = store.manifests().values()
    assert 1 <= sum(session["finished"] is None for session in manifest["sessions"]) <= KILLS


FAULTS = (429, 503, "reset", "hang-up", "garbage")


async def test_twenty_failures_of_the_endpoint_change_nothing(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(retry, "FIRST_BACKOFF_S", 0.01)
    total = 12 * 4
    rng = random.Random(429)
    places = rng.sample(range(total), 20)
    faults = {place: FAULTS[number % len(FAULTS)] for number, place in enumerate(places)}
    summaries = []
    for name, planted in (("calm", Planted(answer=str.upper)), ("stormy", Planted(answer=str.upper, faults=faults))):
        async with serving(planted) as url:
            config = RunConfig(
                endpoint=url, model=MODEL, out=tmp_path / name, budgets=(0, 20, 60, 200), num_questions=12
            )
            result = await run_eval(config, dataset)
        assert (result.asked, result.failed) == (total, 0)
        # Each prompt once, and once more for each fault that it met.
        assert len(planted.asked) == total + len(planted.faults)
        summaries.append(without_times((await asyncio.to_thread(write_outputs, tmp_path / name))[0]))
    assert summaries[0] == summaries[1]
    assert contents(tmp_path / "calm") == contents(tmp_path / "stormy")
    with Store(tmp_path / "stormy") as store:
        assert sum(row.attempts for row in store.rows()) == total + 20
