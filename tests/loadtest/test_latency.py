import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest import latency
from loadtest.latency import Slo, StreamTimes

TIMES = StreamTimes(scheduled_s=10.0, sent_s=10.5, token_times_s=(11.0, 11.2, 11.6), end_s=12.0)


def test_every_metric_by_hand() -> None:
    assert latency.ttft_s(TIMES) == pytest.approx(0.5)
    assert latency.ttft_from_schedule_s(TIMES) == pytest.approx(1.0)
    assert latency.itl_s(TIMES) == pytest.approx([0.2, 0.4])
    assert latency.tpot_s(TIMES, 4) == pytest.approx(0.6 / 3)
    assert latency.e2e_s(TIMES) == pytest.approx(1.5)
    assert latency.e2e_from_schedule_s(TIMES) == pytest.approx(2.0)


def test_what_is_undefined_is_none_and_not_zero() -> None:
    silent = StreamTimes(scheduled_s=None, sent_s=1.0, token_times_s=(), end_s=2.0)
    assert latency.ttft_s(silent) is None
    assert latency.ttft_from_schedule_s(StreamTimes(None, 1.0, (2.0,), 2.0)) is None
    assert latency.e2e_from_schedule_s(silent) is None
    assert latency.itl_s(silent) == []
    assert latency.tpot_s(TIMES, None) is None
    assert latency.tpot_s(TIMES, 1) is None
    # Two tokens bundled in one chunk: the gap between them was never seen.
    assert latency.tpot_s(StreamTimes(None, 0.0, (1.0,), 1.0), 2) is None


def test_tpot_counts_tokens_not_chunks() -> None:
    assert latency.tpot_s(TIMES, 7) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("slo", "num_tokens", "good"),
    [
        (Slo(), None, True),
        (Slo(ttft_s=1.01), 4, True),
        (Slo(ttft_s=0.9), 4, False),  # 0.5 from send, but 1.0 from the schedule
        (Slo(tpot_s=0.21), 4, True),
        (Slo(tpot_s=0.19), 4, False),
        (Slo(tpot_s=0.19), 1, True),
        (Slo(tpot_s=9.0), None, False),
        (Slo(e2e_s=2.01), 4, True),
        (Slo(e2e_s=1.9), 4, False),
        (Slo(ttft_s=2.0, tpot_s=1.0, e2e_s=1.9), 4, False),
    ],
)
def test_slo(slo: Slo, num_tokens: int | None, good: bool) -> None:
    assert latency.meets_slo(slo, TIMES, num_tokens) is good


def test_slo_counts_from_send_where_there_is_no_schedule() -> None:
    closed = StreamTimes(None, TIMES.sent_s, TIMES.token_times_s, TIMES.end_s)
    assert latency.meets_slo(Slo(ttft_s=0.6, e2e_s=1.6), closed, 4)
    assert not latency.meets_slo(Slo(ttft_s=0.4), closed, 4)
    assert not latency.meets_slo(Slo(ttft_s=9.0), StreamTimes(None, 1.0, (), 2.0), 0)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50), st.floats(0, 1))
def test_quantile_agrees_with_numpy(values: list[float], q: float) -> None:
    assert latency.quantile(values, q) == pytest.approx(float(np.quantile(values, q)), rel=1e-9, abs=1e-6)


def test_quantile_survives_infinitely_slow_failures() -> None:
    values = [1.0, 2.0, math.inf, math.inf]
    assert latency.quantile(values, 1 / 3) == 2.0
    assert latency.quantile(values, 0.5) == math.inf
    assert latency.quantile(values, 0.9) == math.inf


def test_quantile_refuses_nothing_and_nonsense() -> None:
    with pytest.raises(ValueError, match="no values"):
        latency.quantile([], 0.5)
    with pytest.raises(ValueError, match="between 0 and 1"):
        latency.quantile([1.0], 1.1)


def test_summary() -> None:
    assert latency.summary([3.0, 1.0, 2.0]) == {"p50": 2.0, "p90": 2.8, "p95": 2.9, "p99": 2.98, "mean": 2.0, "n": 3}
    nothing = {"p50": None, "p90": None, "p95": None, "p99": None, "mean": None, "n": 0}
    assert latency.summary([]) == nothing


def test_goodput() -> None:
    assert latency.goodput_rps(30, 60.0) == 0.5
    with pytest.raises(ValueError, match="duration_s"):
        latency.goodput_rps(1, 0.0)
