"""Natural Questions from the files of their sources: a small set in the same format, and the real one if there."""

import gzip
import json
import os
import shutil
from pathlib import Path

import pytest
from fakes_endpoint import Planted, serving

from evals.config import ConfigError, RunConfig
from evals.datasets import load_dataset
from evals.retrieval import open_retriever
from evals.retrieval.recall import recall_curve
from evals.runner import run_eval
from evals.store import Store

REAL_DATA = os.environ.get("FATHOM_DATA")


def gold(title, text):
    return {"title": title, "text": text, "hasanswer": True, "isgold": True}


@pytest.fixture
def data(tmp_path) -> Path:
    for folder in ("lost_in_the_middle", "squad2_cs224n", "clapnq_dev", "hotpotqa_distractor100"):
        (tmp_path / folder).mkdir()
    entries = [
        {"question": "who wrote it", "answers": ["Ann", "A. Bee"], "ctxs": [gold("Book", "Ann wrote the book.")]},
        {"question": "who read it", "answers": ["Bob"], "ctxs": [gold("Book", " Bob read the book. ")]},
    ]
    with gzip.open(tmp_path / "lost_in_the_middle/nq-open-oracle.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(entry) + "\n" for entry in entries)
    article = {"title": "Some_Town", "paragraphs": [{"context": "The town is old.", "qas": []}]}
    for name in ("dev", "test"):
        (tmp_path / f"squad2_cs224n/{name}-v2.0.json").write_text(json.dumps({"version": "v2.0", "data": [article]}))
    passages = [{"title": "Hill", "text": "The hill is high.", "sentences": []}]
    for name in ("answerable", "unanswerable"):
        line = json.dumps({"id": "1", "input": "how high", "passages": passages})
        (tmp_path / f"clapnq_dev/clapnq_dev_{name}.jsonl").write_text(line + "\n")
    context = {"title": ["Lake", "Book"], "sentences": [["It is deep. ", "Fish."], ["Ann wrote the book."]]}
    line = json.dumps({"id": "1", "question": "?", "context": context})
    (tmp_path / "hotpotqa_distractor100/hotpotqa_distractor_100.jsonl").write_text(line + "\n")
    return tmp_path


async def test_real_questions_go_the_whole_way(data, tmp_path):
    """Retrieved, packed, asked, graded: an endpoint that reads the first document answers one of two questions."""
    planted = Planted(answer=lambda prompt: prompt.split("| ")[1].split()[0] if "| " in prompt else "no idea at all")
    async with serving(planted) as url:
        config = RunConfig(endpoint=url, model="planted", out=tmp_path / "run", budgets=(0, 8, 64), num_questions=2)
        await run_eval(config, load_dataset("nq", path=data, seed=0))
    with Store(tmp_path / "run") as store:
        rows = {(row.question, row.budget): row for row in store.rows()}
    assert len(rows) == 6
    assert not any(row.error for row in rows.values())
    assert rows["who wrote it", 64].verdict == "correct"
    assert rows["who wrote it", 0].verdict == "hallucinated"
    for question, answer in (("who wrote it", "Ann"), ("who read it", "Bob")):
        assert not rows[question, 0].gold_in_context
        assert rows[question, 64].gold_in_context
        assert rows[question, 8].doc_ids == rows[question, 64].doc_ids[: len(rows[question, 8].doc_ids)]
        assert (rows[question, 64].verdict == "correct") == (rows[question, 64].answer == answer)


def test_passages_are_pooled_each_once(data):
    dataset = load_dataset("nq", path=data, seed=0)
    texts = [(document.title, document.text) for document in dataset.documents]
    assert texts == [
        ("Book", "Ann wrote the book."),
        ("Book", "Bob read the book."),
        ("Some Town", "The town is old."),
        ("Hill", "The hill is high."),
        ("Lake", "It is deep. Fish."),
    ]
    by_text = {question.text: question for question in dataset.questions}
    assert by_text["who wrote it"].answers == ("Ann", "A. Bee")
    assert by_text["who wrote it"].gold_ids == ("p0",)
    assert by_text["who read it"].gold_ids == ("p1",)
    assert by_text["who read it"].cluster == "Book"


def test_the_seed_decides_the_order_and_the_digest(data):
    orders = {load_dataset("nq", path=data, seed=seed).questions for seed in range(8)}
    assert len(orders) == 2
    assert load_dataset("nq", path=data, seed=3) == load_dataset("nq", path=data, seed=3)


def test_missing_and_broken_files_are_named(data):
    shutil.rmtree(data / "clapnq_dev")
    with pytest.raises(ConfigError, match=r"lacks clapnq_dev/clapnq_dev_answerable\.jsonl"):
        load_dataset("nq", path=data, seed=0)


def test_files_of_another_shape_are_refused(data):
    (data / "squad2_cs224n/dev-v2.0.json").write_text("[]")
    with pytest.raises(ConfigError, match="does not have the expected shape"):
        load_dataset("nq", path=data, seed=0)


def test_dataset_names_and_paths():
    with pytest.raises(ConfigError, match=r"'trivia' is not known; there are: world, needle, popqa, .*, nq, squad2, "):
        load_dataset("trivia", path=None, seed=0)
    with pytest.raises(ConfigError, match="--data: nq needs"):
        load_dataset("nq", path=None, seed=0)
    with pytest.raises(ConfigError, match="--data: world is generated"):
        load_dataset("world", path=Path(), seed=0)


@pytest.mark.skipif(REAL_DATA is None, reason="FATHOM_DATA does not say where the real files are")
def test_recall_on_the_real_questions():
    """BM25 finds the gold passage about as often as is known for this pool, and as many leaks beside it."""
    dataset = load_dataset("nq", path=Path(REAL_DATA), seed=0)
    assert len(dataset.questions) == 2655
    assert 5300 < len(dataset.documents) < 5500
    found = recall_curve(dataset, open_retriever("bm25", dataset.documents), (1, 5, 10, 20), 600)
    points = {point.k: point for point in found.points}
    for k, known in ((1, 0.712), (5, 0.877), (20, 0.945)):
        assert points[k].recall["low"] <= known <= points[k].recall["high"]
    assert points[10].leaked["low"] <= 0.19 <= points[10].leaked["high"]
