from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from loadtest.config import LoadConfig
from loadtest.endpoint import Options
from loadtest.health import WorkerHealth
from loadtest.latency import summary
from loadtest.plan import Plan
from loadtest.records import RequestRecord
from loadtest.selfcheck import RunFacts, SelfCheck, self_check

NUM = 40
SCHEDULE = tuple(i / 10 for i in range(NUM))
PLAN = Plan(SCHEDULE, Options(ignore_eos=True, usage=True), exact_tokens=True, counting="counted", notes=())
FACTS = RunFacts(started_unix_s=0.0, interrupted=False, locust_count=NUM)
HEALTH = WorkerHealth(
    worker=0,
    origin_s=0.0,
    cpu_mean=0.1,
    cpu_max=0.2,
    loop_lag_s=summary([0.001]),
    max_open=3,
    max_queued=0,
    num_dispatched=NUM,
    ended_s=5.0,
    interrupted=False,
)
Judge = Callable[..., SelfCheck]


@pytest.fixture
def judge(make_config: Callable[..., LoadConfig], make_record: Callable[..., RequestRecord]) -> Judge:
    """Judge a flawless run with the given flaws; `change` edits every record."""

    def run(
        change: Callable[[RequestRecord], RequestRecord] = lambda record: record,
        *,
        health: tuple[WorkerHealth, ...] = (HEALTH,),
        facts: RunFacts = FACTS,
        plan: Plan = PLAN,
        drop: int = 0,
        **config: Any,
    ) -> SelfCheck:
        records = [
            change(
                make_record(
                    index=i,
                    scheduled_s=at,
                    dispatched_s=at + 0.001,
                    connect_s=at + 0.002,
                    sent_s=at + 0.003,
                    token_times_s=(at + 0.1, at + 0.2),
                    end_s=at + 0.3,
                    completion_tokens=10,
                )
            )
            for i, at in enumerate(SCHEDULE)
        ]
        return self_check(make_config(**config), plan, records[drop:], health, facts)

    return run


def test_a_flawless_run_is_trustworthy(judge: Judge) -> None:
    check = judge()
    assert check.reasons == ()
    assert check.notes == ()
    assert check.trustworthy
    assert check.figures["offered_rps"] == pytest.approx(10.0)
    assert check.figures["achieved_rps"] == pytest.approx(10.0)
    assert check.figures["dispatch_lag_s"]["p99"] == pytest.approx(0.001)
    assert check.figures["cap_wait_s"]["p50"] == pytest.approx(0.001)


def only_reason(check: SelfCheck) -> str:
    (reason,) = check.reasons
    return reason


def test_lag(judge: Judge) -> None:
    late = judge(lambda record: replace(record, dispatched_s=record.scheduled_s + 0.03))
    assert "dispatch lag p99 is 30.0 ms, above 25.0 ms" in only_reason(late)
    slow_server = judge(
        lambda record: replace(record, dispatched_s=record.scheduled_s + 0.03, token_times_s=(record.scheduled_s + 3,))
    )
    assert slow_server.trustworthy  # 30 ms are nothing beside a TTFT of 3 s
    busy_loop = judge(health=(replace(HEALTH, loop_lag_s=summary([0.2])),))
    assert "event loop lag" in only_reason(busy_loop)


def test_cpu(judge: Judge) -> None:
    assert "95% of a core" in only_reason(judge(health=(replace(HEALTH, cpu_max=0.95),)))


def test_load_that_was_not_offered(judge: Judge) -> None:
    held_back = judge(
        lambda record: replace(record, connect_s=2 * record.scheduled_s + 0.002, token_times_s=(9.0,), end_s=9.0),
        max_in_flight=2,
    )
    assert only_reason(held_back) == (
        "achieved load 5.00/s is below the offered 10.00/s; --max-in-flight 2 held requests back"
    )


def test_a_refused_connection_is_offered_load(judge: Judge) -> None:
    check = judge(
        lambda record: (
            replace(record, sent_s=None, token_times_s=(), outcome="failed", error_kind="connect")
            if record.index % 2
            else record
        )
    )
    assert check.trustworthy


def test_lost_requests(judge: Judge) -> None:
    fewer = replace(FACTS, locust_count=NUM - 1)
    check = judge(drop=1, facts=fewer)
    assert only_reason(check) == "40 requests were planned, 39 were recorded"
    # A record that only stands for the lost request is no record of it.
    check = judge(
        lambda record: replace(record, error_kind="lost", dispatched_s=None) if record.index == 0 else record,
        facts=fewer,
    )
    assert only_reason(check) == "40 requests were planned, 39 were recorded"
    assert "40 requests were planned, 40 were recorded" in judge(lambda record: replace(record, index=0)).reasons


def test_locust_must_have_counted_the_same(judge: Judge) -> None:
    assert "locust counted 80" in only_reason(judge(facts=replace(FACTS, locust_count=2 * NUM)))
    assert "locust counted None" in only_reason(judge(facts=replace(FACTS, locust_count=None)))


def test_interruptions_and_missing_workers(judge: Judge) -> None:
    assert "interrupted" in only_reason(judge(facts=replace(FACTS, interrupted=True)))
    assert "interrupted" in only_reason(judge(health=(replace(HEALTH, interrupted=True),)))
    assert "2 workers were started, 1 reported" in only_reason(judge(processes=2))


def test_a_machine_out_of_sockets(judge: Judge) -> None:
    check = judge(
        lambda record: replace(record, outcome="failed", error_kind="client_limit") if record.index == 5 else record
    )
    assert "1 requests failed on a limit of the client machine" in only_reason(check)


def test_an_error_of_the_client(judge: Judge) -> None:
    check = judge(
        lambda record: replace(record, outcome="failed", error_kind="client_error") if record.index == 5 else record
    )
    assert "1 requests failed on an error of the client itself" in only_reason(check)


def test_nothing_completed(judge: Judge) -> None:
    check = judge(lambda record: replace(record, outcome="failed", error_kind="http_500"))
    assert "no request completed" in only_reason(check)


def test_miscounted_tokens(judge: Judge) -> None:
    off_by_one = judge(lambda record: replace(record, prompt_tokens=101))
    assert "prompt tokens of 100%" in only_reason(off_by_one)
    estimated = judge(lambda record: replace(record, prompt_tokens=130), plan=replace(PLAN, exact_tokens=False))
    assert estimated.trustworthy
    assert "output tokens of 100%" in only_reason(judge(lambda record: replace(record, completion_tokens=9)))


def test_what_limits_the_numbers_but_does_not_spoil_them_is_noted(judge: Judge) -> None:
    early = judge(lambda record: replace(record, completion_tokens=4, finish_reason="stop"))
    assert early.trustworthy
    assert early.notes == ("40 of 40 answers ended before 10 output tokens",)
    bare = judge(lambda record: replace(record, completion_tokens=None, prompt_tokens=None, saw_done=False))
    assert bare.trustworthy
    assert len(bare.notes) == 2
