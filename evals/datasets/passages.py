"""A pool of real passages: those of four public datasets together, each once.

Files, as their sources publish them, under one directory:
    lost_in_the_middle/nq-open-oracle.jsonl.gz, squad2_cs224n/{dev,test}-v2.0.json,
    clapnq_dev/clapnq_dev_{answerable,unanswerable}.jsonl, hotpotqa_distractor100/hotpotqa_distractor_100.jsonl
About 563,000 words: enough for contexts of 128K tokens that repeat nothing.
Sources: arXiv:2307.03172 (lost in the middle), arXiv:1806.03822 (SQuAD 2.0), arXiv:2404.02103 (CLAPnq),
arXiv:1809.09600 (HotpotQA).
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from evals.datasets.files import lines
from evals.records import Document

NQ = "lost_in_the_middle/nq-open-oracle.jsonl.gz"
SQUAD = ("squad2_cs224n/dev-v2.0.json", "squad2_cs224n/test-v2.0.json")
CLAPNQ = ("clapnq_dev/clapnq_dev_answerable.jsonl", "clapnq_dev/clapnq_dev_unanswerable.jsonl")
HOTPOT = "hotpotqa_distractor100/hotpotqa_distractor_100.jsonl"
FILES = (NQ, *SQUAD, *CLAPNQ, HOTPOT)


class Pool:
    """Owns the passages, and knows each by its text."""

    def __init__(self, directory: Path) -> None:
        titles: dict[str, str] = {}
        for title, text in _passages(directory):
            titles.setdefault(text.strip(), title)
        self.documents = tuple(Document(f"p{i}", title, text) for i, (text, title) in enumerate(titles.items()))
        self._ids = {document.text: document.id for document in self.documents}

    def id_of(self, text: str) -> str:
        return self._ids[text.strip()]


def _passages(directory: Path) -> Iterator[tuple[str, str]]:
    """(title, text), in the order of the files."""
    for entry in lines(directory / NQ):
        yield from _titled(entry["ctxs"])
    for name in SQUAD:
        for article in squad_articles(directory / name):
            for paragraph in article["paragraphs"]:
                yield title_of(article), paragraph["context"]
    for name in CLAPNQ:
        for entry in lines(directory / name):
            yield from _titled(entry["passages"])
    for entry in lines(directory / HOTPOT):
        yield from hotpot_paragraphs(entry)


def _titled(passages: list[Any]) -> Iterator[tuple[str, str]]:
    for passage in passages:
        yield passage["title"], passage["text"]


def squad_articles(file: Path) -> list[Any]:
    content: list[Any] = json.loads(file.read_text(encoding="utf-8"))["data"]
    return content


def title_of(article: dict[str, Any]) -> str:
    title: str = article["title"]
    return title.replace("_", " ")


def hotpot_paragraphs(entry: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for title, sentences in zip(entry["context"]["title"], entry["context"]["sentences"], strict=True):
        yield title, "".join(sentences)
