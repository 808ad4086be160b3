"""Takes what is on the disk into the prefix index of an engine that starts. No torch."""

import time

import numpy as np

from server.cache.memory import SequenceMemory
from server.cache.pieces import Header, Piece
from server.cache.planner import CachePlan
from server.cache.rows import CacheRows, make_copies
from server.cache.runs import Run, Tokens
from server.cache.tiers import DiskStore


class Restoring:
    """Takes path after path, into half of the bytes at most; all stay pinned until `finish`.

    `tokens` has those of each piece that was read. What a piece goes on from is always read before it.

    Args:
        until_s: when to stop, on the monotonic clock.
    """

    def __init__(
        self, store: DiskStore, plan: CachePlan, rows: CacheRows, memory: SequenceMemory, *, until_s: float
    ) -> None:
        self._store, self._plan, self._rows, self._memory, self._until_s = store, plan, rows, memory, until_s
        self._taken_blocks = self._taken_slots = 0
        self._has_state = bool(plan.bytes_per_sequence)
        self._pinned: list[tuple[Run, int]] = []  # with the number of tokens of the path
        self.tokens: dict[str, Tokens] = {}

    def take(self, name: str) -> None:
        """Read the path that ends in a piece: one with a state whole or not at all, others as far as there is room."""
        path = self._path(name)
        missing = [each for each in path if each not in self.tokens]
        if not missing or not self._fits(missing):
            return
        header = self._store.entries[missing[0]].header
        table: list[int] = []
        state = memoryview(b"")
        for each in missing:
            piece = self._read(each)
            if piece is None:
                break
            table += self._fill_blocks(piece)
            self.tokens[each], state = piece.tokens, piece.state
        known = [self.tokens[each] for each in path if each in self.tokens]
        if missing[0] in self.tokens:
            self._add(header, np.concatenate(known), table, state)

    def finish(self) -> int:
        """Let go of the paths, of the one that was of use last at last; returns how many tokens were read."""
        for run, length in reversed(self._pinned):
            if length in run.snapshots:
                self._memory.index.use_snapshot(run, length)
            self._memory.index.unpin(run)
        return sum(map(len, self.tokens.values()))

    def _path(self, name: str) -> list[str]:
        """A piece and all that it goes on from, the first of them first; none if one of them is not there."""
        path, begin = [name], self._store.entries[name].header
        while begin.parent:
            parent = self._store.entries.get(begin.parent)
            if parent is None or parent.header.end != begin.start:
                return []
            path.append(begin.parent)
            begin = parent.header
        return path[::-1] if begin.start == 0 else []

    def _fits(self, names: list[str]) -> bool:
        if not self._has_state:
            return True
        needed = sum(self._num_blocks(self._store.entries[name].header) for name in names)
        return self._memory.is_within_half(self._taken_blocks + needed, self._taken_slots + 1)

    def _num_blocks(self, header: Header) -> int:
        return self._plan.num_blocks_for(header.end) - self._plan.num_blocks_for(header.start)

    def _read(self, name: str) -> Piece | None:
        needed = self._taken_blocks + self._num_blocks(self._store.entries[name].header)
        if not self._memory.is_within_half(needed, self._taken_slots) or time.monotonic() > self._until_s:
            return None
        piece = self._store.read(name)
        if piece is None or len(piece.blocks) != self._num_blocks(piece.header) * self._plan.block_bytes:
            return None
        return piece if len(piece.state) in (0, self._plan.bytes_per_sequence) else None

    def _fill_blocks(self, piece: Piece) -> list[int]:
        count = self._num_blocks(piece.header)
        self._taken_blocks += count
        blocks = self._memory.blocks.allocate(count)
        if blocks:
            make_copies(self._rows, self._memory)
            self._rows.write_blocks(blocks, piece.blocks)
        return blocks

    def _add(self, begin: Header, tokens: Tokens, table: list[int], state: memoryview) -> None:
        """Let a path be found whose blocks are filled from a piece on that began so, and which ends in a state."""
        memory, index = self._memory, self._memory.index
        run, known = index.find(tokens, begin.salt)
        assert known >= begin.start or not table, "a piece without what it goes on from"
        run = index.extend(index.pin(run, known), tokens, [-1] * self._plan.num_blocks_for(begin.start) + table)
        if state:
            [slot] = memory.slots.allocate(1)
            self._taken_slots += 1
            make_copies(self._rows, memory)
            self._rows.write_state(slot, state)
            index.add_snapshot(run, len(tokens), slot)
        memory.blocks.release(table)
        self._pinned.append((run, len(tokens)))
