"""`fathom demo --quick` as a user types it: whole, then again, and where it must not write."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

import evals.demo
from evals.records import PERMISSIONS

ROOT = Path(__file__).resolve().parents[1]
MODELS = {"embedded:transformer": "transformer", "embedded:mamba": "mamba"}


def demo(*arguments: str, out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fathom", "demo", "--quick", "--out", str(out), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "out"
    done = demo(out=out)
    assert done.returncode == 0, done.stdout + done.stderr
    return out, done.stdout


@pytest.mark.slow
def test_both_models_under_both_instructions(finished):
    out, _ = finished
    summary = json.loads((out / "summary.json").read_text())
    assert summary["schema"] == "fathom.summary/1"
    series = {(one["model"], one["permission"]): one for one in summary["models"]}
    assert set(series) == {(model, permission) for model in MODELS for permission in PERMISSIONS}
    for (model, _), one in series.items():
        assert one["kind"] == MODELS[model]
        assert [point["budget"] for point in one["points"]] == [0, 128, 512]
        assert all(point["errors"] == 0 and point["cache_bytes"]["mean"] > 0 for point in one["points"])
    assert [load["model"] for load in summary["load"]] == list(MODELS)
    # A longer context costs a transformer memory and a Mamba none.
    memory = {
        model: [point["cache_bytes"]["mean"] for point in series[model, "must_answer"]["points"]] for model in MODELS
    }
    assert memory["embedded:transformer"][2] > 2 * memory["embedded:transformer"][0]
    assert len(set(memory["embedded:mamba"])) == 1


@pytest.mark.slow
def test_it_says_where_to_look_and_leaves_nothing_running(finished):
    out, printed = finished
    for name in ("report.html", "summary.json", "samples.sqlite"):
        assert (out / name).is_file()
        assert name in printed
    assert (out / "report.html").stat().st_size < 3_000_000
    url = re.findall(r"at (http://127\.0\.0\.1:\d+)", printed)[0]
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/health")


@pytest.mark.slow
def test_an_interrupted_demo_goes_on(finished, tmp_path):
    out, command = tmp_path / "out", [sys.executable, "-m", "fathom", "demo", "--quick", "--out", str(tmp_path / "out")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 120
    while not (out / "samples.sqlite").is_file():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    assert (process.returncode, "the same command goes on" in printed, "Traceback" in printed) == (130, True, False)
    assert demo(out=out).returncode == 0
    figures = [
        [
            (point["budget"], point["n"], point["correct"], point["hallucinated"])
            for one in json.loads((directory / "summary.json").read_text())["models"]
            for point in one["points"]
        ]
        for directory in (out, finished[0])
    ]
    assert figures[0] == figures[1]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_whatever_ends_it_ends_its_server(tmp_path, number):
    command = [sys.executable, "-m", "fathom", "demo", "--quick", "--out", str(tmp_path / "out")]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment)
    line = next(line for line in process.stdout if line.startswith("serving "))
    url = line.split()[-1]
    try:
        assert httpx.get(f"{url}/health").status_code == 200
        process.send_signal(number)
        process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/health")


def test_inside_of_asyncio_a_signal_cancels_in_order():
    seen = []

    async def work():
        try:
            signal.raise_signal(signal.SIGTERM)
            await asyncio.sleep(60)
        except BaseException as error:
            seen.append(type(error))
            raise

    former = signal.signal(signal.SIGTERM, evals.demo._interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            asyncio.run(work())
    finally:
        signal.signal(signal.SIGTERM, former)
    assert seen == [asyncio.CancelledError]


def test_it_writes_over_nothing_of_others(tmp_path):
    (tmp_path / "thesis.txt").write_text("dear")
    done = demo(out=tmp_path)
    assert (done.returncode, "is not empty and not a demo's" in done.stdout) == (2, True)
    assert (tmp_path / "thesis.txt").read_text() == "dear"


def test_a_file_is_no_directory(tmp_path):
    (tmp_path / "file").write_text("dear")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        done = demo(out=out)
        assert (done.returncode, "Traceback" in done.stderr) == (2, False)
        assert "--out" in done.stdout
