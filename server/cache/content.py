"""What the tiers hold, to be looked at: paths by length and use, without their tokens and salts."""

import heapq
import time
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from typing import Literal

from server.cache.host import HostStore
from server.cache.naming import Lookup
from server.cache.pieces import Header
from server.cache.planner import CachePlan
from server.cache.prefix import PrefixIndex
from server.cache.runs import Run
from server.cache.tiers import DiskStore
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


def lower_entries(
    index: PrefixIndex, lookup: Lookup, *, host: HostStore | None, disk: DiskStore | None, now_s: float
) -> list[CacheEntry]:
    """The ends of what is kept below the device and not on it; on the disk, what is not in the host's memory either."""
    known: set[str] = set()
    for run in index.runs():
        if run.parent is not None and not run.children:
            known |= lookup.names_on(run)
    entries: list[CacheEntry] = []
    if host is not None:
        uses = {name: (entry.hits, now_s - entry.used_s) for name, entry in host.entries.items()}
        entries += _ends("host", {name: entry.header for name, entry in host.entries.items()}, uses, known)
        known |= host.entries.keys()
    if disk is not None:
        files, wall_s = dict(disk.entries), time.time()
        uses = {name: (entry.hits, wall_s - entry.used_ns / 1e9) for name, entry in files.items()}
        entries += _ends("disk", {name: entry.header for name, entry in files.items()}, uses, known)
    return entries


def _ends(
    tier: Literal["host", "disk"],
    headers: Mapping[str, Header],
    uses: Mapping[str, tuple[int, float]],
    known: set[str],
) -> Iterator[CacheEntry]:
    """An entry for each piece that nothing goes on from, with what it goes on from in the same tier."""
    parents = {header.parent for header in headers.values()}
    for name in headers.keys() - parents - known:
        end, kv_bytes, each = headers[name], 0, headers.get(name)
        while each is not None:
            kv_bytes += each.blocks_bytes
            each = headers.get(each.parent)
        hits, age_s = uses[name]
        yield CacheEntry(end.end, kv_bytes, end.state_bytes, int(end.state_bytes > 0), hits, max(0.0, age_s), tier)


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
