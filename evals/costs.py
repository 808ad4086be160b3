"""What the answers of a point cost: tokens as three parties count them, energy, what the server said of its memory,
and how time and memory grow with the length of the prompt.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from evals.points import cache_bytes_of, mean
from evals.records import RunNote, SampleRow, Scrape
from evals.scrape import KV_SHARE, KV_TOKENS, PREEMPTIONS, PROCESS_BYTES, RUNNING, STATE_SHARE
from evals.stats import growth as growing
from evals.stats import pareto, quantiles
from evals.stats.growth import growth
from loadtest.latency import quantile

SHOWN = (KV_SHARE, STATE_SHARE, KV_TOKENS, RUNNING, PROCESS_BYTES)
# A hidden prompt or an unknown template has more tokens than this.
NOTABLE_DIFFERENCE = 32

DEFINITIONS: dict[str, str] = {
    "tokens": "of the whole prompt: client_counted, document by document with the served tokenizer and template;"
    " served, the server's usage.prompt_tokens; difference, served - client_counted (max_difference: the one furthest"
    " from 0); requested: the budget of documents; without_usage: answers whose usage is missing",
    "energy_j": "joules of this machine's GPUs while the answer was under way, shared evenly with other requests under"
    " way: mean over the answers that were asked once",
    "scraped": "the server's own figures at /metrics, read while an answer of the point was under way: kv_share and"
    " state_share of the cache that sequences hold, kv_tokens in it, running requests, process_bytes resident in its"
    " API process; n readings",
    "preemptions": "sequences that gave up their cache while samples were asked, by the server's count",
    "growth": "ttft against prompt_tokens, of answers to which no token came from a cache; memory: cache_bytes against"
    " prompt_tokens: " + growing.FORMULA,
    "ttft_p95_s": "its interval: " + quantiles.FORMULA,
    "pareto": "on_front: " + pareto.FORMULA + ", of hallucinated, ttft_p95_s and memory (bytes, or where the server's"
    " are not known the share of its cache; the two are not compared); clearly_beaten: by a point that does so at the"
    " worse ends of its 95 % intervals, against the better ends of this one",
}


def describe_costs(budget: int, rows: Sequence[SampleRow], scrapes: Sequence[Scrape]) -> dict[str, Any]:
    """What one point has beside its verdicts; scrapes: of its model and dataset, in the order of their times."""
    answered = [row for row in rows if row.error is None]
    energies = [row.energy_j for row in answered if row.energy_j is not None]
    times = [row.ttft_s for row in answered if row.ttft_s is not None]
    low, high = quantiles.quantile_interval(times, 0.95)
    return {
        "tokens": _tokens(budget, rows),
        "scraped": _scraped(rows, scrapes),
        "energy_j": {"mean": mean(energies), "n": len(energies)},
        "ttft_p95_s": {"value": quantile(times, 0.95) if times else None, "low": low, "high": high, "n": len(times)},
    }


def _tokens(budget: int, rows: Sequence[SampleRow]) -> dict[str, Any]:
    counted = [row.expected_tokens for row in rows if row.expected_tokens is not None]
    served = [row.prompt_tokens for row in rows if row.prompt_tokens is not None]
    differences = [
        row.prompt_tokens - row.expected_tokens
        for row in rows
        if row.prompt_tokens is not None and row.expected_tokens is not None
    ]
    return {
        "requested": budget,
        "client_counted_mean": mean(counted),
        "served_mean": mean(served),
        "difference_mean": mean(differences),
        "max_difference": max(differences, key=abs, default=None),
        "without_usage": sum(row.error is None and row.prompt_tokens is None for row in rows),
    }


def caveats(series: Mapping[str, Any]) -> list[str]:
    """What the counts and the scraped figures of a series give to doubt."""
    model, points, lines = series["model"], series["points"], []
    if series["preemptions"]:
        lines.append(
            f"{model}: {series['preemptions']} sequences gave up their cache to others and were computed again: times"
            " have that in them."
        )
    if any(point["tokens"]["without_usage"] for point in points):
        lines.append(f"{model}: the server counts no prompt tokens: nobody can tell whether it cut prompts.")
    differences = [found for point in points if (found := point["tokens"]["difference_mean"]) is not None]
    if differences and min(differences) > NOTABLE_DIFFERENCE:
        lines.append(
            f"{model}: the server counts some {min(differences):.0f} tokens more in each prompt than were sent: a"
            " prompt of its own, or a template that its /tokenize leaves out."
        )
    return lines


def _scraped(rows: Sequence[SampleRow], scrapes: Sequence[Scrape]) -> dict[str, Any]:
    """What was read while any of the rows was under way; figures that nobody read are None."""
    under_way = _while_under_way(rows)
    found: dict[str, list[float]] = {name: [] for name in SHOWN}
    for scrape in scrapes:
        if scrape.name in found and under_way(scrape.at_s, scrape.at_s):
            found[scrape.name].append(scrape.value)
    return {
        name: {"mean": mean(values), "peak": max(values, default=None), "n": len(values)}
        for name, values in found.items()
    }


def preemptions_of(rows: Sequence[SampleRow], scrapes: Sequence[Scrape]) -> int | None:
    """How far the counter advanced while rows were under way; None where nobody read it twice in that time."""
    readings = [(scrape.at_s, scrape.value) for scrape in scrapes if scrape.name == PREEMPTIONS]
    under_way = _while_under_way(rows)
    # Smaller than before: the engine was started anew, and counts from nothing.
    advances = [
        later - earlier if later >= earlier else later
        for (begin_s, earlier), (end_s, later) in pairwise(readings)
        if under_way(begin_s, end_s)
    ]
    return round(sum(advances)) if advances else None


def _while_under_way(rows: Sequence[SampleRow]) -> Callable[[float, float], bool]:
    """Tells whether any row was under way at some moment from the first to the second one."""
    begins = sorted(row.sent_s for row in rows if row.sent_s is not None)
    ends = sorted(row.end_s for row in rows if row.end_s is not None)
    # Of those that began by the later moment, some had not ended before the earlier.
    return lambda first_s, last_s: bisect_right(begins, last_s) > bisect_left(ends, first_s)


def describe_growth(by_budget: Mapping[int, Sequence[SampleRow]], note: RunNote) -> dict[str, Any]:
    """How time to first token and memory grow over the budgets of a series."""
    groups = [[row for row in rows if row.error is None and row.prompt_tokens] for rows in by_budget.values()]
    whole = [[row for row in rows if _is_computed_whole(row, note)] for rows in groups]
    ttft = _fit(whole, lambda row: row.ttft_s)
    if ttft["exponent"] is None and not ttft["constant"] and sum(map(len, whole)) < sum(map(len, groups)):
        ttft["why_none"] = "tokens came from the prefix cache, or the server does not say: ask with --cache cold"
    return {"ttft": ttft, "memory": _fit(groups, cache_bytes_of)}


def _is_computed_whole(row: SampleRow, note: RunNote) -> bool:
    """Of a server that does not say what it reused, one believes that a cold cache was one."""
    return row.cached_tokens == 0 or (row.cached_tokens is None and note.cache == "cold")


def _fit(groups: Sequence[Sequence[SampleRow]], cost: Callable[[SampleRow], float | None]) -> dict[str, Any]:
    points = [
        [(float(row.prompt_tokens or 0), float(known)) for row in rows if (known := cost(row)) is not None]
        for rows in groups
    ]
    fit = growth(points)
    nothing = {"exponent": None, "low": None, "high": None, "fixed": None, "factor": None, "constant": False}
    return {
        **(fit or nothing),
        "n": sum(map(len, points)),
        "lengths": sum(map(bool, points)),
        "why_none": None if fit else f"costs above 0 of fewer than {growing.LEAST_LENGTHS} different lengths",
    }


def describe_fronts(series: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of each dataset, condition and permission: which points of all its models nothing beats."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for one in series:
        key = one["dataset"], one["condition"], one["permission"]
        groups.setdefault(key, []).extend(_front_point(one["model"], point) for point in one["points"])
    return [
        {"dataset": dataset, "condition": condition, "permission": permission, "points": _with_front(points)}
        for (dataset, condition, permission), points in groups.items()
    ]


def _front_point(model: str, point: Mapping[str, Any]) -> dict[str, Any]:
    hallucinated, slowest, memory = point["hallucinated"], point["ttft_p95_s"], point["cache_bytes"]["mean"]
    return {
        "model": model,
        "budget": point["budget"],
        "hallucinated": hallucinated["rate"],
        "hallucinated_interval": [hallucinated["low"], hallucinated["high"]],
        "ttft_p95_s": slowest["value"],
        "ttft_p95_interval_s": [slowest["low"], slowest["high"]],
        "memory_bytes": memory,
        "kv_share": point["scraped"][KV_SHARE]["mean"] if memory is None else None,
        "energy_j": point["energy_j"]["mean"],
    }


def _with_front(points: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A point without a verdict or without a first token is compared with none."""
    whole = [point for point in points if point["hallucinated"] is not None and point["ttft_p95_s"] is not None]
    names = ("hallucinated", "ttft_p95_s", "memory_bytes", "kv_share")
    on_front = pareto.pareto_front([[point[name] for name in names] for point in whole])
    beaten = pareto.clearly_beaten([_intervals(point) for point in whole])
    found = {
        id(point): {"on_front": is_on, "clearly_beaten": is_beaten}
        for point, is_on, is_beaten in zip(whole, on_front, beaten, strict=True)
    }
    return [point | found.get(id(point), {"on_front": None, "clearly_beaten": None}) for point in points]


def _intervals(point: Mapping[str, Any]) -> list[tuple[float, float | None] | None]:
    low, high = point["ttft_p95_interval_s"]
    exact = [point["memory_bytes"], point["kv_share"]]
    return [
        tuple(point["hallucinated_interval"]),
        (0.0 if low is None else low, high),
        *((size, size) if size is not None else None for size in exact),
    ]
