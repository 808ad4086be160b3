import json
from collections.abc import Callable
from pathlib import Path

import pytest

from loadtest.endpoint import Options
from loadtest.health import WorkerHealth
from loadtest.latency import summary
from loadtest.plan import Plan
from loadtest.records import RequestRecord
from loadtest.report.summary import summarise, write_summary
from loadtest.selfcheck import RunFacts

from .conftest import MakeConfig

SCHEDULE = tuple(float(at) for at in range(10))


@pytest.mark.parametrize(
    ("num_sent", "interrupted", "span_s"),
    [(10, False, 20.0), (5, True, 5.0), (5, False, 20.0)],
)
def test_an_interrupted_run_is_judged_by_the_time_it_had(
    make_config: MakeConfig,
    make_record: Callable[..., RequestRecord],
    num_sent: int,
    interrupted: bool,
    span_s: float,
) -> None:
    plan = Plan(SCHEDULE, Options(ignore_eos=True, usage=True), exact_tokens=True, counting="counted", notes=())
    records = [
        make_record(index=i, scheduled_s=at, token_times_s=(at + 0.1,), end_s=at + 0.5)
        for i, at in enumerate(SCHEDULE[:num_sent])
    ]
    health = WorkerHealth(
        worker=0,
        origin_s=0.0,
        cpu_mean=0.1,
        cpu_max=0.2,
        loop_lag_s=summary([0.001]),
        max_open=1,
        max_queued=0,
        num_dispatched=num_sent,
        ended_s=5.0 if interrupted else 26.0,
        interrupted=interrupted,
    )
    facts = RunFacts(0.0, interrupted=interrupted, locust_count=num_sent)
    result = summarise(make_config(duration_s=20.0), plan, records, [health], facts)
    assert result["requests"]["span_s"] == span_s
    assert result["requests"]["completed_rps"] == num_sent / span_s
    assert result["slo"]["attainment"]["goodput_rps"] == num_sent / span_s
    assert result["tokens"]["output_per_s"] == 3 * num_sent / span_s


def test_text_that_utf8_cannot_hold_can_be_written(tmp_path: Path) -> None:
    content = {"server": {"half of a \ud83d": 1}}
    write_summary(tmp_path, content, [])
    assert json.loads((tmp_path / "summary.json").read_text(encoding="utf-8")) == content
