"""The figures of one point: one model, dataset and permission at one budget."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

from evals.decomposition import change_since, decompose
from evals.records import LOST, HallucinationKind, SampleRow, Verdict
from evals.stats.paired import Difference, holm, paired_difference
from evals.stats.rates import Rate, clustered_rate
from evals.stats.turning import Turning, turning_point
from loadtest import latency

SCORED: tuple[Verdict, ...] = ("correct", "hallucinated", "abstained")


def describe_points(by_budget: Mapping[int, Sequence[SampleRow]]) -> list[dict[str, Any]]:
    """All points of a series, in the order of their budgets."""
    points = [describe_point(budget, by_budget[budget], by_budget.get(0, [])) for budget in sorted(by_budget)]
    changes = [point["vs_closed_book"] for point in points if point["vs_closed_book"] is not None]
    for change, adjusted in zip(changes, holm([change["p_value"] for change in changes]), strict=True):
        change["p_adjusted"] = adjusted
    _explain_changes(points, by_budget)
    return points


def _explain_changes(points: Sequence[dict[str, Any]], by_budget: Mapping[int, Sequence[SampleRow]]) -> None:
    """Of each point with documents, why it differs from the shortest one with documents."""
    with_documents = [point for point in points if point["budget"] > 0]
    for point in with_documents[1:]:
        if point["decomposition"] is not None:
            since, budget = with_documents[0]["budget"], point["budget"]
            change = change_since(since, counted(by_budget[since]), counted(by_budget[budget]))
            point["decomposition"]["change"] = change


def turning_of(by_budget: Mapping[int, Sequence[SampleRow]]) -> Turning | None:
    """Where the rate of hallucinations stops to fall, of the budgets with documents."""
    clusters = {row.question_id: row.cluster for rows in by_budget.values() for row in rows}
    return turning_point({budget: _hallucinations(rows) for budget, rows in by_budget.items()}, clusters)


def describe_point(budget: int, rows: Sequence[SampleRow], closed_book: Sequence[SampleRow]) -> dict[str, Any]:
    """Everything that the summary says of one point; `closed_book` are the samples without documents, if any."""
    answerable = [row for row in rows if row.answers]
    prompt_tokens = [row.prompt_tokens for row in rows if row.prompt_tokens is not None]
    return {
        "budget": budget,
        "n": len(rows),
        "prompt_tokens_mean": mean(prompt_tokens),
        "context_length": spread(prompt_tokens),
        "document_tokens_mean": mean(row.document_tokens for row in rows),
        "leaks_mean": mean(row.num_leaks for row in rows),
        "duplicates_mean": mean(row.num_duplicates for row in rows),
        "depth_mean": mean(row.depth for row in rows if row.depth is not None),
        "documents_mean": mean(len(row.doc_ids) for row in rows),
        "recall": clustered_rate((row.cluster, row.gold_in_context) for row in answerable),
        **verdict_rates(rows),
        "unscored": sum(row.verdict == "unscored" for row in rows),
        "lost": _lost(rows),
        "at_limit": sum(row.finish_reason == "length" for row in rows),
        "errors": sum(row.error is not None for row in rows),
        "hallucinated_of_answered": _of_answered(rows),
        "first_line": verdict_rates(rows, first_line=True),
        "gold": {
            "present": group([row for row in answerable if row.gold_in_context]),
            "absent": group([row for row in answerable if not row.gold_in_context]),
        },
        "decomposition": decompose(counted(rows), counted(closed_book) if budget > 0 else ()),
        "answerable": group(answerable),
        "unanswerable": group([row for row in rows if not row.answers]),
        "question_kinds": _by_question_kind(rows),
        "hallucination_kinds": _hallucination_kinds(rows),
        "vs_closed_book": _against(closed_book, rows) if closed_book and budget > 0 else None,
        **_latencies(rows),
        **_memory(rows),
    }


def counted(rows: Sequence[SampleRow]) -> list[SampleRow]:
    """Those of which a verdict could be had: what failed, was cut or is empty counts, as neither right nor wrong."""
    return [row for row in rows if row.lost != "ungraded"]


def verdict_rates(rows: Sequence[SampleRow], *, first_line: bool = False) -> dict[str, Rate]:
    """The share of each verdict among all that were asked; of none where not a single one has a verdict."""
    told = [(row.cluster, row.first_line_verdict if first_line else row.verdict) for row in counted(rows)]
    if all(verdict == "unscored" for _, verdict in told):
        told = []
    return {name: clustered_rate((cluster, verdict == name) for cluster, verdict in told) for name in SCORED}


def _lost(rows: Sequence[SampleRow]) -> dict[str, int]:
    counts = Counter(row.lost for row in rows)
    return {lost: counts[lost] for lost in LOST}


def _of_answered(rows: Sequence[SampleRow]) -> Rate:
    answered = [row for row in rows if row.verdict in ("correct", "hallucinated")]
    return clustered_rate((row.cluster, row.verdict == "hallucinated") for row in answered)


def group(rows: Sequence[SampleRow]) -> dict[str, Any]:
    """Verdicts of a part of a point's samples."""
    return {"n": len(rows), **verdict_rates(rows), "unscored": sum(row.verdict == "unscored" for row in rows)}


def cache_bytes_of(row: SampleRow) -> int | None:
    """What the sequence held at its peak; else keys, values and state at its end; None where nothing is reported."""
    if row.peak_bytes is not None:
        return row.peak_bytes
    parts = [part for part in (row.kv_bytes, row.state_bytes) if part is not None]
    return sum(parts) if parts else None


def mean(values: Iterable[float]) -> float | None:
    known = list(values)
    return math.fsum(known) / len(known) if known else None


def spread(values: Sequence[int]) -> dict[str, float | None]:
    return {"mean": mean(values), "min": min(values, default=None), "max": max(values, default=None)}


def _by_question_kind(rows: Sequence[SampleRow]) -> dict[str, Any]:
    kinds = sorted({row.question_kind for row in rows})
    return {kind: group([row for row in rows if row.question_kind == kind]) for kind in kinds}


def _hallucination_kinds(rows: Sequence[SampleRow]) -> dict[str, int]:
    counts = Counter(row.hallucination_kind for row in rows if row.verdict == "hallucinated")
    return {kind: counts[kind] for kind in get_args(HallucinationKind)}


def _against(closed_book: Sequence[SampleRow], rows: Sequence[SampleRow]) -> Difference:
    clusters = {row.question_id: row.cluster for row in (*closed_book, *rows)}
    return paired_difference(_hallucinations(rows), _hallucinations(closed_book), clusters)


def _hallucinations(rows: Sequence[SampleRow]) -> Mapping[str, bool]:
    return {row.question_id: row.verdict == "hallucinated" for row in rows if row.verdict != "unscored"}


def _latencies(rows: Sequence[SampleRow]) -> dict[str, latency.Summary]:
    """Over the samples that were answered without an error: a failure's clock stops at the failure."""
    answered = [row for row in rows if row.error is None]
    return {
        "ttft_s": latency.summary(row.ttft_s for row in answered if row.ttft_s is not None),
        "tpot_s": latency.summary(row.tpot_s for row in answered if row.tpot_s is not None),
        "e2e_s": latency.summary(row.e2e_s for row in answered if row.e2e_s is not None),
    }


def _memory(rows: Sequence[SampleRow]) -> dict[str, Any]:
    cache = [size for row in rows if (size := cache_bytes_of(row)) is not None]
    return {
        "cache_bytes": spread(cache),
        "kv_bytes": {"mean": mean(row.kv_bytes for row in rows if row.kv_bytes is not None)},
        "state_bytes": {"mean": mean(row.state_bytes for row in rows if row.state_bytes is not None)},
        "cached_tokens_mean": mean(row.cached_tokens for row in rows if row.cached_tokens is not None),
        "completion_tokens_mean": mean(row.completion_tokens for row in rows if row.completion_tokens is not None),
    }
