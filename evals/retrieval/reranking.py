"""The first documents of a ranking in the order of a better judge, who is too slow for all of them."""

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import chain, islice
from typing import Protocol

import numpy as np

from evals.config import ConfigError
from evals.records import Document

# Conditions and instructions ask the same questions again.
MAX_KEPT = 1 << 14


class Reranker(Protocol):
    """Scores documents for a question: larger is better. `name` says who does, with its settings."""

    name: str

    def scores(self, question: str, documents: Sequence[Document]) -> Sequence[float]: ...


class Reranking:
    """Puts the first `depth` documents in the order of a reranker; ties stay as they were, and so does what follows."""

    def __init__(self, reranker: Reranker, depth: int) -> None:
        self._reranker, self._depth = reranker, depth
        self.name = f"first {depth} reranked by {reranker.name}"
        self._order = lru_cache(MAX_KEPT)(self._judge)

    def of(self, question: str, ranking: Iterator[Document]) -> Iterator[Document]:
        """Raises:
        ConfigError: the reranker does not answer, or not for each document.
        """
        first = tuple(islice(ranking, self._depth))
        return chain((first[place] for place in self._order(question, first)), ranking)

    def _judge(self, question: str, documents: tuple[Document, ...]) -> tuple[int, ...]:
        scores = [float(score) for score in self._reranker.scores(question, documents)]
        if len(scores) != len(documents) or not all(map(math.isfinite, scores)):
            raise ConfigError(f"--reranker: {self._reranker.name} gives {len(documents)} documents the scores {scores}")
        return tuple(np.argsort(-np.asarray(scores), kind="stable").tolist())
