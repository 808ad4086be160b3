"""Resampling of whole clusters: questions about one entity or article err together, so they are drawn together.

A table has a row for each cluster and a column for each thing that is measured on its questions (a budget, say):
sums of the outcomes, and how many there are. A figure is a function of the columns' means.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
MAX_DRAWN = 1 << 22  # counts of clusters held at once
NORMAL = NormalDist()
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Table:
    """sums, counts: (clusters, columns). The mean of a column is the sum of its sums over that of its counts."""

    sums: Floats
    counts: Floats

    @property
    def means(self) -> Floats:
        """(columns,); of a column without any count it is not a number."""
        return _means(self.sums.sum(axis=0), self.counts.sum(axis=0))

    def resampled(self, resamples: int = RESAMPLES, seed: int = 0) -> Floats:
        """(resamples, columns): means of as many clusters as there are, drawn with replacement."""
        drawn = draw_clusters(len(self.sums), resamples, seed)
        return np.concatenate([_means(counts @ self.sums, counts @ self.counts) for counts in drawn])

    def without_each(self) -> Floats:
        """(clusters, columns): the means without one cluster after the other."""
        return _means(self.sums.sum(axis=0) - self.sums, self.counts.sum(axis=0) - self.counts)


def draw_clusters(num_clusters: int, resamples: int, seed: int, *, width: int = 1) -> Iterator[Floats]:
    """How often each cluster is drawn: (some resamples, clusters); fewer at once where each is made into `width`."""
    rng = np.random.default_rng(seed)
    step = max(1, MAX_DRAWN // max(num_clusters, width))
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        yield rng.multinomial(num_clusters, np.full(num_clusters, 1 / num_clusters), size=size).astype(np.float64)


def _means(sums: Floats, counts: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(sums / counts)


def tabulate(columns: Sequence[Mapping[str, float]], clusters: Mapping[str, str]) -> Table:
    """Outcomes by question for each column -> the table, in an order that does not depend on theirs.

    Args:
        clusters: question -> cluster, of every question at least.
    """
    order = {
        cluster: row for row, cluster in enumerate(sorted({clusters[key] for column in columns for key in column}))
    }
    sums, counts = np.zeros((len(order), len(columns))), np.zeros((len(order), len(columns)))
    for number, column in enumerate(columns):
        for question in sorted(column):
            row = order[clusters[question]]
            sums[row, number] += column[question]
            counts[row, number] += 1
    return Table(sums, counts)


def bca_interval(estimate: float, resampled: Floats, without_each: Floats, level: float = 0.95) -> tuple[float, float]:
    """The bias-corrected and accelerated bootstrap interval, somewhat widened for few clusters.

    Args:
        resampled: the figure in each resample. without_each: the figure without one cluster after the other.
    Source: B. Efron, "Better bootstrap confidence intervals", JASA 82 (1987), 171-185; the widening, by the t
        distribution and n / (n - 1), is of T. C. Hesterberg, The American Statistician 69 (2015), 371-386, section 3.
    """
    below = (np.sum(resampled < estimate) + np.sum(resampled == estimate) / 2) / len(resampled)
    # At the very end of what was drawn the correction would be without bounds.
    bias = NORMAL.inv_cdf(min(max(below, 1 / len(resampled)), 1 - 1 / len(resampled)))
    away = without_each.mean() - without_each
    spread = float(np.sum(away**2))
    acceleration = float(np.sum(away**3)) / (6 * spread**1.5) if spread > 0 else 0.0
    ends, reach = [], _expanded(z_of(level), len(without_each))
    for deviation in (-reach, reach):
        shifted = bias + deviation
        ends.append(NORMAL.cdf(bias + shifted / (1 - acceleration * shifted)))
    low, high = np.quantile(resampled, ends)
    return float(low), float(high)


def _expanded(deviation: float, size: int) -> float:
    """Standard deviations as a mean of so many has them: Student's quantile by its series, and n / (n - 1)."""
    degrees, z = size - 1, deviation
    student = z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
    return student * math.sqrt(size / degrees)


def percentile_interval(resampled: Floats, level: float = 0.95) -> tuple[float, float]:
    low, high = np.quantile(resampled, ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)


def z_of(level: float) -> float:
    """Standard deviations within which a normal variable is with that probability."""
    return NORMAL.inv_cdf((1 + level) / 2)
