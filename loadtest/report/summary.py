"""summary.json and requests.jsonl: what a run leaves for other programs."""

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from loadtest.config import LoadConfig
from loadtest.health import WorkerHealth
from loadtest.latency import FORMULAS
from loadtest.plan import Plan
from loadtest.records import RequestRecord, to_line
from loadtest.selfcheck import RunFacts, self_check, was_interrupted
from loadtest.slo import attainment
from loadtest.stats import counts, errors, latencies, server_figures, span_s, tokens, unfinished_ages_s

SCHEMA = "fathom.load/1"
SUMMARY_FILE, RECORDS_FILE = "summary.json", "requests.jsonl"


def summarise(
    config: LoadConfig,
    plan: Plan,
    records: Sequence[RequestRecord],
    health: Sequence[WorkerHealth],
    facts: RunFacts,
) -> dict[str, Any]:
    """One run as JSON. Latencies are over the requests after the warm-up; the self-check is over all.

    `records` has one for every request that was to be sent, lost ones included.
    """
    measured = [record for record in records if record.scheduled_s >= config.warmup_s]
    check = self_check(config, plan, records, health, facts)
    span = span_s(measured, window_end_s=_window_end_s(config, records, health, facts))
    ended = counts(measured)
    return {
        "schema": SCHEMA,
        "model": config.model,
        "endpoint": config.endpoint,
        "started": datetime.fromtimestamp(facts.started_unix_s, tz=UTC).isoformat(timespec="seconds"),
        "config": config.to_json(),
        "requests": {
            "planned": len(plan.scheduled_s),
            "warmup": len(records) - len(measured),
            **ended,
            "span_s": span,
            "completed_rps": ended["completed"] / span if span > 0 else None,
            "unfinished_age_s": unfinished_ages_s(measured),
        },
        "errors": errors(measured),
        "latency": latencies(measured),
        "tokens": {"counting": plan.counting, **tokens(measured, span_s=span)},
        "slo": {
            "limits": asdict(config.slo),
            "attainment": attainment(config.slo, measured, span_s=span) if measured and span > 0 else None,
        },
        "server": server_figures(measured),
        "client": check.figures,
        "workers": [asdict(worker) for worker in health],
        "verdict": {
            "trustworthy": check.trustworthy,
            "reasons": list(check.reasons),
            "notes": list(check.notes),
        },
        "formulas": FORMULAS,
        "versions": {
            "python": platform.python_version(),
            "locust": version("locust"),
            "gevent": version("gevent"),
        },
    }


def _window_end_s(
    config: LoadConfig, records: Sequence[RequestRecord], health: Sequence[WorkerHealth], facts: RunFacts
) -> float:
    """Where the schedule ended: the seconds that an interrupted run did not offer any load are none of its own."""
    if not was_interrupted(health, facts):
        return config.schedule_s
    stopped_s = [worker.ended_s for worker in health] or [record.end_s for record in records]
    return min(config.schedule_s, max(stopped_s, default=config.schedule_s))


def write_summary(directory: Path, summary: dict[str, Any], records: Sequence[RequestRecord]) -> None:
    with (directory / RECORDS_FILE).open("w", encoding="utf-8") as file:
        file.writelines(to_line(record) for record in records)
    text = json.dumps(summary, indent=2, allow_nan=False)
    (directory / SUMMARY_FILE).write_text(text + "\n", encoding="utf-8")
