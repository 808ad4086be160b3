"""Statistics against truths that were planted: intervals that cover them as often as they say.

What is drawn is the same each time. A 95 % interval is to cover in 93 to 97 % of the runs. Of 500 runs a share is known
to a point, of 2,000 to half of one: intervals of differences, which are a little below 95 %, take those.
"""

import numpy as np
import pytest

from evals.stats.bootstrap import tabulate
from evals.stats.corrected import GraderQuality, corrected_rate
from evals.stats.growth import growth
from evals.stats.paired import holm, paired_difference
from evals.stats.rates import clustered_rate, rate
from evals.stats.turning import turning_point

RUNS = 500
BUDGETS = (128, 256, 512, 1024, 2048, 4096, 8192, 16384)


def share(hits):
    return sum(hits) / len(hits)


def covers(interval, truth):
    return interval["low"] <= truth <= interval["high"]


def failures(rng, chances, num_questions, *, cluster_size=1):
    """Outcomes by question for each chance, and clusters: what fails at one budget is likelier to fail at another, and
    questions of one cluster fail together.
    """
    clusters = np.arange(num_questions) // cluster_size
    difficulty = rng.random(clusters[-1] + 1)[clusters]
    columns = []
    for chance in chances:
        of_its_own = rng.random(num_questions) < 0.5
        drawn = np.where(of_its_own, rng.random(num_questions), difficulty)
        columns.append({f"q{i}": bool(value < chance) for i, value in enumerate(drawn)})
    return columns, {f"q{i}": f"c{cluster}" for i, cluster in enumerate(clusters)}


@pytest.mark.parametrize("chance", [0.05, 0.3, 0.5, 0.9])
def test_rates_cover_the_truth(chance):
    rng = np.random.default_rng(1)
    hits = [covers(rate(int(rng.binomial(300, chance)), 300), chance) for _ in range(RUNS)]
    assert 0.93 <= share(hits) <= 0.97


@pytest.mark.parametrize("chance", [0.1, 0.4])
def test_rates_of_clusters_cover_the_truth(chance):
    """Five questions to a cluster, which fail together: as if unrelated they would miss it in one of four runs."""
    rng, hits, naive = np.random.default_rng(11), [], []
    for _ in range(2 * RUNS):
        [outcomes], clusters = failures(rng, [chance], 300, cluster_size=5)
        hits.append(covers(clustered_rate((clusters[key], failed) for key, failed in outcomes.items()), chance))
        naive.append(covers(rate(sum(outcomes.values()), 300), chance))
    assert 0.93 <= share(hits) <= 0.97
    assert share(naive) < 0.92


@pytest.mark.parametrize(("before", "after"), [(0.6, 0.3), (0.3, 0.3), (0.95, 0.85)])
@pytest.mark.parametrize("cluster_size", [1, 3])
def test_differences_cover_the_truth(before, after, cluster_size):
    rng, hits = np.random.default_rng(2), []
    for _ in range(4 * RUNS):
        (first, second), clusters = failures(rng, (before, after), 240, cluster_size=cluster_size)
        hits.append(covers(paired_difference(second, first, clusters, resamples=500), after - before))
    assert 0.93 <= share(hits) <= 0.97


@pytest.mark.parametrize("cluster_size", [1, 3])
def test_no_effect_is_declared_one_in_five_of_a_hundred_series(cluster_size):
    """Of seven budgets at once, after Holm's correction."""
    rng, declared = np.random.default_rng(3), []
    for _ in range(RUNS):
        (closed, *others), clusters = failures(rng, [0.4] * 8, 240, cluster_size=cluster_size)
        changes = [paired_difference(other, closed, clusters, resamples=200) for other in others]
        declared.append(any(value < 0.05 for value in holm([change["p_value"] for change in changes])))
    assert share(declared) <= 0.05


def test_an_effect_is_found():
    rng = np.random.default_rng(4)
    (closed, other), clusters = failures(rng, (0.5, 0.3), 240)
    assert paired_difference(other, closed, clusters)["p_value"] < 0.001


def test_equal_ones_are_called_so_and_no_others():
    """By the two one-sided tests: at the margin itself in one of twenty runs."""
    rng, called = np.random.default_rng(5), {0.0: [], 0.1: []}
    for truth, results in called.items():
        for _ in range(RUNS):
            (first, second), clusters = failures(rng, (0.3, 0.3 + truth), 400)
            results.append(paired_difference(second, first, clusters, resamples=500)["equivalent_within"] < 0.1)
    assert share(called[0.0]) > 0.8
    assert share(called[0.1]) <= 0.07


def curve(turn, fall, rise):
    """Rates that fall along the logarithm of the budget up to a point, and rise from there."""
    logs = np.log2(BUDGETS)
    return 0.6 + fall * np.minimum(logs - np.log2(turn), 0) * -1 / 4 + rise * np.maximum(logs - np.log2(turn), 0) / 4


@pytest.mark.parametrize(("turn", "fall", "rise"), [(1024, 0.3, 0.15), (2048, 0.25, 0.0), (800, 0.3, 0.1)])
def test_the_turning_point_is_covered(turn, fall, rise):
    rng, hits, runs = np.random.default_rng(6), [], 200
    for _ in range(runs):
        columns, clusters = failures(rng, curve(turn, fall, rise) - 0.3, 300)
        hits.append(covers(turning_point(dict(zip(BUDGETS, columns, strict=True)), clusters, resamples=400), turn))
    assert share(hits) >= 0.92


@pytest.mark.parametrize(("slope", "shape"), [(-0.5, "falls throughout"), (0.5, "never falls")])
def test_a_rate_that_does_not_turn_is_told(slope, shape):
    rng = np.random.default_rng(7)
    chances = 0.5 + slope * (np.log2(BUDGETS) - np.log2(BUDGETS).mean()) / 8
    columns, clusters = failures(rng, chances, 400)
    found = turning_point(dict(zip(BUDGETS, columns, strict=True)), clusters)
    assert found["shape"] == shape
    assert covers(found, found["budget"])


def test_a_corrected_rate_covers_what_people_would_say():
    """By a grader that misses right answers and lets wrong ones through, measured on a thousand judged ones."""
    rng, hits, raw_hits = np.random.default_rng(8), [], []
    sensitivity, specificity, truth = 0.78, 0.96, 0.7
    for _ in range(RUNS):
        right = int(rng.binomial(1000, 0.7))
        quality = GraderQuality(
            right=right,
            right_called_right=int(rng.binomial(right, sensitivity)),
            wrong=1000 - right,
            wrong_called_wrong=int(rng.binomial(1000 - right, specificity)),
            source="drawn",
        )
        is_right = rng.random(300) < truth
        called = np.where(is_right, rng.random(300) < sensitivity, rng.random(300) > specificity)
        table = tabulate([{f"q{i}": float(hit) for i, hit in enumerate(called)}], {f"q{i}": str(i) for i in range(300)})
        hits.append(covers(corrected_rate(table, quality), truth))
        raw_hits.append(covers(rate(int(called.sum()), 300), truth))
    assert 0.93 <= share(hits) <= 0.97
    assert share(raw_hits) < 0.1


@pytest.mark.parametrize("exponent", [1.0, 1.5, 2.0])
def test_the_growth_of_a_cost_is_covered(exponent):
    rng, hits, runs = np.random.default_rng(9), [], 200
    for _ in range(runs):
        groups = []
        for length in BUDGETS:
            lengths = length * rng.uniform(0.97, 1.0, 40)
            cost = 0.02 + 1e-8 * 16384 ** (2 - exponent) * lengths**exponent
            groups.append(list(zip(lengths, cost * rng.lognormal(0, 0.1, 40), strict=True)))
        hits.append(covers(growth(groups), exponent))
    assert share(hits) >= 0.9


def test_what_does_not_grow_has_no_exponent():
    rng = np.random.default_rng(10)
    constant = growth([[(length, 264_192.0)] * 3 for length in BUDGETS])
    assert constant["constant"]
    assert constant["exponent"] is None
    noisy = growth([[(length, float(cost)) for cost in rng.lognormal(0, 0.001, 9)] for length in BUDGETS])
    assert noisy["constant"]
