import itertools
import statistics

import pytest
from scipy import stats

from loadtest import arrivals


def test_poisson_is_its_seed() -> None:
    one = arrivals.schedule("poisson", rate=5, duration_s=60, seed=1)
    assert one == arrivals.schedule("poisson", rate=5, duration_s=60, seed=1)
    assert one != arrivals.schedule("poisson", rate=5, duration_s=60, seed=2)
    # A longer run begins with the shorter one: the same requests come at the same instants.
    assert arrivals.schedule("poisson", rate=5, duration_s=90, seed=1)[: len(one)] == one


def test_poisson_gaps_are_exponential() -> None:
    instants = arrivals.poisson(rate=4, duration_s=1000, seed=7)
    gaps = [instants[0], *(b - a for a, b in itertools.pairwise(instants))]
    assert stats.kstest(gaps, stats.expon(scale=1 / 4).cdf).pvalue > 0.01
    assert all(0 <= at < 1000 for at in instants)


def test_poisson_counts_vary_as_poisson_counts_do() -> None:
    """Gaps normalised to sum to n / rate would give the same count every time."""
    counts = [len(arrivals.poisson(rate=5, duration_s=20, seed=seed)) for seed in range(300)]
    assert statistics.mean(counts) == pytest.approx(100, abs=2.5)
    assert statistics.variance(counts) / statistics.mean(counts) == pytest.approx(1, abs=0.25)


def test_constant_has_no_drift() -> None:
    instants = arrivals.schedule("constant", rate=3, duration_s=1000, seed=0)
    assert len(instants) == 3000
    assert instants[0] == 0
    assert instants[2999] == 2999 / 3


@pytest.mark.parametrize("num_workers", [1, 2, 3, 7])
def test_workers_share_every_arrival_once(num_workers: int) -> None:
    shares = [arrivals.share(20, worker=i, num_workers=num_workers) for i in range(num_workers)]
    assert sorted(itertools.chain.from_iterable(shares)) == list(range(20))
