"""Public datasets in the format of their sources: small ones written here, and the real ones where they are."""

import gzip
import json
import os
from pathlib import Path

import pytest

from evals.config import ConfigError
from evals.datasets import FROM_FILES, load_dataset
from evals.datasets.needle import load_needle
from evals.records import Document
from evals.scoring.lexical import contains

REAL_DATA = os.environ.get("FATHOM_DATA")
real = pytest.mark.skipif(REAL_DATA is None, reason="FATHOM_DATA does not say where the real files are")


def write_lines(file, entries):
    file.parent.mkdir(exist_ok=True)
    opener = gzip.open if file.suffix == ".gz" else open
    with opener(file, "wt", encoding="utf-8") as lines:
        lines.writelines(json.dumps(entry) + "\n" for entry in entries)


@pytest.fixture
def data(tmp_path) -> Path:
    gold = {"title": "Book", "text": "Ann wrote it.", "hasanswer": True, "isgold": True}
    write_lines(
        tmp_path / "lost_in_the_middle/nq-open-oracle.jsonl.gz",
        [{"question": "who wrote it", "answers": ["Ann"], "ctxs": [gold]}],
    )
    pairs = [["k1", "v1"], ["k2", "v2"]]
    write_lines(
        tmp_path / "lost_in_the_middle/kv-retrieval-75_keys.jsonl.gz",
        [{"ordered_kv_records": pairs, "key": "k2", "value": "v2"}],
    )
    asked = [
        {"question": " How old? ", "id": "a", "answers": [{"text": "old"}, {"text": "old"}], "is_impossible": False},
        {"question": "How new?", "id": "b", "answers": [], "is_impossible": True},
    ]
    article = {"title": "Some_Town", "paragraphs": [{"context": "The town is old.", "qas": asked}]}
    for name in ("dev", "test"):
        write_lines(tmp_path / f"squad2_cs224n/{name}-v2.0.json", [{"version": "v2.0", "data": [article]}])
    passages = [{"title": "Hill", "text": "The hill is high.", "sentences": []}]
    entry = {"id": 1, "input": "How high", "passages": passages, "output": [{"answer": "It is very high indeed."}]}
    write_lines(tmp_path / "clapnq_dev/clapnq_dev_answerable.jsonl", [entry])
    write_lines(
        tmp_path / "clapnq_dev/clapnq_dev_unanswerable.jsonl", [entry | {"id": 2, "output": [{"answer": None}]}]
    )
    context = {"title": ["Lake", "Sea", "Book"], "sentences": [["It is deep. ", "Fish."], ["Salt."], ["Ann wrote it."]]}
    hotpot = {"id": "h", "question": "Which is deep?", "answer": "Lake", "type": "bridge", "context": context}
    hotpot["supporting_facts"] = {"title": ["Lake", "Book", "Lake"], "sent_id": [0, 0, 1]}
    write_lines(tmp_path / "hotpotqa_distractor100/hotpotqa_distractor_100.jsonl", [hotpot])
    write_lines(tmp_path / "nq_open/NQ-open.dev.jsonl", [{"question": "who", "answer": ["Ann"]}])
    accepted = {"answer_and_def_correct_predictions": ["6", "six"]}
    write_lines(
        tmp_path / "nq_open/NQ-open.efficientqa.test.1.1.jsonl", [{"question": "on", "answer": ["6"], **accepted}]
    )
    return tmp_path


def load(name, data):
    dataset = load_dataset(name, path=data, seed=0)
    texts = {document.id: document.text for document in dataset.documents}
    return dataset, {question.id: question for question in dataset.questions}, texts


def test_squad(data):
    _, questions, texts = load("squad2", data)
    assert (questions["a"].text, questions["a"].answers, questions["a"].cluster) == ("How old?", ("old",), "Some Town")
    assert [texts[name] for name in questions["a"].gold_ids] == ["The town is old."]
    assert (questions["b"].answers, questions["b"].gold_ids) == ((), ())
    assert questions["b"].topic_ids == questions["a"].gold_ids


def test_clapnq(data):
    _, questions, texts = load("clapnq", data)
    assert questions["1"].long_form
    assert questions["1"].answers == ("It is very high indeed.",)
    assert [texts[name] for name in questions["1"].gold_ids] == ["The hill is high."]
    assert (questions["2"].answerable, questions["2"].topic_ids) == (False, questions["1"].gold_ids)
    write_lines(data / "nq_open/NQ-open.dev.jsonl", [{"question": "how high", "answer": ["high"]}])
    _, questions, _ = load("clapnq", data)
    assert (questions["1"].long_form, questions["1"].answers) == (False, ("high",))


def test_hotpot(data):
    _, questions, texts = load("hotpotqa", data)
    assert [texts[name] for name in questions["h"].gold_ids] == ["It is deep. Fish.", "Ann wrote it."]
    assert not questions["h"].is_supported_by(questions["h"].gold_ids[:1])


def test_questions_without_documents(data):
    dataset, questions, _ = load("nq_open", data)
    assert (dataset.documents, questions["nq_open0"].answers) == ((), ("Ann",))
    _, questions, _ = load("efficientqa", data)
    assert questions["efficientqa0"].answers == ("6", "six")


def test_key_value(data):
    _, questions, texts = load("key_value", data)
    assert texts == {"k1": "Its value is v1.", "k2": "Its value is v2."}
    assert (questions["kv0"].answers, questions["kv0"].gold_ids) == (("v2",), ("k2",))


@pytest.mark.parametrize("name", FROM_FILES)
def test_what_is_missing_is_named(tmp_path, name):
    with pytest.raises(ConfigError, match=f"--data: {name} needs the directory"):
        load_dataset(name, path=None, seed=0)
    with pytest.raises(ConfigError, match=r"--data .* lacks .*\.json"):
        load_dataset(name, path=tmp_path, seed=0)


def test_needles_can_be_found_and_nothing_else_answers():
    dataset = load_needle(seed=1)
    again = load_needle(seed=1)
    assert (dataset.digest, len(dataset.questions)) == (again.digest, 2000)
    assert load_needle(seed=2).digest != dataset.digest
    texts = {document.id: document for document in dataset.documents}
    kinds = {question.kind for question in dataset.questions}
    assert kinds == {"needle", "chain", "count"}
    for question in dataset.questions[:300]:
        gold = [texts[name] for name in question.gold_ids]
        if question.kind == "count":
            subject = question.text.removeprefix("On how many days was the ").removesuffix(" seen?")
            assert (
                str(sum(f"The {subject} was" in document.text for document in dataset.documents)) == question.answers[0]
            )
        else:
            # Whole words are compared where there is any need to: of 12,000 documents it would take minutes.
            spelled = [document for document in dataset.documents if question.answers[0] in document.text]
            holding = [document for document in spelled if contains(document.text, question.answers[0])]
            assert set(map(id_of, holding)) & set(map(id_of, gold))
        if question.kind == "chain":
            assert follow(question, gold) == question.answers[0]


def id_of(document: Document) -> str:
    return document.id


def follow(question, documents) -> str:
    """What a reader of the chain finds."""
    said = dict(
        document.text.removeprefix("Variable ").removesuffix(".").split(" is set to ") for document in documents
    )
    value = question.text.removeprefix("What is the value of variable ").removesuffix("?")
    while value in said:
        value = said[value].removeprefix("the value of variable ")
    return value


@real
@pytest.mark.parametrize(
    ("name", "num_questions", "num_unanswerable"),
    [("nq", 2655, 0), ("squad2", 6078, 3168), ("clapnq", 600, 300), ("hotpotqa", 100, 0), ("key_value", 500, 0)],
)
def test_the_real_files_have_what_their_sources_say(name, num_questions, num_unanswerable):
    dataset = load_dataset(name, path=Path(REAL_DATA), seed=0)
    assert len(dataset.questions) == num_questions
    assert sum(not question.answerable for question in dataset.questions) == num_unanswerable
    known = {document.id for document in dataset.documents}
    assert all(known.issuperset(question.gold_ids) for question in dataset.questions)
    assert all(question.gold_ids for question in dataset.questions if question.answerable)
