"""Questions that take two passages to answer, over the pool of real passages.

Source: arXiv:1809.09600 (HotpotQA), distractor setting.
"""

import random
from pathlib import Path

from evals.datasets.files import dataset, lines, reading
from evals.datasets.passages import FILES, HOTPOT, Pool, hotpot_paragraphs
from evals.records import Dataset, Question


def load_hotpot(directory: Path, seed: int) -> Dataset:
    """Raises:
    ConfigError: a file is missing or does not have the expected shape.
    """
    with reading(directory, FILES):
        pool = Pool(directory)
        questions = []
        for entry in lines(directory / HOTPOT):
            needed = set(entry["supporting_facts"]["title"])
            gold = [pool.id_of(text) for title, text in hotpot_paragraphs(entry) if title in needed]
            questions.append(
                Question(
                    id=str(entry["id"]),
                    text=entry["question"],
                    answers=(entry["answer"],),
                    gold_ids=tuple(dict.fromkeys(gold)),
                    kind=entry["type"],
                    cluster=str(entry["id"]),
                )
            )
    random.Random(seed).shuffle(questions)
    return dataset("hotpotqa", pool.documents, questions, f"HotpotQA, {HOTPOT}, seed {seed}")
