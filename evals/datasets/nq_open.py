"""Questions without documents: what a model knows by itself.

Those of EfficientQA's test have the answers that people accepted of systems beside the dataset's own.
Source: https://github.com/google-research-datasets/natural-questions/tree/master/nq_open
"""

import random
from pathlib import Path
from typing import Any

from evals.datasets.files import dataset, lines, reading
from evals.records import Dataset, Question

DEV = "nq_open/NQ-open.dev.jsonl"
TEST = "nq_open/NQ-open.efficientqa.test.1.1.jsonl"


def load_nq_open(directory: Path, seed: int) -> Dataset:
    """NQ-open's development questions."""
    return _load("nq_open", directory, DEV, seed)


def load_efficientqa(directory: Path, seed: int) -> Dataset:
    """EfficientQA's test questions."""
    return _load("efficientqa", directory, TEST, seed)


def _load(name: str, directory: Path, file: str, seed: int) -> Dataset:
    with reading(directory, (file,)):
        questions = [_question(name, number, entry) for number, entry in enumerate(lines(directory / file))]
    random.Random(seed).shuffle(questions)
    return dataset(name, (), questions, f"{file}, seed {seed}")


def _question(name: str, number: int, entry: dict[str, Any]) -> Question:
    answers = entry.get("answer_and_def_correct_predictions", entry["answer"])
    return Question(
        id=f"{name}{number}",
        text=entry["question"],
        answers=tuple(answers),
        gold_ids=(),
        kind=name,
        cluster=str(number),
    )
