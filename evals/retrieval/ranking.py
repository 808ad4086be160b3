"""From scores to documents in order, taken as they are needed: of a million passages a context holds a few hundred."""

import random
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from evals.records import Document
from evals.retrieval.reranking import Reranking

FIRST_TAKEN, GROWTH = 256, 8
FUSION = 60  # ranks that count little more than one another

Scores = NDArray[np.float32]


class Scorer(Protocol):
    """Scores all documents of one corpus for a question: larger is better. `name` says how, with its settings."""

    name: str

    def scores(self, question: str) -> Scores: ...


def text_of(document: Document) -> str:
    """What is searched of a document."""
    return f"{document.title} {document.text}".strip()


class Retriever:
    """A corpus in the order of a scorer. Ties go to the document that comes first in the corpus."""

    def __init__(self, documents: Sequence[Document], scorer: Scorer, reranking: Reranking | None = None) -> None:
        self.documents, self._scorer, self._reranking = tuple(documents), scorer, reranking
        self.name = scorer.name if reranking is None else f"{scorer.name}, {reranking.name}"

    def ranking(self, question: str) -> Iterator[Document]:
        """All documents, best first.

        Raises:
            ConfigError: a reranker does not do its part.
        """
        ranking = (self.documents[place] for place in in_order(self._scorer.scores(question)))
        return ranking if self._reranking is None else self._reranking.of(question, ranking)

    def top(self, question: str, count: int) -> list[Document]:
        """The `count` best documents, best first; all of them where there are fewer."""
        return list(islice(self.ranking(question), count))


def in_order(scores: NDArray[Any]) -> Iterator[int]:
    """The places of the scores from the largest on, of equal ones the first first; sorted only as far as taken."""
    taken, size = 0, FIRST_TAKEN
    while taken < len(scores):
        if size < len(scores):
            bound = np.partition(scores, len(scores) - size)[len(scores) - size]
            candidates = np.flatnonzero(scores >= bound)
        else:
            candidates = np.arange(len(scores))
        order = candidates[np.argsort(-scores[candidates], kind="stable")]
        yield from order[taken:].tolist()
        taken, size = len(order), size * GROWTH


class Shuffled:
    """Any order, another for each question."""

    def __init__(self, num_documents: int, seed: int) -> None:
        self._num_documents, self._seed = num_documents, seed
        self.name = f"random, seed {seed}"

    def scores(self, question: str) -> Scores:
        rng = np.random.default_rng(random.Random(f"{self._seed} {question}").getrandbits(64))
        return rng.random(self._num_documents, dtype=np.float32)


class Fused:
    """Reciprocal rank fusion: the sum of 1 / (60 + rank) over several scorers.

    Source: G. V. Cormack, C. L. A. Clarke and S. Buettcher, SIGIR 2009, 758-759.
    """

    def __init__(self, scorers: Sequence[Scorer]) -> None:
        self._scorers = tuple(scorers)
        self.name = f"reciprocal rank fusion k={FUSION} of {' and '.join(scorer.name for scorer in scorers)}"

    def scores(self, question: str) -> Scores:
        ranks = [_reciprocal_ranks(scorer.scores(question)) for scorer in self._scorers]
        return np.asarray(np.sum(ranks, axis=0), np.float32)


def _reciprocal_ranks(scores: Scores) -> Scores:
    ranks = np.empty(len(scores), np.float32)
    ranks[np.argsort(-scores, kind="stable")] = np.arange(1, len(scores) + 1, dtype=np.float32)
    return np.asarray(1 / (FUSION + ranks), np.float32)
