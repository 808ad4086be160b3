"""Beginnings of prompts that a caller asked to be kept for a while, whatever else wants their room."""

from collections.abc import Callable, Iterable

from server.cache.prefix import PrefixIndex
from server.cache.runs import Run, Snapshot


class Holds:
    """Which ends of paths are kept until when, as many as `fits` says of their blocks and snapshots in all.

    What does not fit within that is not kept longer than anything else, which is no error: a hold is a hint.

    Args:
        fits: whether so many blocks and so many snapshots may be held.
    """

    def __init__(self, index: PrefixIndex, *, fits: Callable[[int, int], bool]) -> None:
        self._index, self._fits = index, fits
        self._held: dict[Run, tuple[float, Snapshot | None]] = {}

    def __len__(self) -> int:
        return len(self._held)

    def keep(self, run: Run, position: int, until_s: float) -> None:
        """Keep the path's first `position` tokens, and the state after them where there is a snapshot."""
        snapshot = next((part.snapshots[position] for part in run.path() if position in part.snapshots), None)
        end = self._index.pin(run, position)
        if end in self._held:
            self._index.unpin(end)
            former_s, snapshot = self._held[end]
            self._held[end] = max(former_s, until_s), snapshot
            return
        num_snapshots = sum(snapshot is not None for _, snapshot in self._held.values())
        if not self._fits(_num_blocks([*self._held, end]), num_snapshots + (snapshot is not None)):
            self._index.unpin(end)
            return
        if snapshot is not None:
            snapshot.is_held = True
        self._held[end] = until_s, snapshot

    def expire(self, now_s: float) -> None:
        """Let go of what was to be kept until now."""
        for end in [end for end, (until_s, _) in self._held.items() if until_s <= now_s]:
            _, snapshot = self._held.pop(end)
            if snapshot is not None:
                snapshot.is_held = False
            self._index.unpin(end)

    def drop(self) -> None:
        """Let go of everything."""
        self.expire(float("inf"))


def _num_blocks(ends: Iterable[Run]) -> int:
    """Blocks of paths; what several begin with counts once."""
    return sum(len(run.blocks) for run in {run for end in ends for run in end.path()})
