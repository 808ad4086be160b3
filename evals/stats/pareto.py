"""Which points no other beats in everything that is to be small."""

import math
from collections.abc import Sequence

FORMULA = "no other point is as good or better in every one of the figures and better in one"

Costs = Sequence[float | None]


def pareto_front(points: Sequence[Costs]) -> list[bool | None]:
    """Whether each point is on the front; all figures are to be small.

    A figure that is not there is neither small nor large: only points with the same figures can beat each other, and
    of a point with none nothing is said (None).
    """
    return [
        None if all(cost is None for cost in point) else not any(dominates(other, point) for other in points)
        for point in points
    ]


def clearly_beaten(intervals: Sequence[Sequence[tuple[float, float | None] | None]]) -> list[bool]:
    """Whether some other point beats each one even with every figure at the worse end of its interval, and the
    beaten one's at the better end. An end of None is without bound.
    """
    best = [[None if ends is None else ends[0] for ends in point] for point in intervals]
    worst = [
        [None if ends is None else math.inf if ends[1] is None else ends[1] for ends in point] for point in intervals
    ]
    return [any(dominates(other, point) for other in worst) for point in best]


def dominates(one: Costs, other: Costs) -> bool:
    """Whether the first is as small everywhere and smaller somewhere, in the same figures."""
    pairs = list(zip(one, other, strict=True))
    if any((first is None) != (second is None) for first, second in pairs):
        return False
    known = [(first, second) for first, second in pairs if first is not None and second is not None]
    return all(first <= second for first, second in known) and any(first < second for first, second in known)
