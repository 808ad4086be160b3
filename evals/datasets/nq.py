"""Real questions of Natural Questions, each with its gold passage, over the pool of real passages.

Source: arXiv:2307.03172 (lost in the middle), whose questions these are.
"""

import random
from pathlib import Path

from evals.datasets.files import dataset, lines, reading
from evals.datasets.passages import FILES, NQ, Pool
from evals.records import Dataset, Question


def load_nq(directory: Path, seed: int) -> Dataset:
    """The questions in an order drawn from the seed, over all passages, each once.

    Errors on passages of one article are not independent, so it is their cluster.

    Raises:
        ConfigError: a file is missing or does not have the expected shape.
    """
    with reading(directory, FILES):
        pool = Pool(directory)
        questions = []
        for number, entry in enumerate(lines(directory / NQ)):
            gold = [passage for passage in entry["ctxs"] if passage["isgold"]]
            questions.append(
                Question(
                    id=f"nq{number}",
                    text=entry["question"],
                    answers=tuple(entry["answers"]),
                    gold_ids=tuple(pool.id_of(passage["text"]) for passage in gold),
                    kind="nq",
                    cluster=gold[0]["title"],
                )
            )
    random.Random(seed).shuffle(questions)
    return dataset("nq", pool.documents, questions, f"Natural Questions, {NQ}, seed {seed}")
