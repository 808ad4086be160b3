"""Questions on paragraphs of Wikipedia, half of which their paragraph does not answer, over the pool of real passages.

The half that Stanford's course CS224N uses for development: no figure here compares with those of the official set.
Source: arXiv:1806.03822 (SQuAD 2.0).
"""

import random
from pathlib import Path
from typing import Any

from evals.datasets.files import dataset, reading
from evals.datasets.passages import FILES, SQUAD, Pool, squad_articles, title_of
from evals.records import Dataset, Question


def load_squad(directory: Path, seed: int) -> Dataset:
    """Answerable and unanswerable questions in an order drawn from the seed; an article is a cluster.

    An unanswerable one has no gold passage: the paragraph that it was written about is its topic.

    Raises:
        ConfigError: a file is missing or does not have the expected shape.
    """
    with reading(directory, FILES):
        pool = Pool(directory)
        questions = [
            _question(entry, pool.id_of(paragraph["context"]), title_of(article))
            for article in squad_articles(directory / SQUAD[0])
            for paragraph in article["paragraphs"]
            for entry in paragraph["qas"]
        ]
    random.Random(seed).shuffle(questions)
    return dataset("squad2", pool.documents, questions, f"SQuAD 2.0, {SQUAD[0]}, seed {seed}")


def _question(entry: dict[str, Any], paragraph_id: str, article: str) -> Question:
    answers = () if entry["is_impossible"] else tuple(dict.fromkeys(answer["text"] for answer in entry["answers"]))
    return Question(
        id=entry["id"],
        text=entry["question"].strip(),
        answers=answers,
        gold_ids=(paragraph_id,) if answers else (),
        kind="answerable" if answers else "unanswerable",
        cluster=article,
        topic_ids=(paragraph_id,),
    )
