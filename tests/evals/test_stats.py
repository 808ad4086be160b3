"""Intervals against published tables, enumeration by hand and planted truths."""

import itertools

import numpy as np
import pytest

from evals.stats import paired_difference, rate, wilson


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        # Newcombe (1998), Statistics in Medicine 17, 857-872, Table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
        # By symmetry, and p = 1/2: 1/2 -+ z / (2 sqrt(n + z^2)).
        (20, 20, 0.8389, 1.0000),
        (50, 100, 0.4038, 0.5962),
    ],
)
def test_wilson(successes, n, low, high):
    assert wilson(successes, n) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


@pytest.mark.parametrize("n", [1, 2, 7, 50, 1000])
def test_wilson_stays_in_range_around_the_share(n):
    for successes in range(n + 1):
        low, high = wilson(successes, n)
        assert 0 <= low <= successes / n <= high <= 1
    assert wilson(0, n)[0] == 0
    assert wilson(n, n)[1] == 1


@pytest.mark.parametrize(("successes", "n"), [(1, 0), (0, 0), (3, 2), (-1, 2)])
def test_wilson_refuses_what_is_no_share(successes, n):
    with pytest.raises(ValueError, match="successes"):
        wilson(successes, n)


def test_a_rate_over_nothing_is_not_zero():
    assert rate(0, 0) == {"rate": None, "low": None, "high": None, "n": 0}
    with pytest.raises(ValueError, match="1 of 0"):
        rate(1, 0)


def test_a_rate_has_its_count():
    assert rate(0, 20) == {"rate": 0.0, "low": 0.0, "high": pytest.approx(0.1611, abs=5e-5), "n": 20}


def test_difference_over_common_questions_only():
    outcomes = {"a": True, "b": True, "c": False, "only here": True}
    baseline = {"a": False, "b": True, "c": False, "only there": True}
    clusters = {"a": "x", "b": "y", "c": "z"}
    result = paired_difference(outcomes, baseline, clusters)
    assert result["difference"] == pytest.approx(1 / 3)
    assert result["n_pairs"] == 3


def test_the_interval_is_that_of_all_resamples():
    # Three clusters with totals 2, 0, -1 over 2, 1, 1 questions: all 27 resamples can be written down.
    outcomes = {"a1": True, "a2": True, "b": True, "c": False}
    baseline = {"a1": False, "a2": False, "b": True, "c": True}
    clusters = {"a1": "a", "a2": "a", "b": "b", "c": "c"}
    totals, sizes = (2, 0, -1), (2, 1, 1)
    means = sorted(
        sum(totals[i] for i in drawn) / sum(sizes[i] for i in drawn) for drawn in itertools.product(range(3), repeat=3)
    )
    result = paired_difference(outcomes, baseline, clusters, resamples=20_000)
    assert result["difference"] == pytest.approx(1 / 4)
    # The extremes have probability 1/27 > 2.5 % each, so the percentile interval must reach exactly to them.
    assert (result["low"], result["high"]) == (means[0], means[-1]) == (-1.0, 1.0)


def test_nothing_to_pair():
    nothing = {"difference": None, "low": None, "high": None, "n_pairs": 0}
    assert paired_difference({}, {}, {}) == nothing
    assert paired_difference({"a": True}, {"b": True}, {"a": "x", "b": "x"}) == nothing


def test_one_cluster_shows_no_spread():
    result = paired_difference({"a": True, "b": False}, {"a": False, "b": False}, {"a": "x", "b": "x"})
    assert result == {"difference": 0.5, "low": None, "high": None, "n_pairs": 2}


def test_the_same_whatever_the_order():
    names = [f"q{number}" for number in range(40)]
    outcomes = {name: number % 3 == 0 for number, name in enumerate(names)}
    baseline = {name: number % 2 == 0 for number, name in enumerate(names)}
    clusters = {name: str(number // 4) for number, name in enumerate(names)}
    backwards = [dict(reversed(mapping.items())) for mapping in (outcomes, baseline, clusters)]
    assert paired_difference(outcomes, baseline, clusters) == paired_difference(*backwards)
    few = [paired_difference(outcomes, baseline, clusters, resamples=9, seed=seed) for seed in range(4)]
    assert any(one != few[0] for one in few)


def _planted(rng, *, num_clusters, per_cluster, before, after):
    """Outcomes whose true difference is after - before, with clusters that move together."""
    outcomes, baseline, clusters = {}, {}, {}
    for cluster in range(num_clusters):
        shift = rng.choice([-0.2, 0.2])
        for item in range(per_cluster):
            name = f"{cluster}/{item}"
            clusters[name] = str(cluster)
            baseline[name] = bool(rng.random() < before - shift)
            outcomes[name] = bool(rng.random() < after + shift)
    return outcomes, baseline, clusters


def test_the_interval_covers_the_planted_difference_and_ignoring_clusters_would_not():
    rng = np.random.default_rng(7)
    trials, covered, covered_unclustered = 200, 0, 0
    for trial in range(trials):
        outcomes, baseline, clusters = _planted(rng, num_clusters=40, per_cluster=6, before=0.6, after=0.35)
        result = paired_difference(outcomes, baseline, clusters, resamples=500, seed=trial)
        covered += result["low"] <= -0.25 <= result["high"]
        alone = {name: name for name in clusters}
        naive = paired_difference(outcomes, baseline, alone, resamples=500, seed=trial)
        covered_unclustered += naive["low"] <= -0.25 <= naive["high"]
    # 95 % nominal; with 200 trials the standard error is 1.5 points.
    assert 0.90 <= covered / trials <= 0.99
    assert covered_unclustered < covered - trials * 0.05
