from collections.abc import Callable

import pytest

from loadtest import stats
from loadtest.latency import Slo
from loadtest.records import RequestRecord
from loadtest.slo import attainment, is_good, wilson

MakeRecord = Callable[..., RequestRecord]


def mixed(make_record: MakeRecord) -> list[RequestRecord]:
    """Six completed requests, TTFT 0.1 to 0.6 s from send; three failed and one unfinished."""
    completed = [
        make_record(index=i, token_times_s=(1.1 + 0.1 * (i + 1), 2.0), end_s=2.0, completion_tokens=5) for i in range(6)
    ]
    failed = {"outcome": "failed", "completion_tokens": None, "finish_reason": None}
    return [
        *completed,
        make_record(index=6, error_kind="http_429", error="full", token_times_s=(), **failed),
        make_record(index=7, error_kind="http_429", error="fuller", token_times_s=(), **failed),
        make_record(index=8, error_kind="connect", error="refused", sent_s=None, token_times_s=(), **failed),
        make_record(index=9, outcome="unfinished", error_kind="unfinished", error="late", end_s=31.0),
    ]


def test_latencies_over_completed_and_over_all(make_record: MakeRecord) -> None:
    ttft = stats.latencies(mixed(make_record))["ttft_s"]
    assert ttft["completed"]["n"] == 6
    assert ttft["completed"]["p50"] == pytest.approx(0.35)
    assert ttft["with_failures"] is not None
    # The median of ten lies between the 5th and 6th, 0.5 and 0.6; beyond the sixth there are only failures.
    assert ttft["with_failures"]["n"] == 10
    assert ttft["with_failures"]["p50"] == pytest.approx(0.55)
    assert ttft["with_failures"]["p90"] is None
    assert ttft["with_failures"]["p99"] is None


def test_every_metric_of_one_request(make_record: MakeRecord) -> None:
    result = {name: row["completed"]["p50"] for name, row in stats.latencies([make_record()]).items()}
    assert result == pytest.approx(
        {
            "ttft_s": 0.2,
            "ttft_from_schedule_s": 0.3,
            "itl_s": 0.1,
            "tpot_s": 0.1,
            "e2e_s": 0.5,
            "e2e_from_schedule_s": 0.6,
        }
    )


def test_counts_and_errors(make_record: MakeRecord) -> None:
    records = mixed(make_record)
    assert stats.counts(records) == {
        "dispatched": 10,
        "sent": 9,
        "completed": 6,
        "failed": 3,
        "unfinished": 1,
        "lost": 0,
    }
    lost = make_record(index=10, outcome="failed", error_kind="lost", sent_s=None, dispatched_s=None)
    more = stats.counts([*records, lost])
    assert (more["dispatched"], more["failed"], more["lost"]) == (10, 4, 1)
    assert stats.errors(records)[0] == {"kind": "http_429", "n": 2, "example": "full"}
    assert {error["kind"] for error in stats.errors(records)} == {"http_429", "connect", "unfinished"}
    assert stats.unfinished_ages_s(records)["p50"] == 30.0


def test_tokens_come_from_usage(make_record: MakeRecord) -> None:
    records = [
        make_record(completion_tokens=6, prompt_tokens=101, end_s=3.0),
        make_record(completion_tokens=None, prompt_tokens=None, cached_tokens=None, end_s=2.0),
        make_record(outcome="failed", error_kind="cut_off", completion_tokens=99),
    ]
    tokens = stats.tokens(records, span_s=2.0)
    assert tokens["output"]["mean"] == 6
    assert tokens["prompt"]["mean"] == 101
    assert tokens["output_per_chunk"] == 2
    assert tokens["output_per_s"] == 3
    assert tokens["without_usage"] == 1


def test_nothing_completed(make_record: MakeRecord) -> None:
    records = [make_record(outcome="failed", error_kind="cut_off", sent_s=None)]
    row = stats.latencies(records)["e2e_s"]
    assert row["completed"]["n"] == 0
    assert row["with_failures"] == {"p50": None, "p90": None, "p99": None, "n": 1}
    assert stats.tokens(records, span_s=2.0)["output_per_s"] is None
    assert stats.server_figures(records) == {}


def test_server_figures(make_record: MakeRecord) -> None:
    records = [make_record(fathom={"queue_s": 0.5, "kind": "mamba"}), make_record(fathom={"queue_s": 1.5})]
    records.append(make_record(fathom={"queue_s": float("nan"), "blocks": 10**400, "paused": True}))
    figures = stats.server_figures(records)
    assert list(figures) == ["queue_s"]
    assert figures["queue_s"]["mean"] == 1.0


def test_rates_are_taken_over_all_the_time_that_the_answers_took(make_record: MakeRecord) -> None:
    """A server that completes 10 of 10, but takes 40 s for what came in 10 s, completes no 1/s."""
    overrun = [make_record(index=i, scheduled_s=1.0 + i, end_s=5.0 + 4 * i) for i in range(10)]
    assert stats.span_s(overrun, window_end_s=11.0) == 40.0
    in_time = [make_record(index=i, scheduled_s=1.0 + i, end_s=1.5 + i) for i in range(10)]
    assert stats.span_s(in_time, window_end_s=11.0) == 10.0
    hung = make_record(index=10, scheduled_s=9.5, end_s=70.0, outcome="unfinished")
    assert stats.span_s([*in_time, hung], window_end_s=11.0) == 10.0  # nothing was answered while it was waited for


def test_goodput_has_failures_in_its_denominator(make_record: MakeRecord) -> None:
    records = mixed(make_record)
    reached = attainment(Slo(ttft_s=0.45), records, span_s=5.0)  # 0.2 .. 0.7 from the schedule
    assert (reached["good"], reached["n"], reached["fraction"]) == (3, 10, 0.3)
    assert reached["goodput_rps"] == pytest.approx(0.6)
    no_limits = attainment(Slo(), records, span_s=5.0)
    assert no_limits["good"] == 6
    assert not is_good(Slo(), records[9])


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(0, 10, 0.0, 0.27753), (5, 10, 0.23659, 0.76341), (95, 100, 0.88825, 0.97846), (1, 1, 0.20654, 1.0)],
)
def test_wilson_against_published_values(successes: int, n: int, low: float, high: float) -> None:
    assert wilson(successes, n) == pytest.approx((low, high), abs=2e-5)


def test_wilson_refuses_nonsense() -> None:
    for successes, n in ((0, 0), (2, 1), (-1, 5)):
        with pytest.raises(ValueError, match="successes"):
            wilson(successes, n)
