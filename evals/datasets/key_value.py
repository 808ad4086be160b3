"""Looking up a value by its key among many: retrieval by heart, where nothing helps but reading.

Source: arXiv:2307.03172 (lost in the middle), section 3.
"""

import random
from pathlib import Path

from evals.datasets.files import dataset, lines, reading
from evals.records import Dataset, Document, Question

FILE = "lost_in_the_middle/kv-retrieval-75_keys.jsonl.gz"


def load_key_value(directory: Path, seed: int) -> Dataset:
    """All pairs of all questions are documents; those of any question serve all others as distractors.

    Raises:
        ConfigError: a file is missing or does not have the expected shape.
    """
    with reading(directory, (FILE,)):
        pairs: dict[str, str] = {}
        questions = []
        for number, entry in enumerate(lines(directory / FILE)):
            pairs.update(entry["ordered_kv_records"])
            text = f"What is the value of key {entry['key']}?"
            gold = (entry["key"],)
            questions.append(Question(f"kv{number}", text, (entry["value"],), gold, "key_value", f"kv{number}"))
    documents = [Document(key, f"Key {key}", f"Its value is {value}.") for key, value in pairs.items()]
    random.Random(seed).shuffle(questions)
    return dataset("key_value", documents, questions, f"{FILE}, seed {seed}")
