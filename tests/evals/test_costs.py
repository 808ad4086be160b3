"""What answers cost: growth, slow ends and fronts, against figures that are known."""

import math
import random

import pytest
from evals_rows import failed, hallucinated, sample

from evals.records import RunNote
from evals.stats.pareto import clearly_beaten, pareto_front
from evals.stats.quantiles import quantile_interval
from evals.summary import DEFINITIONS, summarise

BUDGETS = (0, 256, 512, 1024, 2048, 4096)
COLD = {("m", "world"): RunNote(cache="cold")}


def sweep(ttft_s, memory, *, budgets=BUDGETS, num_questions=24, **fields):
    """Rows of one series whose costs follow from the length, with some noise on the time."""
    rng = random.Random(8)
    rows = []
    for budget in budgets:
        for number in range(num_questions):
            length = 50 + budget - rng.randrange(1 + budget // 50)
            rows.append(
                sample(
                    budget=budget,
                    question_id=f"q{number}",
                    prompt_tokens=length,
                    ttft_s=ttft_s(length) * rng.lognormvariate(0, 0.1),
                    peak_bytes=memory(length),
                    **fields,
                )
            )
    return rows


def growth_of(rows, notes=None):
    [series] = summarise(rows, notes=notes or {})["models"]
    return series["growth"]


def quadratic(length):
    return 0.02 + 2e-7 * length**2


def test_a_transformer_and_a_mamba_are_told_apart():
    transformer = growth_of(sweep(quadratic, lambda length: 6144 * length))
    mamba = growth_of(sweep(lambda length: 0.02 + 5e-4 * length, lambda _: 537_600))
    assert transformer["ttft"]["low"] <= 2 <= transformer["ttft"]["high"]
    assert transformer["ttft"]["low"] > 1.5
    assert mamba["ttft"]["low"] <= 1 <= mamba["ttft"]["high"] < 1.5
    assert transformer["memory"]["exponent"] == pytest.approx(1, abs=0.02)
    assert (mamba["memory"]["exponent"], mamba["memory"]["constant"], mamba["memory"]["fixed"]) == (None, True, 537_600)
    assert {transformer["ttft"][name] for name in ("n", "lengths")} == {144, 6}
    assert transformer["ttft"]["why_none"] is mamba["memory"]["why_none"] is None


def test_a_first_token_after_a_prefix_hit_says_nothing_of_prefill():
    computed = sweep(quadratic, lambda length: length)
    # The same answers again, all but those without documents from a cache, in no time.
    warm = [
        sample(
            budget=row.budget,
            question_id=f"warm {row.question_id}",
            prompt_tokens=row.prompt_tokens,
            cached_tokens=row.prompt_tokens - 20,
            ttft_s=0.001,
        )
        for row in computed
        if row.budget
    ]
    assert growth_of([*computed, *warm])["ttft"] == growth_of(computed)["ttft"]
    alone = growth_of(warm)
    assert (alone["ttft"]["exponent"], alone["ttft"]["n"]) == (None, 0)
    assert "ask with --cache cold" in alone["ttft"]["why_none"]
    assert alone["memory"]["why_none"] is None


def test_what_nobody_says_was_reused_is_believed_of_a_cold_cache_alone():
    rows = sweep(quadratic, lambda length: length, cached_tokens=None)
    assert growth_of(rows)["ttft"]["exponent"] is None
    assert growth_of(rows, COLD)["ttft"]["exponent"] == pytest.approx(2, abs=0.2)


def test_three_lengths_are_no_growth():
    few = growth_of(sweep(quadratic, lambda length: length, budgets=BUDGETS[:3]))
    for fit in few.values():
        assert (fit["exponent"], fit["low"], fit["lengths"]) == (None, None, 3)
        assert "fewer than 4 different lengths" in fit["why_none"]


def test_failures_are_in_no_fit():
    rows = sweep(quadratic, lambda length: length)
    lost = [failed(budget=budget, question_id="lost", ttft_s=99.0, prompt_tokens=9, peak_bytes=1) for budget in BUDGETS]
    assert growth_of([*rows, *lost]) == growth_of(rows)


def test_a_front_by_hand():
    points = [(0.1, 2.0, 5.0), (0.1, 2.0, 5.0), (0.2, 1.0, 9.0), (0.2, 2.0, 9.0), (0.1, 2.0, 6.0)]
    assert pareto_front(points) == [True, True, True, False, False]
    assert pareto_front([]) == []


def test_what_is_not_known_is_not_compared():
    with_bytes, with_share, with_neither = (0.1, 1.0, 5.0, None), (0.2, 2.0, None, 0.5), (0.3, 3.0, None, None)
    worse_share = (0.2, 2.0, None, 0.6)
    assert pareto_front([with_bytes, with_share, with_neither, worse_share]) == [True, True, True, False]
    assert pareto_front([(None, None)]) == [None]


def test_beaten_beyond_chance_is_beaten_at_the_ends_of_the_intervals():
    sure = [(0.1, 0.2), (1.0, 1.5), (5.0, 5.0)]
    far, near = [(0.3, 0.5), (1.6, None), (5.0, 5.0)], [(0.15, 0.5), (1.6, 3.0), (5.0, 5.0)]
    unbounded = [(0.0, 0.01), (0.1, None), (1.0, 1.0)]
    assert clearly_beaten([sure, far, near, unbounded]) == [False, True, False, False]


def test_the_fronts_of_a_summary():
    def answers(model, num_wrong, ttft_s, **memory):
        kinds = [hallucinated] * num_wrong + [sample] * (100 - num_wrong)
        fields = {"model": model, "budget": 256, "kv_bytes": None, "state_bytes": None, "peak_bytes": None} | memory
        return [kind(question_id=f"q{i}", cluster=f"c{i}", ttft_s=ttft_s, **fields) for i, kind in enumerate(kinds)]

    rows = [
        *answers("small", 50, 0.1, peak_bytes=100),
        *answers("good", 10, 0.3, peak_bytes=900),
        *answers("bad", 60, 0.3, peak_bytes=900),
        *answers("foreign", 60, 0.3),
        *[failed(model="dead", budget=256, question_id=f"q{i}") for i in range(3)],
    ]
    [front] = summarise(rows)["pareto"]
    assert (front["dataset"], front["condition"], front["permission"]) == ("world", "natural", "must_answer")
    found = {point["model"]: point for point in front["points"]}
    assert {name: point["on_front"] for name, point in found.items()} == {
        "small": True, "good": True, "bad": False, "foreign": True, "dead": None,
    }  # fmt: skip
    assert [name for name, point in found.items() if point["clearly_beaten"]] == ["bad"]
    assert found["good"]["hallucinated"] == 0.1
    assert (found["good"]["ttft_p95_s"], found["good"]["memory_bytes"]) == (0.3, 900)
    assert found["foreign"]["memory_bytes"] is found["foreign"]["kv_share"] is None


@pytest.mark.parametrize("n", [40, 90, 300])
def test_the_interval_of_a_quantile_covers_it(n):
    rng, truth, hits, runs = random.Random(6), math.log(20), 0, 1000
    for _ in range(runs):
        low, high = quantile_interval([rng.expovariate(1) for _ in range(n)], 0.95)
        hits += (low is None or low <= truth) and (high is None or truth < high)
    assert hits / runs >= 0.94


def test_the_ends_of_a_quantiles_interval_by_hand():
    """Below the median of five lie none in 1 of 32 samples and all in 1 of 32: the outermost bound it in 30 of 32."""
    values = [5, 1, 4, 2, 3]
    assert quantile_interval(values, 0.5, level=0.9) == (1, 5)
    assert quantile_interval(values, 0.5, level=0.95) == (None, None)
    assert quantile_interval([], 0.5) == (None, None)


def test_every_new_figure_has_its_definition():
    [series] = summarise([sample()])["models"]
    [point] = series["points"]
    for name in ("tokens", "energy_j", "scraped", "ttft_p95_s"):
        assert name in point
        assert name in DEFINITIONS
    for name in ("growth", "preemptions"):
        assert name in series
        assert name in DEFINITIONS
    assert "pareto" in DEFINITIONS
