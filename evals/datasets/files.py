"""Files of datasets as their sources publish them: lines of JSON, perhaps packed, and errors that name the option."""

import contextlib
import gzip
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from evals.config import ConfigError
from evals.records import Dataset, Document, Question


def lines(file: Path) -> Iterator[Any]:
    opener: Callable[..., TextIO] = gzip.open if file.suffix == ".gz" else open
    with opener(file, "rt", encoding="utf-8") as content:
        for line in content:
            if line.strip():
                yield json.loads(line)


@contextlib.contextmanager
def reading(directory: Path, needed: Sequence[str]) -> Iterator[None]:
    """Raises:
    ConfigError: a file is missing, or what reads them finds another shape than it expects.
    """
    missing = [name for name in needed if not (directory / name).is_file()]
    if missing:
        raise ConfigError(f"--data {directory} lacks {', '.join(missing)}")
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise ConfigError(f"--data {directory}: a file does not have the expected shape: {error!r}") from error


def dataset(name: str, documents: Sequence[Document], questions: Sequence[Question], source: str) -> Dataset:
    """With the digest of all that decides what is asked and how it is graded."""
    texts = [[d.id, d.title, d.text] for d in documents] + [[q.id, q.text, *q.answers] for q in questions]
    digest = hashlib.sha256(json.dumps(texts).encode()).hexdigest()
    return Dataset(name, tuple(documents), tuple(questions), digest, source)
