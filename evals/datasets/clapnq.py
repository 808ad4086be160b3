"""Questions of people whose passage answers them at length, or is on the topic and does not answer them.

The answers are of some fifty words: whether one is right no comparison of words can tell, so that takes a judge.
Whether a model abstains is seen without one. Some of the questions stand in NQ-open as well; where that file is there,
they have its short answers.
Source: arXiv:2404.02103 (CLAPnq).
"""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from evals.datasets.files import dataset, lines, reading
from evals.datasets.nq_open import DEV
from evals.datasets.passages import CLAPNQ, FILES, Pool
from evals.records import Dataset, Question


def load_clapnq(directory: Path, seed: int) -> Dataset:
    """Raises:
    ConfigError: a file is missing or does not have the expected shape.
    """
    with reading(directory, FILES):
        pool = Pool(directory)
        short = _short_answers(directory / DEV)
        questions = list(_questions(directory, pool, short))
    random.Random(seed).shuffle(questions)
    return dataset("clapnq", pool.documents, questions, f"CLAPnq, {', '.join(CLAPNQ)}, seed {seed}")


def _short_answers(file: Path) -> dict[str, tuple[str, ...]]:
    if not file.is_file():
        return {}
    return {entry["question"].lower(): tuple(entry["answer"]) for entry in lines(file)}


def _questions(directory: Path, pool: Pool, short: dict[str, tuple[str, ...]]) -> Iterator[Question]:
    for name, answerable in zip(CLAPNQ, (True, False), strict=True):
        for entry in lines(directory / name):
            yield _question(entry, pool, short, answerable=answerable)


def _question(entry: dict[str, Any], pool: Pool, short: dict[str, tuple[str, ...]], *, answerable: bool) -> Question:
    passages = tuple(pool.id_of(passage["text"]) for passage in entry["passages"])
    known = short.get(entry["input"].lower(), ())
    long = tuple(output["answer"] for output in entry.get("output") or () if output.get("answer"))
    return Question(
        id=str(entry["id"]),
        text=entry["input"],
        answers=(known or long) if answerable else (),
        gold_ids=passages if answerable else (),
        kind="answerable" if answerable else "unanswerable",
        cluster=entry["passages"][0]["title"],
        topic_ids=passages,
        long_form=answerable and not known,
    )
