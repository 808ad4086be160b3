"""Datasets of the Hub: fetched by the real library from a Hub of this machine, or read from copies that it wrote."""

import csv
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import datasets
import fakes_hub
import pytest
from fakes_hub import FakeHub, FakeRepository

from evals.config import ConfigError
from evals.datasets import hub, load_dataset
from evals.datasets.hub import SOURCES
from evals.scoring.grade import grade

ROOT = Path(__file__).resolve().parents[2]

PAGE = "Paris is the capital of France. " * 3
ROWS = {
    "popqa": [
        {
            "id": 1,
            "subj": "Ann",
            "question": "What is Ann's job?",
            "possible_answers": '["poet", "bard"]',
            "s_pop": 142,
        },
        {"id": 2, "subj": "Bob", "question": "Where was Bob born?", "possible_answers": '["Oslo"]', "s_pop": 9},
        {"id": 3, "subj": "Bob", "question": "What is Bob's job?", "possible_answers": '["cook"]', "s_pop": 10000},
    ],
    "triviaqa": [
        {
            "question": "Which city is the capital?",
            "question_id": "tc_1",
            "answer": {"value": "Paris", "aliases": ["Paris", "City of Light"], "normalized_value": "paris"},
        }
    ],
    "triviaqa_evidence": [
        {
            "question": "Which city is the capital?",
            "question_id": "tc_1",
            "answer": {"value": "Paris", "aliases": ["Paris", "City of Light"]},
            "entity_pages": {"title": ["France", "Wine"], "wiki_context": [PAGE, "Wine is red."]},
            "search_results": {"title": ["Lights"], "search_context": ["Some say City of Light."]},
        },
        {
            "question": "Which river?",
            "question_id": "tc_2",
            "answer": {"value": "Seine", "aliases": []},
            "entity_pages": {"title": [], "wiki_context": []},
            "search_results": {"title": ["Rivers"], "search_context": ["No such word."]},
        },
    ],
    "halueval": [
        {
            "knowledge": "Ann wrote it. Ann was a poet.",
            "question": "Who wrote it?",
            "right_answer": "Ann",
            "hallucinated_answer": "Bob wrote it.",
        },
        {
            "knowledge": "Ann wrote it. Ann was a poet.",
            "question": "What was Ann?",
            "right_answer": "a poet",
            "hallucinated_answer": "a cook",
        },
    ],
    "ragtruth": [
        {
            "query": "how to cook beets",
            "context": "passage 1:Boil them.\n\npassage 2:Roast them.\n\n",
            "output": output,
            "task_type": "QA",
            "quality": quality,
            "hallucination_labels": labels,
        }
        for output, quality, labels in (
            ("Boil or roast them.", "good", "[]"),
            ("Fry them.", "good", '[{"start": 0, "end": 4, "label_type": "Evident Conflict"}]'),
            ("Boil th", "truncated", "[]"),
            ("Unable to answer based on given passages.", "good", "[]"),
        )
    ]
    + [
        {
            "query": "who knows",
            "context": "passage 1:Nobody.",
            "output": "Ann.",
            "task_type": "QA",
            "quality": "good",
            "hallucination_labels": '[{"start": 0}]',
        },
        {
            "query": "Summarise",
            "context": "A text.",
            "output": "A.",
            "task_type": "Summary",
            "quality": "good",
            "hallucination_labels": "[]",
        },
    ],
    "simpleqa": [
        {
            "metadata": "{'topic': 'Science and technology', 'urls': []}",
            "problem": "Who won in 2010?",
            "answer": "Ann ",
        },
        {"metadata": "", "problem": "Who lost?", "answer": "Bob"},
    ],
}
WITHOUT_DOCUMENTS = {"popqa", "triviaqa", "simpleqa"}


def save(rows, split, directory, form):
    directory.mkdir()
    table = datasets.Dataset.from_list(rows)
    if form == "jsonl":
        table.to_json(str(directory / f"{split}.jsonl"))
    elif form == "parquet":
        table.to_parquet(str(directory / f"{split}-00000-of-00001.parquet"))
    elif form == "dictionary":
        datasets.DatasetDict({split: table, "train": table.select([0])}).save_to_disk(str(directory))
    else:
        table.save_to_disk(str(directory))


def load(name, path):
    dataset = load_dataset(name, path=path, seed=0)
    return dataset, {question.text: question for question in dataset.questions}


@pytest.mark.parametrize("name", SOURCES)
def test_every_form_of_a_copy_gives_the_same(tmp_path, name):
    found = []
    for form in ("jsonl", "parquet", "saved", "dictionary"):
        save(ROWS[name], SOURCES[name].split, tmp_path / form, form)
        found.append(load_dataset(name, path=tmp_path / form, seed=0))
    assert all(dataset == found[0] for dataset in found)
    assert found[0].name == name
    assert (not found[0].documents) == (name in WITHOUT_DOCUMENTS)
    known = {document.id for document in found[0].documents}
    for question in found[0].questions:
        assert known.issuperset((*question.gold_ids, *question.topic_ids))
        # An accepted answer is accepted.
        if question.answers and not question.long_form:
            assert grade(question, question.answers[-1], (), permission="must_answer").verdict == "correct"


@pytest.fixture
def copies(tmp_path):
    for name, rows in ROWS.items():
        save(rows, SOURCES[name].split, tmp_path / name, "jsonl")
    return tmp_path


def test_popqa_tells_popular_ones_from_the_tail(copies):
    _, questions = load("popqa", copies / "popqa")
    kinds = {text: question.kind for text, question in questions.items()}
    assert kinds == {
        "What is Ann's job?": "popularity 10^2",
        "Where was Bob born?": "popularity 10^0",
        "What is Bob's job?": "popularity 10^4",
    }
    assert questions["What is Ann's job?"].answers == ("poet", "bard")
    assert questions["What is Bob's job?"].cluster == questions["Where was Bob born?"].cluster


def test_triviaqa_with_and_without_its_evidence(copies):
    _, questions = load("triviaqa", copies / "triviaqa")
    assert questions["Which city is the capital?"].answers == ("Paris", "City of Light")
    dataset, questions = load("triviaqa_evidence", copies / "triviaqa_evidence")
    [question] = questions.values()
    texts = {document.id: document.text for document in dataset.documents}
    assert len(texts) == 4, "what answers nothing is a distractor"
    assert question.any_gold
    assert {texts[gold] for gold in question.gold_ids} == {PAGE.strip(), "Some say City of Light."}


def test_halueval_has_its_knowledge_as_document(copies):
    dataset, questions = load("halueval", copies / "halueval")
    [document] = dataset.documents
    assert document.text == "Ann wrote it. Ann was a poet."
    assert {question.gold_ids for question in questions.values()} == {(document.id,)}
    assert questions["Who wrote it?"].answers == ("Ann",)


def test_ragtruth_has_the_answers_that_people_found_faithful(copies, tmp_path):
    dataset, questions = load("ragtruth", copies / "ragtruth")
    texts = {document.id: document.text for document in dataset.documents}
    beets, nobody = questions["how to cook beets"], questions["who knows"]
    assert len(questions) == 2
    assert (beets.answers, beets.long_form, beets.known) == (("Boil or roast them.",), True, True)
    assert [texts[gold] for gold in beets.gold_ids] == ["Boil them.", "Roast them."]
    assert (nobody.answers, nobody.known, nobody.gold_ids) == ((), False, ())
    assert [texts[topic] for topic in nobody.topic_ids] == ["Nobody."]
    # Its own repository has the same in two files.
    own = tmp_path / "own"
    own.mkdir()
    rows = ROWS["ragtruth"]
    contexts = list(dict.fromkeys((row["query"], row["context"], row["task_type"]) for row in rows))
    with (own / "source_info.jsonl").open("w") as file:
        for number, (query, context, task) in enumerate(contexts):
            info = {"question": query, "passages": context} if task == "QA" else context
            file.write(json.dumps({"source_id": str(number), "task_type": task, "source_info": info}) + "\n")
    with (own / "response.jsonl").open("w") as file:
        for row in rows:
            source = contexts.index((row["query"], row["context"], row["task_type"]))
            labels = json.loads(row["hallucination_labels"])
            fields = {"quality": row["quality"], "labels": labels, "response": row["output"], "split": "test"}
            file.write(json.dumps({"source_id": str(source)} | fields) + "\n")
        file.write(json.dumps({"source_id": "0", "split": "train"}) + "\n")
    assert load_dataset("ragtruth", path=own, seed=0) == dataset


def test_simpleqa_reads_the_file_that_its_source_publishes(copies, tmp_path):
    dataset, questions = load("simpleqa", copies / "simpleqa")
    assert questions["Who won in 2010?"].kind == "science and technology"
    assert (questions["Who lost?"].kind, questions["Who won in 2010?"].answers) == ("simpleqa", ("Ann",))
    published = tmp_path / "published"
    published.mkdir()
    with (published / "simple_qa_test_set.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["metadata", "problem", "answer"])
        writer.writeheader()
        writer.writerows(ROWS["simpleqa"])
    assert load_dataset("simpleqa", path=published, seed=0) == dataset


def test_only_files_of_the_split_are_read_where_there_are_such(tmp_path):
    save(ROWS["popqa"], "test", tmp_path / "all", "jsonl")
    (tmp_path / "all" / "train.jsonl").write_text(json.dumps(ROWS["popqa"][0] | {"question": "Which one?"}) + "\n")
    assert len(load("popqa", tmp_path / "all")[1]) == 3


@pytest.mark.parametrize("name", SOURCES)
def test_copies_that_are_none_say_what_is_wanted(tmp_path, name):
    with pytest.raises(ConfigError, match=r"--data .* lacks files of \.jsonl.*save_to_disk"):
        load_dataset(name, path=tmp_path, seed=0)
    with pytest.raises(ConfigError, match=r"--data .*nowhere is no directory"):
        load_dataset(name, path=tmp_path / "nowhere", seed=0)
    (tmp_path / "a.jsonl").write_text('{"question": "Who?"}\n')
    with pytest.raises(ConfigError, match=r"lacks the columns .*; it has question"):
        load_dataset(name, path=tmp_path, seed=0)
    (tmp_path / "a.jsonl").write_text("")
    with pytest.raises(ConfigError, match=f"has no questions for {name}"):
        load_dataset(name, path=tmp_path, seed=0)


def test_a_saved_dataset_without_the_split_says_so(tmp_path):
    save(ROWS["popqa"], "other", tmp_path / "saved", "dictionary")
    with pytest.raises(ConfigError, match="lacks the split test; it has other, train"):
        load_dataset("popqa", path=tmp_path / "saved", seed=0)


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(hub.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"datasets is not installed; .* pip install 'fathom\[hub\]'"):
        load_dataset("popqa", path=None, seed=0)


def test_without_a_network_the_error_comes_soon_and_says_what_helps(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    for name in hub.OFFLINE:
        monkeypatch.delenv(name, raising=False)
    started = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        load_dataset("triviaqa", path=None, seed=0)
    # The library's own retries take 23 seconds.
    assert time.monotonic() - started < 15
    assert "the Hub cannot be reached at http://127.0.0.1:9: [Errno 111] Connection refused" in str(caught.value)
    assert "--data DIRECTORY reads a copy without a network: mandarjoshi/trivia_qa (rc.nocontext)" in str(caught.value)


class DatasetHub(fakes_hub._Handler):
    """The same Hub with its files as those of datasets."""

    def parse_request(self):
        if not super().parse_request():
            return False
        self.path = self.path.replace("/api/datasets/", "/api/models/").replace("/datasets/", "/")
        if re.fullmatch(r"/api/models/[^/]+/[^/]+/tree/[^/]+/.+", self.path.partition("?")[0]):
            self._refuse(404, "EntryNotFound")  # no folders
            return False
        return True


def fetch(name, home, **environment):
    code = (
        "import sys; from evals.config import ConfigError; from evals.datasets import load_dataset\n"
        f"try: dataset = load_dataset({name!r}, path=None, seed=0)\n"
        "except ConfigError as error: sys.exit(f'refused: {error}')\n"
        "print(dataset.source, *(question.text for question in dataset.questions), sep='|')"
    )
    known = {key: value for key, value in os.environ.items() if key not in hub.OFFLINE}
    environment = known | {"HF_HOME": str(home)} | environment
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_the_library_fetches_it_from_the_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(fakes_hub, "_Handler", DatasetHub)
    files = tmp_path / "files"
    save(ROWS["popqa"], "test", files, "jsonl")
    (files / "README.md").write_text("---\nlicense: mit\n---\n")
    with FakeHub({"akariasai/PopQA": FakeRepository({"main": files})}) as hub_of_files:
        done = fetch("popqa", tmp_path / "home", HF_ENDPOINT=hub_of_files.url)
        source, *texts = done.stdout.strip().split("|")
        assert source == "akariasai/PopQA, test, seed 0", done.stderr
        assert sorted(texts) == sorted(row["question"] for row in ROWS["popqa"])
        missing = fetch("simpleqa", tmp_path / "home", HF_ENDPOINT=hub_of_files.url)
        assert "refused: --dataset simpleqa: basicv8vc/SimpleQA cannot be had" in missing.stderr
    # What was fetched is still there when the user says that there is no network.
    again = fetch("popqa", tmp_path / "home", HF_ENDPOINT=hub_of_files.url, HF_HUB_OFFLINE="1")
    assert again.stdout == done.stdout, again.stderr
    never = fetch("simpleqa", tmp_path / "home", HF_ENDPOINT=hub_of_files.url, HF_HUB_OFFLINE="1")
    assert "refused: --dataset simpleqa: basicv8vc/SimpleQA cannot be had" in never.stderr
