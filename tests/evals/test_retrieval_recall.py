"""Recall by how many documents are taken: against tables by hand, in a run's directory, and as a command."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from fakes_endpoint import Planted, serving
from typer.testing import CliRunner

from evals.config import ConfigError, RerankSettings, RunConfig
from evals.datasets import load_dataset
from evals.records import Dataset, Document, Question
from evals.retrieval.ranking import Retriever
from evals.retrieval.recall import recall_curve
from evals.retrieval.recall_file import note_recall, read_curves
from evals.runner import run_eval
from evals.stats.rates import wilson
from fathom import app

DOCUMENTS = tuple(Document(f"d{number}", "", "Ann wrote it." if number % 2 else "Bob read it.") for number in range(6))


class InOrder:
    """Ranks the documents as the question names them; those that it does not name follow."""

    name = "planted"

    def scores(self, question):
        named = question.split()
        return -np.array([named.index(one.id) if one.id in named else 9 for one in DOCUMENTS], np.float32)


def question(number, text, gold, *, answers=("Ann",), cluster=None, **more):
    return Question(f"q{number}", text, answers, gold, "fact", cluster or f"c{number}", **more)


QUESTIONS = (
    question(0, "d1 d0 d2", ("d1",)),
    question(1, "d0 d2 d1 d3", ("d1",)),  # gold at rank 3, a leak at rank 4
    question(2, "d3 d0 d2 d4 d5 d1", ("d1",)),  # a leak first, gold last
    question(3, "d1 d2 d3", ("d1", "d3")),  # both are needed: at rank 3
    question(4, "d0 d2 d5", ("d1", "d2"), any_gold=True),
    question(5, "d0 d1", (), answers=()),
)


def planted(questions=QUESTIONS):
    return Dataset("planted", DOCUMENTS, tuple(questions), "digest", "written for the tests")


def curve(questions=QUESTIONS, ks=(1, 2, 3, 5)):
    return recall_curve(planted(questions), Retriever(DOCUMENTS, InOrder()), ks, len(questions))


def test_figures_by_hand():
    found = curve()
    assert (found.questions, found.without_gold, found.clusters, found.documents) == (6, 1, 5, 6)
    assert [(point.k, point.recall["rate"]) for point in found.points] == [(1, 0.2), (2, 0.4), (3, 0.8), (5, 0.8)]
    # Of q2 d3, of q1 d3 at rank 4, of q4 d5 at rank 3, then d3 and d5 in what the others do not name.
    assert [point.leaked["rate"] for point in found.points][:3] == [0.2, 0.2, 0.4]
    assert found.points[2].leaks_mean == pytest.approx(2 / 5)
    assert found.mrr["rate"] == pytest.approx((1 + 1 / 3 + 0 + 1 + 1 / 2) / 5)
    assert found.depth == 5
    point = found.points[0].recall
    assert (point["low"], point["high"]) == wilson(1, 5)


def test_questions_of_one_cluster_widen_the_interval():
    alone = [replace(QUESTIONS[number % 2], id=f"q{number}", cluster=f"c{number}") for number in range(60)]
    together = [replace(one, cluster=f"c{number // 10 + 6 * (number % 2)}") for number, one in enumerate(alone)]
    separate, clustered = (curve(questions).points[0].recall for questions in (alone, together))
    assert separate["rate"] == clustered["rate"] == 0.5
    assert (separate["low"], separate["high"]) == wilson(30, 60)
    # Twelve clusters that are all right or all wrong say what twelve questions say.
    assert clustered["high"] - clustered["low"] > 1.8 * (separate["high"] - separate["low"])
    same = curve([replace(QUESTIONS[0], id=f"q{number}", cluster="c") for number in range(9)]).points[0].recall
    assert (same["low"], same["high"]) == wilson(1, 1)


def test_nothing_to_find():
    found = curve(QUESTIONS[5:])
    assert (found.without_gold, found.points[0].recall["n"], found.points[0].recall["rate"]) == (1, 0, None)
    assert (found.mrr["rate"], found.points[0].leaks_mean) == (None, None)


def config(out, url="http://127.0.0.1:9", **more):
    return RunConfig(endpoint=url, model="planted", out=out, num_questions=3, budgets=(0, 64), **more)


class Counting(InOrder):
    asked = 0

    def scores(self, question):
        self.asked += 1
        return super().scores(question)


def test_a_file_has_one_curve_for_each_dataset_and_is_not_measured_again(tmp_path):
    scorer = Counting()
    retriever = Retriever(DOCUMENTS, scorer)
    other = replace(planted(), name="other")
    for one in (planted(), other, planted()):
        note_recall(config(tmp_path), one, retriever)
    assert scorer.asked == 6
    curves = read_curves(tmp_path / "retrieval.json")
    assert [one["dataset"] for one in curves] == ["planted", "other"]
    assert curves[0]["questions"] == 3
    assert [point["k"] for point in curves[0]["points"]] == [1, 5, 10, 20, 50, 100]
    note_recall(replace(config(tmp_path), num_questions=4), planted(), retriever)
    assert [(one["dataset"], one["questions"]) for one in read_curves(tmp_path / "retrieval.json")] == [
        ("other", 3),
        ("planted", 4),
    ]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"schema": "fathom.retrieval/1", "curves": 3}'])
def test_a_file_that_is_none_is_replaced(tmp_path, content):
    (tmp_path / "retrieval.json").write_text(content)
    note_recall(config(tmp_path), planted(), Retriever(DOCUMENTS, InOrder()))
    assert len(read_curves(tmp_path / "retrieval.json")) == 1


async def test_a_run_leaves_the_recall_on_its_questions(tmp_path, dataset):
    async with serving(Planted()) as url:
        await run_eval(config(tmp_path / "run", url), dataset)
        await run_eval(replace(config(tmp_path / "closed", url), budgets=(0,)), dataset)
    [found] = read_curves(tmp_path / "run/retrieval.json")
    assert (found["dataset"], found["questions"], found["clusters"]) == ("people", 3, 2)
    assert found["retriever"].startswith("bm25s lucene")
    assert found["points"][0]["recall"]["rate"] == 1.0
    assert not (tmp_path / "closed/retrieval.json").exists()


async def test_a_reranker_that_is_not_there_stops_a_run_before_it_asks(tmp_path, dataset):
    endpoint = Planted()
    async with serving(endpoint) as url:
        settings = RerankSettings("http://127.0.0.1:9/rerank")
        with pytest.raises(ConfigError, match=r"--reranker: http://127\.0\.0\.1:9/rerank does not answer"):
            await run_eval(config(tmp_path, url, rerank=settings), dataset)
    assert endpoint.asked == []


def invoke(*arguments):
    return CliRunner().invoke(app, ["eval", "recall", *arguments], env={"COLUMNS": "140"})


def test_the_command_prints_and_writes_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out = tmp_path / "recall.json"
    retrievers = ["--retriever", "random", "--retriever", "bm25"]
    done = invoke("--dataset", "world", *retrievers, "--n", "40", "--k", "1,10", "--out", str(out))
    assert done.exit_code == 0, done.output
    content = json.loads(out.read_text())
    assert content["schema"] == "fathom.retrieval/1"
    names = [one["retriever"] for one in content["curves"]]
    assert (names[0], names[1].split()[0]) == ("random, seed 0", "bm25s")
    shown = re.findall(r"^ +(\d+) +([\d.]+) \[", done.output, re.MULTILINE)
    figures = [(one["k"], one["recall"]["rate"]) for curve in content["curves"] for one in curve["points"]]
    assert shown == [(str(k), f"{100 * rate:.1f}") for k, rate in figures]
    assert figures[2][1] > figures[0][1] + 0.3
    loaded = load_dataset("world", path=None, seed=0)
    assert content["curves"][0]["without_gold"] == sum(not one.gold_ids for one in loaded.questions[:40])


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--k", "5,1"], "--k must be ascending whole numbers from 1"),
        (["--k", "0,1"], "--k must be"),
        (["--k", "1,,2"], "--k must be"),
        (["--n", "5000"], "--n must be from 1 to the 2000 questions of world, got 5000"),
        (["--retriever", "tfidf"], "--retriever must be one of bm25, dense, hybrid, random"),
        (["--reranker-model", "x"], "--reranker-model names a model at an endpoint"),
        (["--dataset", "trivia"], "--dataset 'trivia' is not known"),
        (["--out", "/nowhere/at/all.json", "--n", "1", "--retriever", "random"], "cannot be written"),
    ],
)
def test_wrong_options(more, words):
    done = invoke("--dataset", "world", *more)
    assert (done.exit_code, type(done.exception)) == (2, SystemExit)
    assert words in done.output
