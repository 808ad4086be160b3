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
from loadtest.selfcheck import RunFacts, self_check
from loadtest.slo import attainment
from loadtest.stats import counts, errors, latencies, server_figures, tokens, unfinished_ages_s

SCHEMA = "fathom.load/1"
SUMMARY_FILE, RECORDS_FILE = "summary.json", "requests.jsonl"


def summarise(
    config: LoadConfig,
    plan: Plan,
    records: Sequence[RequestRecord],
    health: Sequence[WorkerHealth],
    facts: RunFacts,
) -> dict[str, Any]:
    """One run as JSON. Latencies are over the requests after the warm-up; the self-check is over all."""
    measured = [record for record in records if record.scheduled_s >= config.warmup_s]
    check = self_check(config, plan, records, health, facts)
    return {
        "schema": SCHEMA,
        "model": config.model,
        "endpoint": config.endpoint,
        "started": datetime.fromtimestamp(facts.started_unix_s, tz=UTC).isoformat(timespec="seconds"),
        "config": config.to_json(),
        "requests": {
            "planned": len(plan.scheduled_s),
            "warmup": len(records) - len(measured),
            **counts(measured),
            "unfinished_age_s": unfinished_ages_s(measured),
        },
        "errors": errors(measured),
        "latency": latencies(measured),
        "tokens": {"counting": plan.counting, **tokens(measured, start_s=config.warmup_s)},
        "slo": {
            "limits": asdict(config.slo),
            "attainment": attainment(config.slo, measured, duration_s=config.duration_s) if measured else None,
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


def write_summary(directory: Path, summary: dict[str, Any], records: Sequence[RequestRecord]) -> None:
    with (directory / RECORDS_FILE).open("w", encoding="utf-8") as file:
        file.writelines(to_line(record) for record in records)
    text = json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False)
    (directory / SUMMARY_FILE).write_text(text + "\n", encoding="utf-8")
