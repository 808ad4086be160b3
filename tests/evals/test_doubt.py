"""Doubt as the summary has it: against endpoints that draw at known rates, and where nobody knows the answers."""

import asyncio
import hashlib
import json
import math
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from evals_rows import abstained, drawn, hallucinated, sample
from fakes_endpoint import MODEL, Planted, serving
from rich.console import Console

from evals.config import RunConfig
from evals.doubt import MAX_CURVE_POINTS, answered_draws, describe_doubt
from evals.output import write_outputs
from evals.records import Dataset, Question
from evals.runner import run_eval
from evals.stats.ranking import auroc, clustered_auroc
from evals.store import Store
from evals.summary import summarise, summary_table

ROOT = Path(__file__).resolve().parents[2]
NUM_QUESTIONS, NUM_DRAWS = 150, 8


def draws_for(row, *answers, logprob=None):
    tokens = None if logprob is None else 1
    told = {"budget": row.budget, "question_id": row.question_id, "logprob": logprob, "logprob_tokens": tokens}
    return [drawn(answer, draw=number, **told) for number, answer in enumerate(answers, 1)]


def test_the_figures_of_a_point_by_hand():
    right = sample(question_id="q1", cluster="a", logprob=-0.4, logprob_tokens=4)
    wrong = hallucinated(question_id="q2", cluster="b", logprob=-2.0, logprob_tokens=4)
    silent = abstained(question_id="q3", cluster="c")
    draws = [
        *draws_for(right, "1985", "1985", "1985", "1986"),
        *draws_for(wrong, "1976", "1985", "1986", "1987"),
        *draws_for(silent, "I don't know", "not sure, sorry: I do not know", "1985", "1985"),
    ]
    found = describe_doubt([right, wrong, silent], answered_draws(draws))
    three_quarters = math.log(4) - 0.75 * math.log(3)
    assert found["draws"] == 4
    assert (found["self_consistency"]["mean"], found["self_consistency"]["n"]) == (0.5, 3)
    nats = (three_quarters + math.log(4) + math.log(2)) / 3
    assert found["semantic_entropy"]["mean"] == pytest.approx(nats)
    assert found["abstaining"]["mean"] == pytest.approx(1 / 6)
    assert found["meanings"]["mean"] == pytest.approx(8 / 3)
    assert found["weighted_entropy"] == {"mean": None, "low": None, "high": None, "n": 0}
    assert (found["logprob"]["mean"], found["logprob"]["n"]) == (pytest.approx(-0.3), 2)
    # One right and one wrong answer; too few clusters for an interval.
    one = {"auroc": 1.0, "low": None, "high": None, "n": 2, "wrong": 1}
    assert found["auroc"]["self_consistency"] == found["auroc"]["logprob"] == one
    assert found["auroc"]["weighted_entropy"] is None
    assert found["risk_coverage"] == {"coverage": [0.5, 1.0], "risk": [0.0, 0.5], "area": 0.25, "n": 2}


def test_nothing_measured_is_nothing_said():
    rows = [sample(), hallucinated(question_id="q1")]
    assert describe_doubt(rows, {}) is None
    failed = [drawn("1985")]
    assert describe_doubt([sample(error="status 500", lost="failed")], answered_draws(failed)) is None
    [series] = summarise(rows)["models"]
    assert [point["doubt"] for point in series["points"]] == [None]


def test_a_long_curve_is_thinned_and_its_area_is_not():
    rng = random.Random(1)
    rows = [
        (sample, hallucinated)[rng.random() < 0.3](question_id=f"q{i}", logprob=-rng.random(), logprob_tokens=1)
        for i in range(1000)
    ]
    curve = describe_doubt(rows, {})["risk_coverage"]
    assert len(curve["coverage"]) == len(curve["risk"]) == MAX_CURVE_POINTS
    assert (curve["coverage"][0], curve["coverage"][-1], curve["n"]) == (0.001, 1.0, 1000)
    ranked = [row.verdict == "hallucinated" for row in sorted(rows, key=lambda row: -row.logprob)]
    risks = np.cumsum(ranked) / np.arange(1, 1001)
    assert curve["area"] == pytest.approx(risks.mean())
    assert curve["risk"][-1] == pytest.approx(risks[-1])


@pytest.mark.parametrize("cluster_size", [1, 3])
def test_intervals_of_the_auroc_cover_the_truth(cluster_size):
    """Doubt of right answers is standard normal, of wrong ones one higher: an AUROC of Phi(1 / sqrt 2)."""
    truth, rng, hits = 0.5 * (1 + math.erf(0.5)), np.random.default_rng(3), []
    clusters = [f"c{i // cluster_size}" for i in range(240)]
    for _ in range(500):
        wrong = np.repeat(rng.random(240 // cluster_size) < 0.3, cluster_size)
        # Of one cluster: alike to a correlation of one half.
        shared = np.repeat(rng.normal(size=240 // cluster_size), cluster_size)
        scores = wrong + (shared + rng.normal(size=240)) / math.sqrt(2)
        found = clustered_auroc(scores.tolist(), wrong.tolist(), clusters, resamples=500)
        hits.append(found["low"] <= truth <= found["high"])
    assert 0.93 <= sum(hits) / len(hits) <= 0.97


def test_a_resample_is_the_auroc_of_what_was_drawn():
    """The middle of the interval is where the estimate is, ties and all; of whole clusters, not of answers."""
    rng = random.Random(2)
    scores = [float(rng.randrange(4)) for _ in range(60)]
    wrong = [rng.random() < 0.2 + score / 6 for score in scores]
    once = clustered_auroc(scores, wrong, [f"c{i}" for i in range(60)])
    thrice = clustered_auroc(scores * 3, wrong * 3, [f"c{i}" for i in range(60)] * 3)
    assert once["auroc"] == thrice["auroc"] == auroc(scores, wrong)
    assert once["low"] < once["auroc"] < once["high"]
    assert (thrice["low"], thrice["high"]) == (pytest.approx(once["low"]), pytest.approx(once["high"]))


def town_of(body):
    """The number of the person asked for."""
    return int(body["messages"][-1]["content"].rpartition("Person")[2].split(" ")[0])


def unsettled(settled_share, doubtful):
    """What the greedy answer says; of doubtful persons so many of the draws, and the others one of twenty places."""

    def draw(body):
        person = town_of(body)
        settled = f"Town{person}" if knows(person) else "Atlantis"
        if "seed" not in body or not doubtful(person):
            return settled
        dice = random.Random(body["seed"])
        return settled if dice.random() < settled_share else f"Place{dice.randrange(20)}"

    return draw


def knows(person):
    return int(hashlib.sha256(str(person).encode()).hexdigest(), 16) % 3 > 0


@pytest.fixture(scope="module")
def people() -> Dataset:
    numbers = range(NUM_QUESTIONS)
    questions = tuple(
        Question(f"q{i}", f"Where does Person{i} live?", (f"Town{i}",), (), "fact", f"c{i // 2}") for i in numbers
    )
    return Dataset("people", (), questions, "digest", "here")


async def doubt_at(people, out, draw, **options):
    defaults = {"model": MODEL, "budgets": (0,), "num_questions": len(people.questions), "draws": NUM_DRAWS}
    planted = Planted(draw=draw, logprob=lambda body, _: -0.1 if knows(town_of(body)) else -0.2)
    async with serving(planted) as url:
        await run_eval(RunConfig(endpoint=url, out=out, concurrency=16, **defaults | options), people)
    summary, _ = write_outputs(out)
    [series] = summary["models"]
    [point] = series["points"]
    return point["doubt"]


async def test_doubt_of_the_wrong_answers_alone_tells_them_apart(people, tmp_path):
    found = await doubt_at(people, tmp_path, unsettled(0.3, lambda person: not knows(person)), logprobs=True)
    # One that is not known agrees with a draw in .3 of all cases, every other always.
    ignorant = sum(not knows(person) for person in range(NUM_QUESTIONS)) / NUM_QUESTIONS
    assert found["self_consistency"]["mean"] == pytest.approx(1 - 0.7 * ignorant, abs=0.03)
    assert found["self_consistency"]["low"] < 1 - 0.7 * ignorant < found["self_consistency"]["high"]
    for name in ("self_consistency", "semantic_entropy", "weighted_entropy", "meanings"):
        assert found["auroc"][name]["auroc"] > 0.99, name
        assert found["auroc"][name]["wrong"] == round(ignorant * NUM_QUESTIONS)
    assert found["auroc"]["logprob"]["auroc"] == 1
    assert found["risk_coverage"]["coverage"] == [pytest.approx(1 - ignorant), 1]
    assert found["risk_coverage"]["risk"] == [0, pytest.approx(ignorant)]


async def test_doubt_that_has_nothing_to_do_with_errors_tells_nothing(people, tmp_path):
    found = await doubt_at(people, tmp_path, unsettled(0.6, lambda _: True))
    assert found["self_consistency"]["mean"] == pytest.approx(0.6, abs=0.03)
    for name in ("self_consistency", "semantic_entropy"):
        told = found["auroc"][name]
        assert told["low"] < 0.5 < told["high"]
        assert told["auroc"] == pytest.approx(0.5, abs=0.1)
    # Whoever asks for no log probabilities gets none.
    assert (found["auroc"]["logprob"], found["risk_coverage"], found["weighted_entropy"]["n"]) == (None, None, 0)


def command(*options):
    return [sys.executable, "-m", "fathom", "eval", "run", "--dataset", "own", *options]


async def test_whoever_has_no_answers_learns_of_doubt(tmp_path):
    """Documents and questions of one's own, nothing else: from the command to table and file."""
    data = tmp_path / "data"
    data.mkdir()
    asked = [json.dumps({"question": f"Where does Person{i} live?"}) for i in range(20)]
    (data / "questions.jsonl").write_text("\n".join(asked), encoding="utf-8")
    (data / "notes.md").write_text("Person1 lives in Town1.", encoding="utf-8")
    out = tmp_path / "out"
    async with serving(Planted(draw=unsettled(0.5, lambda _: True))) as url:
        words = ["--endpoint", url, "--model", MODEL, "--out", str(out), "--data", str(data), "--n", "20"]
        words += ["--budgets", "0,64", "--draws", "8"]
        done = await asyncio.to_thread(
            subprocess.run, command(*words), cwd=ROOT, capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stdout + done.stderr
    [series] = json.loads((out / "summary.json").read_text())["models"]
    assert [point["budget"] for point in series["points"]] == [0, 64]
    for point in series["points"]:
        assert point["hallucinated"]["rate"] is None
        doubt = point["doubt"]
        assert doubt["self_consistency"]["low"] < 0.5 < doubt["self_consistency"]["high"]
        assert (doubt["semantic_entropy"]["n"], doubt["draws"]) == (20, 8)
        assert set(doubt["auroc"].values()) == {None}
    assert "agree" in done.stdout
    assert "Entropy: of their meanings" in done.stdout
    assert f"{100 * series['points'][1]['doubt']['self_consistency']['mean']:.1f}" in done.stdout


def test_the_table_of_doubt_fits_eighty_columns():
    rows = [sample(question_id=f"q{i}", cluster=f"c{i}", logprob=-1.25, logprob_tokens=3) for i in range(6)]
    rows += [hallucinated(question_id=f"w{i}", cluster=f"w{i}", logprob=-9.5, logprob_tokens=3) for i in range(6)]
    draws = [draw for row in rows for draw in draws_for(row, "1985", "1985", "1976", logprob=-1.0)]
    console = Console(width=80, record=True)
    console.print(summary_table(summarise(rows, draws=draws)))
    [line] = [line for line in console.export_text().splitlines() if line.split()[:2] == ["0", "3"]]
    # Two of three draws agree with the right half, one of three with the other.
    assert line.split() == ["0", "3", "50.0", "0.64", "-1.79", "1.00", "0.50", "1.00", "0.25"]


def stored(out):
    if not (out / "samples.sqlite").exists():
        return 0
    with Store(out) as store:
        return sum(draw.error is None for draw in store.draws())


def test_draws_of_a_killed_run_go_on(tmp_path):
    out, log, total = tmp_path / "out", tmp_path / "log", 4 * 2 * 5
    script = [sys.executable, ROOT / "tests/fakes_endpoint.py", "--log", log, "--delay-s", "0.1"]
    endpoint = subprocess.Popen(script, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        words = ["--endpoint", endpoint.stdout.readline().strip(), "--model", MODEL, "--out", str(out), "--n", "4"]
        words = [sys.executable, "-m", "fathom", "eval", "run", *words, "--budgets", "0,64", "--draws", "5"]
        process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while stored(out) < total // 4:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait(60)
        before, asked_before = stored(out), len(log.read_text().split())
        assert total // 4 <= before < total
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert (stored(out), len(log.read_text().split()) - asked_before) == (total, total - before)
    finally:
        endpoint.communicate(timeout=20)


def test_a_temperature_of_no_draws_is_refused(tmp_path):
    words = ["--endpoint", "http://127.0.0.1:9", "--model", "m", "--out", str(tmp_path), "--temperature", "0.5"]
    done = subprocess.run(command(*words), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--temperature is that of --draws, of which there are none" in done.stdout
