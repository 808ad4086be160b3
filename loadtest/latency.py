"""The project's one definition of TTFT, ITL, TPOT, end-to-end latency and goodput.

Pure arithmetic on raw timestamps, all read from one monotonic clock, in seconds. It knows no HTTP, no
locust and no file, so that the evaluation harness and the load test measure alike.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypedDict

FORMULAS: dict[str, str] = {
    "ttft_s": "first non-empty output chunk - request sent (AIPerf: TTFT; vLLM counts empty chunks too)",
    "ttft_from_schedule_s": "first non-empty output chunk - scheduled arrival (MLPerf: TTFT)",
    "itl_s": "gaps between non-empty output chunks, pooled (vLLM: ITL; AIPerf: inter-chunk latency)",
    "tpot_s": "(last chunk - first chunk) / (completion tokens - 1), per request, undefined below 2 tokens"
    " (vLLM: TPOT; guidellm and AIPerf: inter-token latency; guidellm's TPOT includes TTFT)",
    "e2e_s": "end of the stream - request sent (AIPerf: request latency)",
    "e2e_from_schedule_s": "end of the stream - scheduled arrival (MLPerf: latency)",
    "span_s": "first measured arrival to the end of the schedule or, if later, the last completion;"
    " an interrupted schedule ends where it was stopped",
    "completed_rps": "completed requests / span_s",
    "goodput_rps": "completed requests that meet every stated SLO / span_s; failures are not good",
    "good_fraction": "completed requests that meet every stated SLO / all requests that were to be sent,"
    " failed, unfinished and lost ones included",
}


@dataclass(frozen=True, slots=True)
class StreamTimes:
    """Raw instants of one streamed answer.

    Attributes:
        scheduled_s: when an open-loop schedule wanted the request sent; None where there is no schedule.
        sent_s: just before the request was written to the socket.
        token_times_s: arrival of each chunk with non-empty output, ascending; read before any parsing.
        end_s: arrival of the end of the answer, or the moment at which it failed.
    """

    scheduled_s: float | None
    sent_s: float
    token_times_s: tuple[float, ...]
    end_s: float


def ttft_s(times: StreamTimes) -> float | None:
    """Time to first token, from send; None when no output came."""
    return times.token_times_s[0] - times.sent_s if times.token_times_s else None


def ttft_from_schedule_s(times: StreamTimes) -> float | None:
    """Time to first token, from the scheduled arrival; None without output or without a schedule."""
    if not times.token_times_s or times.scheduled_s is None:
        return None
    return times.token_times_s[0] - times.scheduled_s


def itl_s(times: StreamTimes) -> list[float]:
    """Gaps between successive output chunks; a chunk may bundle several tokens."""
    instants = times.token_times_s
    return [later - earlier for earlier, later in itertools.pairwise(instants)]


def tpot_s(times: StreamTimes, num_tokens: int | None) -> float | None:
    """Mean time per output token after the first.

    `num_tokens` is the server's own count (usage.completion_tokens). Undefined, hence None, when it is
    unknown or below 2, or when all output came in one chunk: guessing a count from the chunks would be
    wrong wherever a server bundles tokens.
    """
    if num_tokens is None or num_tokens < 2 or len(times.token_times_s) < 2:
        return None
    return (times.token_times_s[-1] - times.token_times_s[0]) / (num_tokens - 1)


def e2e_s(times: StreamTimes) -> float:
    """From send to the end of the answer."""
    return times.end_s - times.sent_s


def e2e_from_schedule_s(times: StreamTimes) -> float | None:
    """From the scheduled arrival to the end of the answer; None without a schedule."""
    return None if times.scheduled_s is None else times.end_s - times.scheduled_s


@dataclass(frozen=True, slots=True)
class Slo:
    """Stated limits, in seconds; None = no limit."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None


def meets_slo(slo: Slo, times: StreamTimes, num_tokens: int | None) -> bool:
    """Whether one *completed* request kept every stated limit.

    TTFT and e2e count from the scheduled arrival where there is one, so that waiting inside the client
    cannot hide. A one-token answer has no gap that could break a TPOT limit; an answer whose token count is
    unknown cannot be shown to keep one, and does not.
    """
    first = ttft_s(times) if times.scheduled_s is None else ttft_from_schedule_s(times)
    whole = e2e_s(times) if times.scheduled_s is None else e2e_from_schedule_s(times)
    if slo.ttft_s is not None and (first is None or first > slo.ttft_s):
        return False
    if slo.e2e_s is not None and (whole is None or whole > slo.e2e_s):
        return False
    if slo.tpot_s is None:
        return True
    per_token = tpot_s(times, num_tokens)
    return num_tokens is not None if per_token is None else per_token <= slo.tpot_s


def goodput_rps(num_good: int, duration_s: float) -> float:
    """Good requests per second of measured time."""
    if duration_s <= 0:
        raise ValueError(f"duration_s must be > 0, got {duration_s}")
    return num_good / duration_s


class Summary(TypedDict):
    """What is reported of a distribution; the figures are None when n is 0."""

    p50: float | None
    p90: float | None
    p95: float | None
    p99: float | None
    mean: float | None
    n: int


def _quantile_sorted(ordered: Sequence[float], q: float) -> float:
    place = q * (len(ordered) - 1)
    low, high = ordered[math.floor(place)], ordered[math.ceil(place)]
    # Equal neighbours first: inf - inf is not a number, and failures may be counted as infinitely slow.
    return low if low == high or place == math.floor(place) else low + (high - low) * (place - math.floor(place))


def quantile(values: Iterable[float], q: float) -> float:
    """The q-quantile (0 <= q <= 1) with linear interpolation between order statistics.

    Raises:
        ValueError: no values, or q out of range.
    """
    ordered = sorted(values)
    if not ordered:
        raise ValueError("quantile of no values")
    if not 0 <= q <= 1:
        raise ValueError(f"q must be between 0 and 1, got {q}")
    return _quantile_sorted(ordered, q)


def summary(values: Iterable[float]) -> Summary:
    """p50, p90, p95, p99, mean and n."""
    ordered = sorted(values)
    if not ordered:
        return {"p50": None, "p90": None, "p95": None, "p99": None, "mean": None, "n": 0}
    return {
        "p50": _quantile_sorted(ordered, 0.50),
        "p90": _quantile_sorted(ordered, 0.90),
        "p95": _quantile_sorted(ordered, 0.95),
        "p99": _quantile_sorted(ordered, 0.99),
        "mean": math.fsum(ordered) / len(ordered),
        "n": len(ordered),
    }
