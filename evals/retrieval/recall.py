"""How often a retriever finds what supports the answer, by how many documents are taken; asks no model anything."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from evals.conditions import is_leak
from evals.records import Dataset, Document, Question
from evals.retrieval.ranking import Retriever
from evals.stats.bootstrap import bca_interval, tabulate
from evals.stats.rates import FORMULA, Rate, clustered_rate, wilson

DEFAULT_KS = (1, 5, 10, 20, 50, 100)
DEFINITIONS = {
    "recall": "questions whose supporting documents are among the first k (all of them; one, where any is enough)"
    " / questions that have any",
    "leaked": "questions for which another document among the first k has an accepted answer in its words"
    " / questions that have supporting documents",
    "leaks_mean": "such documents among the first k, on average",
    "mrr": "mean of 1 / rank of the first supporting document, 0 where it is not among the first `depth`",
    "questions": "of the dataset, from its first; `without_gold` of them have no supporting documents and do not count",
    "low, high": FORMULA + "; of mrr the BCa bootstrap of whole clusters at 95 %",
}


@dataclass(frozen=True, slots=True)
class RecallPoint:
    k: int
    recall: Rate
    leaked: Rate
    leaks_mean: float | None


@dataclass(frozen=True, slots=True)
class RecallCurve:
    """One retriever on one dataset. digest: of the dataset. questions: asked for, with or without gold documents."""

    dataset: str
    digest: str
    retriever: str
    documents: int
    questions: int
    without_gold: int
    clusters: int
    points: tuple[RecallPoint, ...]
    mrr: Rate
    depth: int

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def recall_curve(dataset: Dataset, retriever: Retriever, ks: Sequence[int], num_questions: int) -> RecallCurve:
    """Recall at each k of the first questions of a dataset.

    Args:
        ks: ascending, from 1. What is found behind the last of them does not count.
    Raises:
        ConfigError: a reranker does not do its part.
    """
    asked = dataset.questions[:num_questions]
    having = [question for question in asked if question.gold_ids]
    found = {question.id: _found(question, retriever.top(question.text, ks[-1]), ks) for question in having}
    clusters = {question.id: question.cluster for question in having}
    return RecallCurve(
        dataset=dataset.name,
        digest=dataset.digest,
        retriever=retriever.name,
        documents=len(dataset.documents),
        questions=len(asked),
        without_gold=len(asked) - len(having),
        clusters=len(set(clusters.values())),
        points=tuple(_point(k, number, found, clusters) for number, k in enumerate(ks)),
        mrr=_mean({key: one.reciprocal_rank for key, one in found.items()}, clusters),
        depth=ks[-1],
    )


@dataclass(frozen=True, slots=True)
class _Found:
    """Of one question: for each k whether its support is found and how many leaks are."""

    supported: tuple[bool, ...]
    leaks: tuple[int, ...]
    reciprocal_rank: float


def _found(question: Question, ranked: Sequence[Document], ks: Sequence[int]) -> _Found:
    ids = [document.id for document in ranked]
    leaks = np.cumsum([is_leak(document, question) for document in ranked], dtype=int)
    rank = next((rank for rank, name in enumerate(ids, 1) if name in question.gold_ids), None)
    return _Found(
        supported=tuple(question.is_supported_by(set(ids[:k])) for k in ks),
        leaks=tuple(int(leaks[min(k, len(ids)) - 1]) for k in ks),
        reciprocal_rank=0.0 if rank is None else 1 / rank,
    )


def _point(k: int, number: int, found: Mapping[str, _Found], clusters: Mapping[str, str]) -> RecallPoint:
    leaks = {key: one.leaks[number] for key, one in found.items()}
    return RecallPoint(
        k=k,
        recall=clustered_rate((clusters[key], one.supported[number]) for key, one in found.items()),
        leaked=clustered_rate((clusters[key], count > 0) for key, count in leaks.items()),
        leaks_mean=sum(leaks.values()) / len(leaks) if leaks else None,
    )


def _mean(values: Mapping[str, float], clusters: Mapping[str, str]) -> Rate:
    """The mean of values from 0 to 1, with an interval of whole clusters."""
    n, num_clusters = len(values), len({clusters[key] for key in values})
    if n == 0:
        return {"rate": None, "low": None, "high": None, "n": 0}
    mean = sum(values.values()) / n
    if len(set(values.values())) == 1 or num_clusters == 1:
        # Nothing varies that could be resampled: no more is known than from one question of each cluster.
        low, high = wilson(mean * num_clusters, num_clusters)
    else:
        table = tabulate([values], clusters)
        low, high = bca_interval(mean, table.resampled()[:, 0], table.without_each()[:, 0])
    return {"rate": mean, "low": low, "high": high, "n": n}
