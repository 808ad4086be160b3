"""From records to distributions. Failures stay in the denominator.

Every latency comes twice: over the completed requests, and over all of them with each failed or unfinished
one counted as infinitely slow, so that a server that drops its slow requests does not look fast.
"""

import math
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypedDict

from loadtest.latency import (
    StreamTimes,
    Summary,
    e2e_from_schedule_s,
    e2e_s,
    itl_s,
    quantile,
    summary,
    tpot_s,
    ttft_from_schedule_s,
    ttft_s,
)
from loadtest.records import LOST, RequestRecord

Metric = Callable[[StreamTimes, int | None], float | None]
PER_REQUEST: dict[str, Metric] = {
    "ttft_s": lambda times, _: ttft_s(times),
    "ttft_from_schedule_s": lambda times, _: ttft_from_schedule_s(times),
    "tpot_s": tpot_s,
    "e2e_s": lambda times, _: e2e_s(times),
    "e2e_from_schedule_s": lambda times, _: e2e_from_schedule_s(times),
}


class WithFailures(TypedDict):
    """Percentiles over all requests, a failure being infinitely slow; None = the percentile is a failure."""

    p50: float | None
    p90: float | None
    p99: float | None
    n: int


class Latency(TypedDict):
    completed: Summary
    with_failures: WithFailures | None


def latencies(records: Sequence[RequestRecord]) -> dict[str, Latency]:
    """Every metric of the measured records. Gaps between chunks are pooled over completed requests only."""
    result = {name: _latency(metric, records) for name, metric in PER_REQUEST.items()}
    gaps = [gap for record in records if _is_complete(record) for gap in itl_s(_times(record))]
    result["itl_s"] = {"completed": summary(gaps), "with_failures": None}
    return result


def _latency(metric: Metric, records: Sequence[RequestRecord]) -> Latency:
    completed = [record for record in records if _is_complete(record)]
    values = [metric(_times(record), record.completion_tokens) for record in completed]
    known = [value for value in values if value is not None]
    num_failed = len(records) - len(completed)
    return {"completed": summary(known), "with_failures": _with_failures(known, num_failed)}


def _with_failures(values: list[float], num_failed: int) -> WithFailures:
    everyone = values + [math.inf] * num_failed
    if not everyone:
        return {"p50": None, "p90": None, "p99": None, "n": 0}
    p50, p90, p99 = (quantile(everyone, q) for q in (0.5, 0.9, 0.99))
    return {"p50": _finite(p50), "p90": _finite(p90), "p99": _finite(p99), "n": len(everyone)}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _is_complete(record: RequestRecord) -> bool:
    return record.outcome == "completed"


def _times(record: RequestRecord) -> StreamTimes:
    if record.times is None:
        raise ValueError(f"request {record.index} completed without having been sent")
    return record.times


def counts(records: Sequence[RequestRecord]) -> dict[str, int]:
    """How the measured requests ended; the lost ones are among the failed, but not among the dispatched."""
    outcomes = Counter(record.outcome for record in records)
    num_lost = sum(record.error_kind == LOST for record in records)
    return {
        "dispatched": len(records) - num_lost,
        "sent": sum(record.sent_s is not None for record in records),
        "completed": outcomes["completed"],
        "failed": outcomes["failed"],
        "unfinished": outcomes["unfinished"],
        "lost": num_lost,
    }


def errors(records: Sequence[RequestRecord]) -> list[dict[str, Any]]:
    """Kinds of failure, most frequent first, each with one message as an example."""
    kinds = Counter(record.error_kind for record in records if record.error_kind is not None)
    examples = {record.error_kind: record.error for record in reversed(records)}
    return [{"kind": kind, "n": n, "example": examples[kind]} for kind, n in kinds.most_common()]


def unfinished_ages_s(records: Sequence[RequestRecord]) -> Summary:
    """How long the unfinished requests had been running, from their scheduled time."""
    return summary(record.end_s - record.scheduled_s for record in records if record.outcome == "unfinished")


def span_s(records: Sequence[RequestRecord], *, window_end_s: float) -> float:
    """Seconds that rates are taken over: from the first arrival to the window's end or the last completion.

    Answers that come after the window count, and so does their time: else a server that is overrun, and goes
    on answering long after the last arrival, would seem to keep up.
    """
    start_s = min((record.scheduled_s for record in records), default=0.0)
    return max([window_end_s, *(record.end_s for record in records if _is_complete(record))]) - start_s


def tokens(records: Sequence[RequestRecord], *, span_s: float) -> dict[str, Any]:
    """Token counts as the server reports them, and its throughput."""
    completed = [record for record in records if _is_complete(record)]
    prompt = [record.prompt_tokens for record in completed if record.prompt_tokens is not None]
    output = [record.completion_tokens for record in completed if record.completion_tokens is not None]
    cached = [record.cached_tokens for record in completed if record.cached_tokens is not None]
    chunks = sum(len(record.token_times_s) for record in completed if record.completion_tokens is not None)
    return {
        "planned_prompt": summary(record.planned_prompt_tokens for record in records),
        "prompt": summary(prompt),
        "output": summary(output),
        "cached": summary(cached),
        "output_per_chunk": sum(output) / chunks if chunks else None,
        "output_per_s": sum(output) / span_s if span_s > 0 and output else None,
        "without_usage": len(completed) - len(output),
    }


def server_figures(records: Sequence[RequestRecord]) -> dict[str, Summary]:
    """What a Fathom server reports of itself per request: times and bytes; empty for other servers."""
    reports = [record.fathom for record in records if _is_complete(record) and record.fathom is not None]
    names = sorted({name for report in reports for name in report})
    numbers = {name: [report[name] for report in reports if _is_number(report.get(name))] for name in names}
    return {name: summary(values) for name, values in numbers.items() if values}


def _is_number(value: object) -> bool:
    # Neither NaN nor infinity, which JSON has no words for, nor an integer that no float can hold.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
