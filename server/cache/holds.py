"""Beginnings of prompts that a caller asked to be kept for a while, whatever else wants their room."""

from server.cache.prefix import PrefixIndex
from server.cache.runs import Run, Snapshot


class Holds:
    """Which ends of paths are kept until when; at most `max_blocks` blocks and `max_snapshots` snapshots in all.

    What does not fit within that is not kept longer than anything else, which is no error: a hold is a hint.
    """

    def __init__(self, index: PrefixIndex, *, max_blocks: int, max_snapshots: int) -> None:
        self._index = index
        self._max_blocks, self._max_snapshots = max_blocks, max_snapshots
        self._held: dict[Run, tuple[float, int, Snapshot | None]] = {}

    def __len__(self) -> int:
        return len(self._held)

    def keep(self, run: Run, position: int, until_s: float) -> None:
        """Keep the path's first `position` tokens, and the state after them where there is a snapshot."""
        snapshot = next((part.snapshots[position] for part in run.path() if position in part.snapshots), None)
        end = self._index.pin(run, position)
        if end in self._held:
            self._index.unpin(end)
            former_s, num_blocks, snapshot = self._held[end]
            self._held[end] = max(former_s, until_s), num_blocks, snapshot
            return
        num_blocks = sum(len(part.blocks) for part in end.path())
        held = self._held.values()
        if (
            sum(entry[1] for entry in held) + num_blocks > self._max_blocks
            or sum(entry[2] is not None for entry in held) + (snapshot is not None) > self._max_snapshots
        ):
            self._index.unpin(end)
            return
        if snapshot is not None:
            snapshot.is_held = True
        self._held[end] = until_s, num_blocks, snapshot

    def expire(self, now_s: float) -> None:
        """Let go of what was to be kept until now."""
        for end in [end for end, (until_s, *_) in self._held.items() if until_s <= now_s]:
            _, _, snapshot = self._held.pop(end)
            if snapshot is not None:
                snapshot.is_held = False
            self._index.unpin(end)

    def drop(self) -> None:
        """Let go of everything."""
        self.expire(float("inf"))
