"""Can these numbers be trusted? The client judges itself, never the server.

A slow or failing server is a finding. A client that sent late, stamped late, lost requests or miscounted
makes the finding worthless, and the run says so.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from loadtest.config import LoadConfig
from loadtest.health import WorkerHealth
from loadtest.latency import Summary, summary, ttft_s
from loadtest.plan import Plan
from loadtest.records import LOST, RequestRecord


@dataclass(frozen=True, slots=True)
class Limits:
    """What a trustworthy client keeps.

    Attributes:
        min_rate_ratio: achieved over offered arrival rate.
        max_lag_s, max_lag_share: the p99 of each lag must stay below the larger of max_lag_s and this share
            of the median TTFT: a lag that is small against what is measured does no harm.
        max_cpu: CPU seconds per second of one worker, which runs on one core.
        max_mismatch: share of requests whose token counts differ from the planned ones.
    """

    min_rate_ratio: float = 0.95
    max_lag_s: float = 0.025
    max_lag_share: float = 0.1
    max_cpu: float = 0.9
    max_mismatch: float = 0.01


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What the parent process saw of the run.

    Attributes:
        locust_count: requests that locust itself counted; None = it left no statistics.
    """

    started_unix_s: float
    interrupted: bool
    locust_count: int | None


@dataclass(frozen=True, slots=True)
class SelfCheck:
    """Figures for the report, and the verdict: no reasons = trustworthy. Notes limit, but do not spoil."""

    figures: dict[str, Any]
    reasons: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def trustworthy(self) -> bool:
        return not self.reasons


def self_check(
    config: LoadConfig,
    plan: Plan,
    records: Sequence[RequestRecord],
    health: Sequence[WorkerHealth],
    facts: RunFacts,
    *,
    limits: Limits = DEFAULT_LIMITS,
) -> SelfCheck:
    """Judge a run over all its recorded requests, warm-up included."""
    records = [record for record in records if record.error_kind != LOST]
    lag = summary(r.dispatched_s - r.scheduled_s for r in records if r.dispatched_s is not None)
    offered, achieved = _rates(plan, records)
    mismatches = _mismatches(config, plan, records)
    figures: dict[str, Any] = {
        "offered_rps": offered,
        "achieved_rps": achieved,
        "dispatch_lag_s": lag,
        "cap_wait_s": summary(
            r.connect_s - r.dispatched_s for r in records if r.connect_s is not None and r.dispatched_s is not None
        ),
        "connect_s": summary(
            r.sent_s - r.connect_s for r in records if r.sent_s is not None and r.connect_s is not None
        ),
        "loop_lag_p99_s": max((worker.loop_lag_s["p99"] or 0.0 for worker in health), default=None),
        "cpu_mean": max((worker.cpu_mean for worker in health), default=None),
        "cpu_max": max((worker.cpu_max for worker in health), default=None),
        "max_open": sum(worker.max_open for worker in health),
        "max_queued": sum(worker.max_queued for worker in health),
        "token_mismatches": mismatches,
    }
    reasons = [
        *_count_reasons(config, plan, records, health, facts),
        *_rate_reasons(config, offered, achieved, limits),
        *_lag_reasons(lag, figures["loop_lag_p99_s"], records, limits),
        *_cpu_reasons(figures["cpu_max"], limits),
        *_mismatch_reasons(mismatches, limits),
    ]
    return SelfCheck(figures, tuple(reasons), (*plan.notes, *_token_notes(config, records)))


def was_interrupted(health: Sequence[WorkerHealth], facts: RunFacts) -> bool:
    return facts.interrupted or any(worker.interrupted for worker in health)


def _rates(plan: Plan, records: Sequence[RequestRecord]) -> tuple[float | None, float | None]:
    """Offered: what the drawn schedule asks for. Achieved: attempts, over the time from first to last."""
    planned = plan.scheduled_s
    # A refused connection is an attempt, a wait under the cap is none.
    sent = sorted(record.connect_s for record in records if record.connect_s is not None)
    if len(planned) < 2 or len(sent) < 2:
        return None, None
    # Both over the same span, or the longer of the two when sending lagged behind.
    span = planned[-1] - planned[0]
    return (len(planned) - 1) / span, (len(sent) - 1) / max(span, sent[-1] - sent[0])


def _count_reasons(
    config: LoadConfig,
    plan: Plan,
    records: Sequence[RequestRecord],
    health: Sequence[WorkerHealth],
    facts: RunFacts,
) -> list[str]:
    reasons = []
    kinds = Counter(record.error_kind for record in records)
    num_planned, num_limited, num_broken = len(plan.scheduled_s), kinds["client_limit"], kinds["client_error"]
    if was_interrupted(health, facts):
        reasons.append("the run was interrupted before its schedule was over")
    if len({record.index for record in records}) != num_planned or len(records) != num_planned:
        reasons.append(f"{num_planned} requests were planned, {len(records)} were recorded")
    if facts.locust_count != len(records):
        reasons.append(f"locust counted {facts.locust_count} requests, {len(records)} were recorded")
    if len(health) != config.processes:
        reasons.append(f"{config.processes} workers were started, {len(health)} reported at the end")
    if num_limited:
        reasons.append(f"{num_limited} requests failed on a limit of the client machine (open files, ports)")
    if num_broken:
        reasons.append(f"{num_broken} requests failed on an error of the client itself; see its log")
    if not any(record.outcome == "completed" for record in records):
        reasons.append("no request completed: there is nothing to measure")
    return reasons


def _rate_reasons(config: LoadConfig, offered: float | None, achieved: float | None, limits: Limits) -> list[str]:
    if offered is None or achieved is None or achieved >= limits.min_rate_ratio * offered:
        return []
    cause = "" if config.max_in_flight is None else f"; --max-in-flight {config.max_in_flight} held requests back"
    return [f"achieved load {achieved:.2f}/s is below the offered {offered:.2f}/s{cause}"]


def _lag_reasons(
    dispatch: Summary, loop_p99_s: float | None, records: Sequence[RequestRecord], limits: Limits
) -> list[str]:
    first = [ttft_s(record.times) for record in records if record.times is not None]
    median = summary(value for value in first if value is not None)["p50"] or 0.0
    limit_s = max(limits.max_lag_s, limits.max_lag_share * median)
    lags = (("dispatch lag", dispatch["p99"]), ("event loop lag", loop_p99_s))
    return [
        f"the client's {name} p99 is {lag_s * 1000:.1f} ms, above {limit_s * 1000:.1f} ms"
        for name, lag_s in lags
        if lag_s is not None and lag_s > limit_s
    ]


def _cpu_reasons(cpu_max: float | None, limits: Limits) -> list[str]:
    if cpu_max is None or cpu_max <= limits.max_cpu:
        return []
    return [f"a client process used {cpu_max:.0%} of a core; use more --processes"]


def _mismatches(config: LoadConfig, plan: Plan, records: Sequence[RequestRecord]) -> dict[str, float | None]:
    """Share of completed requests whose usage contradicts what was planned; None where that is unknown."""
    counted = [r for r in records if r.outcome == "completed" and r.prompt_tokens is not None]
    if not counted:
        return {"prompt": None, "output": None}
    prompt = sum(r.prompt_tokens != r.planned_prompt_tokens for r in counted) / len(counted)
    # Ending early is the model's right; ending "by length" at another length is a miscount.
    full = [r for r in counted if r.finish_reason == "length"]
    output = sum(r.completion_tokens != config.output_tokens for r in full) / len(counted)
    return {"prompt": prompt if plan.exact_tokens else None, "output": output}


def _mismatch_reasons(mismatches: dict[str, float | None], limits: Limits) -> list[str]:
    return [
        f"the {name} tokens of {share:.0%} of the requests are not those that were planned"
        for name, share in mismatches.items()
        if share is not None and share > limits.max_mismatch
    ]


def _token_notes(config: LoadConfig, records: Sequence[RequestRecord]) -> list[str]:
    completed = [record for record in records if record.outcome == "completed"]
    missing = sum(record.completion_tokens is None for record in completed)
    no_done = sum(not record.saw_done for record in completed)
    counts = [record.completion_tokens for record in completed if record.completion_tokens is not None]
    early = sum(count < config.output_tokens for count in counts)
    notes = []
    if early:
        notes.append(f"{early} of {len(completed)} answers ended before {config.output_tokens} output tokens")
    if missing:
        notes.append(f"{missing} of {len(completed)} answers came without usage: their TPOT is undefined")
    if no_done:
        notes.append(f"{no_done} of {len(completed)} streams ended without [DONE], after a finish_reason")
    return notes
