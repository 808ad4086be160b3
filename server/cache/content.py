"""What the prefix index holds, to be looked at: its paths by length and use, without their tokens and salts."""

import heapq
from bisect import bisect_left
from collections.abc import Iterator

from server.cache.planner import CachePlan
from server.cache.prefix import PrefixIndex
from server.cache.runs import Run
from server.request import CacheEntry


def cache_entries(index: PrefixIndex, plan: CachePlan, limit: int, now_s: float) -> tuple[int, list[CacheEntry]]:
    """How many ends the index's paths have, and what leads to those used last, the latest first.

    Blocks and snapshots before a fork count for each path that goes through it.

    Args:
        now_s: on the clock by which the index notes uses.
    """
    paths = list(_paths(index))
    latest = heapq.nlargest(limit, paths, key=lambda path: _used_s(*path[:2]))
    return len(paths), [
        CacheEntry(
            tokens=end.end,
            kv_bytes=plan.num_blocks_for(end.end) * plan.block_bytes,
            state_bytes=num_snapshots * plan.bytes_per_sequence,
            num_snapshots=num_snapshots,
            hits=middle.hits,
            age_s=now_s - _used_s(middle, end),
        )
        for middle, end, num_snapshots in latest
    ]


def _used_s(middle: Run, end: Run) -> float:
    # The beginning is used by all, the end perhaps by nobody: a new question follows most of what there is.
    return max(middle.used_s, end.used_s)


def _paths(index: PrefixIndex) -> Iterator[tuple[Run, Run, int]]:
    """Of each path: the run with its middle token, that with its last, and the number of its snapshots."""
    pending = [(child, 0) for root in index.roots for child in root.children.values()]
    path: list[Run] = []
    counts: list[int] = []
    while pending:
        run, depth = pending.pop()
        del path[depth:], counts[depth:]
        path.append(run)
        counts.append((counts[-1] if counts else 0) + len(run.snapshots))
        if run.children:
            pending += [(child, depth + 1) for child in run.children.values()]
        else:
            yield path[bisect_left(path, (run.end + 1) // 2, key=lambda part: part.end)], run, counts[-1]
