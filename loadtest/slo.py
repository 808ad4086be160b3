"""Stated limits against what happened: how many requests kept them, with an interval, and goodput."""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import TypedDict

from loadtest.latency import Slo, goodput_rps, meets_slo
from loadtest.records import RequestRecord

CONFIDENCE = 0.95


class Attainment(TypedDict):
    """`n` counts every measured request: completed, failed, lost and unfinished."""

    good: int
    n: int
    fraction: float
    low: float
    high: float
    goodput_rps: float


def is_good(slo: Slo, record: RequestRecord) -> bool:
    """Only a completed request can be good."""
    times = record.times
    if record.outcome != "completed" or times is None:
        return False
    return meets_slo(slo, times, record.completion_tokens)


def attainment(slo: Slo, records: Sequence[RequestRecord], *, span_s: float) -> Attainment:
    """Judge the measured requests; `span_s` is stats.span_s of them.

    Raises:
        ValueError: no records.
    """
    good = sum(is_good(slo, record) for record in records)
    low, high = wilson(good, len(records))
    return {
        "good": good,
        "n": len(records),
        "fraction": good / len(records),
        "low": low,
        "high": high,
        "goodput_rps": goodput_rps(good, span_s),
    }


def wilson(successes: int, n: int, *, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Wilson score interval of a proportion.

    Raises:
        ValueError: n < 1, or successes out of range.
    Source: E. B. Wilson, J. Am. Stat. Assoc. 22 (1927), 209-212.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"need 0 <= successes <= n and n >= 1, got {successes} of {n}")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    rate = successes / n
    center = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, center - half), min(1.0, center + half)
