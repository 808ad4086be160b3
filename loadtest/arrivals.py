"""When each request is to be sent: an absolute schedule, drawn once from a seed and never moved.

The schedule is open loop: it does not know whether the server keeps up. Gaps are not normalised to sum to
n / rate, which would make the draw no Poisson process any more; the number of arrivals is therefore random,
and the rate that was really offered is reported beside the wanted one.
"""

import itertools
import random

from loadtest.config import ArrivalProcess


def schedule(process: ArrivalProcess, *, rate: float, duration_s: float, seed: int) -> tuple[float, ...]:
    """Seconds from the start of the run, ascending, in [0, duration_s)."""
    match process:
        case "poisson":
            return poisson(rate=rate, duration_s=duration_s, seed=seed)
        case "constant":
            return constant(rate=rate, duration_s=duration_s)


def poisson(*, rate: float, duration_s: float, seed: int) -> tuple[float, ...]:
    """Exponential gaps of mean 1 / rate."""
    rng = random.Random(f"arrivals:{seed}")
    gaps = (rng.expovariate(rate) for _ in itertools.count())
    return tuple(itertools.takewhile(lambda at: at < duration_s, itertools.accumulate(gaps)))


def constant(*, rate: float, duration_s: float) -> tuple[float, ...]:
    """One arrival every 1 / rate seconds, the first at once."""
    # Multiplied, not summed: rounding must not drift over a long run.
    return tuple(itertools.takewhile(lambda at: at < duration_s, (i / rate for i in itertools.count())))


def share(num_arrivals: int, *, worker: int, num_workers: int) -> range:
    """Indices of the arrivals that one of several workers sends."""
    return range(worker, num_arrivals, num_workers)
