"""Real questions of Natural Questions, over a pool of real passages from four public datasets.

Files, as their sources publish them, under one directory:
    lost_in_the_middle/nq-open-oracle.jsonl.gz   questions, answers, one gold passage each
    squad2_cs224n/{dev,test}-v2.0.json           passages
    clapnq_dev/clapnq_dev_{answerable,unanswerable}.jsonl        passages
    hotpotqa_distractor100/hotpotqa_distractor_100.jsonl         passages
Sources: arXiv:2307.03172 (lost in the middle), arXiv:1806.03822 (SQuAD 2.0), arXiv:2404.02103 (CLAPnq),
arXiv:1809.09600 (HotpotQA).
"""

import gzip
import hashlib
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from evals.config import ConfigError
from evals.records import Dataset, Document, Question

QUESTIONS = "lost_in_the_middle/nq-open-oracle.jsonl.gz"
SQUAD = ("squad2_cs224n/dev-v2.0.json", "squad2_cs224n/test-v2.0.json")
CLAPNQ = ("clapnq_dev/clapnq_dev_answerable.jsonl", "clapnq_dev/clapnq_dev_unanswerable.jsonl")
HOTPOT = "hotpotqa_distractor100/hotpotqa_distractor_100.jsonl"
FILES = (QUESTIONS, *SQUAD, *CLAPNQ, HOTPOT)


def load_nq(directory: Path, seed: int) -> Dataset:
    """The questions in an order drawn from the seed, over all passages, each once.

    Raises:
        ConfigError: a file is missing or does not have the expected shape.
    """
    missing = [name for name in FILES if not (directory / name).is_file()]
    if missing:
        raise ConfigError(f"--data {directory} lacks {', '.join(missing)}")
    try:
        entries = list(_lines(directory / QUESTIONS))
        documents = _pool(directory, entries)
        questions = _questions(entries, {document.text: document.id for document in documents})
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise ConfigError(f"--data {directory}: a file does not have the expected shape: {error!r}") from error
    random.Random(seed).shuffle(questions)
    texts = [[d.id, d.title, d.text] for d in documents] + [[q.id, q.text, *q.answers] for q in questions]
    digest = hashlib.sha256(json.dumps(texts).encode()).hexdigest()
    return Dataset("nq", tuple(documents), tuple(questions), digest, f"Natural Questions, {QUESTIONS}, seed {seed}")


def _lines(file: Path) -> Iterator[Any]:
    opener: Callable[..., TextIO] = gzip.open if file.suffix == ".gz" else open
    with opener(file, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def _pool(directory: Path, entries: list[Any]) -> list[Document]:
    """Every passage once, in the order of the files."""
    passages: dict[str, str] = {}
    for title, text in _passages(directory, entries):
        passages.setdefault(text.strip(), title)
    return [Document(f"p{number}", title, text) for number, (text, title) in enumerate(passages.items())]


def _passages(directory: Path, entries: list[Any]) -> Iterator[tuple[str, str]]:
    for entry in entries:
        yield from _titled(entry["ctxs"])
    for name in SQUAD:
        yield from _squad(json.loads((directory / name).read_text(encoding="utf-8")))
    for name in CLAPNQ:
        for entry in _lines(directory / name):
            yield from _titled(entry["passages"])
    for entry in _lines(directory / HOTPOT):
        for title, sentences in zip(entry["context"]["title"], entry["context"]["sentences"], strict=True):
            yield title, "".join(sentences)


def _titled(passages: list[Any]) -> Iterator[tuple[str, str]]:
    for passage in passages:
        yield passage["title"], passage["text"]


def _squad(content: Any) -> Iterator[tuple[str, str]]:
    for article in content["data"]:
        for paragraph in article["paragraphs"]:
            yield article["title"].replace("_", " "), paragraph["context"]


def _questions(entries: list[Any], ids: dict[str, str]) -> list[Question]:
    """One question per entry; errors on passages of one article are not independent, so it is their cluster."""
    questions = []
    for number, entry in enumerate(entries):
        gold = [passage for passage in entry["ctxs"] if passage["isgold"]]
        questions.append(
            Question(
                id=f"nq{number}",
                text=entry["question"],
                answers=tuple(entry["answers"]),
                gold_ids=tuple(ids[passage["text"].strip()] for passage in gold),
                kind="nq",
                cluster=gold[0]["title"],
            )
        )
    return questions
