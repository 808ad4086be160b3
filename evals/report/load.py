"""The rows of the report's table of load tests."""

from collections.abc import Mapping
from typing import Any

from loadtest import latency

_UNKNOWN = latency.summary(())


def describe_load(run: Mapping[str, Any]) -> dict[str, Any]:
    """One load test's summary as a row; what it does not say shows as a dash, never as zero."""
    requests, client, verdict = (run.get(key) or {} for key in ("requests", "client", "verdict"))
    latencies = run.get("latency") or {}
    return {
        "model": run.get("model", "-"),
        "context": (run.get("config") or {}).get("context_tokens"),
        "offered": _per_second(client.get("offered_rps")),
        "achieved": _per_second(client.get("achieved_rps")),
        "dispatched": requests.get("dispatched", "-"),
        "completed": requests.get("completed", "-"),
        "failed": requests.get("failed", "-"),
        "trustworthy": bool(verdict.get("trustworthy")),
        "reasons": list(verdict.get("reasons", ())),
        **{name: _completed(latencies, name) for name in ("ttft_s", "tpot_s", "e2e_s")},
    }


def _completed(latencies: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    return (latencies.get(name) or {}).get("completed") or dict(_UNKNOWN)


def _per_second(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:.2f}"
