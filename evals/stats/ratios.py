"""How many times as long one thing takes as another, on the same questions."""

from collections.abc import Mapping
from typing import TypedDict

import numpy as np

from evals.stats.bootstrap import RESAMPLES, Floats, draw_clusters, percentile_interval

FORMULA = (
    "median over the pairs at the second / median at the first; 95 % percentile interval of"
    f" {RESAMPLES} bootstrap resamples of whole clusters (questions about one entity)"
)


class Ratio(TypedDict):
    """All but n_pairs is None without pairs, the interval also with pairs from a single cluster."""

    ratio: float | None
    low: float | None
    high: float | None
    n_pairs: int


def median_ratio(
    first: Mapping[str, float],
    second: Mapping[str, float],
    clusters: Mapping[str, str],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Ratio:
    """Median of `second` / median of `first`, over what is in both; equal inputs and seed give equal figures.

    Args:
        first, second: question id -> a time above 0. clusters: question id -> cluster, for every question in both.
    """
    questions = sorted(first.keys() & second.keys())
    if not questions:
        return Ratio(ratio=None, low=None, high=None, n_pairs=0)
    values = [np.array([times[question] for question in questions]) for times in (first, second)]
    names = sorted({clusters[question] for question in questions})
    place = {name: number for number, name in enumerate(names)}
    cluster_of = np.array([place[clusters[question]] for question in questions])
    once = np.ones((1, len(questions)))
    [ratio] = _medians(values[1], once) / _medians(values[0], once)
    if len(names) == 1:
        return Ratio(ratio=float(ratio), low=None, high=None, n_pairs=len(questions))
    drawn = [
        _medians(values[1], draws[:, cluster_of]) / _medians(values[0], draws[:, cluster_of])
        for draws in draw_clusters(len(names), resamples, seed, width=len(questions))
    ]
    low, high = percentile_interval(np.concatenate(drawn))
    return Ratio(ratio=float(ratio), low=low, high=high, n_pairs=len(questions))


def _medians(values: Floats, counts: Floats) -> Floats:
    """The median of each resample; of two in the middle their mean.

    Args:
        values: (n,). counts: (resamples, n), how often each value is drawn.
    """
    order = np.argsort(values, kind="stable")
    ascending, reached = values[order], np.cumsum(counts[:, order], axis=1)
    half = reached[:, -1:] / 2
    lower, upper = np.argmax(reached >= half, axis=1), np.argmax(reached > half, axis=1)
    return np.asarray((ascending[lower] + ascending[upper]) / 2)
