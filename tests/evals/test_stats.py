"""Intervals against published tables, enumeration by hand and planted truths."""

import itertools

import numpy as np
import pytest
import scipy.stats

from evals.stats.paired import exchange_test, holm, paired_difference
from evals.stats.power import design_effect, detectable_difference, questions_for_difference, questions_for_rate
from evals.stats.ranking import auroc, risk_coverage
from evals.stats.rates import clustered_rate, rate, wilson


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


def test_what_is_unrelated_has_the_plain_interval():
    assert clustered_rate((f"c{i}", i < 81) for i in range(263)) == rate(81, 263)
    # As unrelated as if there were no clusters: each has as much of both.
    assert clustered_rate((f"c{i // 2}", i % 2 == 0) for i in range(100)) == rate(50, 100)
    assert clustered_rate([]) == rate(0, 0)


def test_clusters_of_one_outcome_count_once():
    """Ten clusters of five that fail or not as one: each is one sample."""
    found = clustered_rate((f"c{i // 5}", i // 5 < 4) for i in range(50))
    # The spread of ten clusters' shares has nine degrees of freedom.
    expected = wilson(0.4 * 9, 9)
    assert (found["low"], found["high"]) == (pytest.approx(expected[0]), pytest.approx(expected[1]))
    assert (found["rate"], found["n"]) == (0.4, 50)
    for happened in (False, True):
        alone = clustered_rate((f"c{i // 5}", happened) for i in range(50))
        assert (alone["low"], alone["high"]) == wilson(10 * happened, 10)
    assert clustered_rate(("c", i < 2) for i in range(5))["high"] == wilson(0.4, 1)[1]


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


def test_the_interval_is_scipys():
    rng = np.random.default_rng(3)
    differences = rng.choice([-1, 0, 1], size=120, p=[0.1, 0.6, 0.3])
    names = {f"q{i}": f"q{i}" for i in range(120)}
    outcomes = {f"q{i}": bool(value == 1) for i, value in enumerate(differences)}
    baseline = {f"q{i}": bool(value == -1) for i, value in enumerate(differences)}
    ours = paired_difference(outcomes, baseline, names, resamples=20_000)
    theirs = scipy.stats.bootstrap((differences,), np.mean, n_resamples=20_000, method="BCa", rng=rng)
    assert ours["low"] == pytest.approx(theirs.confidence_interval.low, abs=0.009)
    assert ours["high"] == pytest.approx(theirs.confidence_interval.high, abs=0.009)


def test_where_nothing_differs_something_still_might():
    same = {f"q{i}": True for i in range(50)}
    result = paired_difference(same, same, {name: name for name in same})
    # Tango's score interval without any discordant pair: z^2 / (n + z^2).
    assert (result["low"], result["high"]) == (pytest.approx(-0.0713, abs=1e-4), pytest.approx(0.0713, abs=1e-4))
    assert (result["difference"], result["p_value"]) == (0, 1)


@pytest.mark.parametrize(("up", "down"), [(10, 2), (5, 5), (0, 7), (1, 0)])
def test_the_test_of_single_questions_is_mcnemars(up, down):
    totals = np.array([1.0] * up + [-1.0] * down + [0.0] * 9)
    assert exchange_test(totals) == pytest.approx(scipy.stats.binomtest(up, up + down).pvalue)


def test_the_test_of_clusters_is_that_of_all_signs():
    totals = np.array([3.0, -1.0, 2.0, 2.0, 0.0, 1.0])
    sums = [abs(sum(signs * totals)) for signs in itertools.product((-1, 1), repeat=6)]
    assert exchange_test(totals) == pytest.approx(np.mean(np.array(sums) >= 7))
    with pytest.raises(ValueError, match="either happen or do not"):
        exchange_test(np.array([0.5]))


def test_holm():
    # Holm (1979) by hand: 0.01 * 4, 0.02 * 3, then 0.03 * 2 is no smaller than what came before, 0.04 neither.
    assert holm([0.03, None, 0.01, 0.02, 0.04]) == [pytest.approx(0.06), None, pytest.approx(0.04), 0.06, 0.06]
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_how_many_questions():
    n = questions_for_rate(0.05, 0.3)
    assert (wilson(round(0.3 * n), n)[1] - wilson(round(0.3 * n), n)[0]) / 2 <= 0.05
    assert 310 < n < 335
    # With a discordance of .15 a hundred questions have a half width of .076, and four times as many half of that.
    assert questions_for_difference(0.076, 0.15) == 100
    assert questions_for_difference(0.038, 0.15) == pytest.approx(400, abs=1)
    assert detectable_difference(100, 0.15) == pytest.approx((1.96 + 0.8416) * (0.15 / 100) ** 0.5, rel=1e-3)
    assert design_effect(3, 0.2) == pytest.approx(1.4)
    for half_width, share in ((0, 0.5), (0.05, 0), (0.05, 1)):
        with pytest.raises(ValueError, match="between 0 and 1"):
            questions_for_rate(half_width, share)


def test_auroc():
    # Pairs of a wrong and a right answer, by hand: (3 > 1), (3 > 2), (2 > 1), (2 = 2) of four.
    assert auroc([3, 2, 1, 2], [True, True, False, False]) == pytest.approx(3.5 / 4)
    assert auroc([1, 2], [True, True]) is None


def test_risk_and_coverage():
    curve = risk_coverage([0.9, 0.5, 0.5, 0.1], [False, True, False, True])
    assert curve["coverage"] == [0.25, 0.75, 1.0]
    assert curve["risk"] == [0, pytest.approx(1 / 3), 0.5]
    assert curve["area"] == pytest.approx((0 + 2 / 3 + 0.5) / 4)
    assert risk_coverage([], []) is None


def test_nothing_to_pair():
    nothing = {
        **dict.fromkeys(("difference", "low", "high", "p_value", "equivalent_within")),
        "n_pairs": 0,
    }
    assert paired_difference({}, {}, {}) == nothing
    assert paired_difference({"a": True}, {"b": True}, {"a": "x", "b": "x"}) == nothing


def test_one_cluster_shows_no_spread():
    result = paired_difference({"a": True, "b": False}, {"a": False, "b": False}, {"a": "x", "b": "x"})
    assert result == {
        **dict.fromkeys(("low", "high", "equivalent_within")),
        "difference": 0.5,
        "p_value": 1.0,
        "n_pairs": 2,
    }


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
