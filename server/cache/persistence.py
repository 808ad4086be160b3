"""Decides which pieces of what sequences compute go to the disk, and takes them from there at the start. No torch.

Keys and values go in runs of whole blocks at fixed positions, so that prompts that begin alike share them there too;
recurrent states where a prompt ends, where it left the way of another, and where another went on from. A model with
both has, with each state, the keys and values from the last whole run up to it: the state is of no use without them.
"""

import logging
import time

from server.cache.memory import SequenceMemory
from server.cache.pieces import Piece, piece_name
from server.cache.planner import CachePlan
from server.cache.restoring import CacheRows, Restoring
from server.cache.tiers import DiskStats, DiskStore
from server.sequence import ScheduledBatch, ScheduledSequence, Sequence

CHUNK_TOKENS = 256  # of a run of keys and values, or a block if that is more
LEAST_TOKENS = 64  # fewer are computed as fast as they are found
# What a disk is taken to give. Measured it would be the rate of the system's memory, where files are read soon again.
READ_BYTES_PER_S = 500e6
READ_AT_MOST_S = 60.0  # at the start: somebody waits for it

log = logging.getLogger("fathom.disk")


class Persistence:
    """Between a store and the memory of an engine.

    Args:
        snapshot_every: tokens between the regular states of a prompt, which are not kept for themselves.
    """

    def __init__(self, store: DiskStore, plan: CachePlan, rows: CacheRows, *, snapshot_every: int) -> None:
        self._store, self._plan, self._rows, self._every = store, plan, rows, snapshot_every
        self._has_blocks, self._has_state = bool(plan.bytes_per_token), bool(plan.bytes_per_sequence)
        self._chunk = plan.block_size * max(1, CHUNK_TOKENS // plan.block_size)

    def stats(self) -> DiskStats:
        return self._store.stats()

    def clear(self) -> None:
        self._store.clear()

    def close(self, timeout_s: float) -> None:
        self._store.close(timeout_s)

    def keep(self, batch: ScheduledBatch, prefill_rate: float | None) -> None:
        """Hand on what a step has left, before its sequences go on.

        Args:
            prefill_rate: tokens per second; None while it is not known.
        """
        # Keys and values that are computed sooner than read are not worth it, nor are states that need them.
        pays = not self._has_blocks or self._plan.bytes_per_token * (prefill_rate or float("inf")) < READ_BYTES_PER_S
        if not pays or not self._store.writes:
            return
        for part in batch.parts:
            if not part.sequence.decodes or not part.sequence.num_generated:
                self._keep_part(part)

    def restore(self, memory: SequenceMemory) -> None:
        """Fill at most half of an empty memory with what was of use last."""
        started_s = time.monotonic()
        restoring = Restoring(self._store, self._plan, self._rows, memory, until_s=started_s + READ_AT_MOST_S)
        used = self._store.last_used()
        for name in sorted(self._ends(), key=lambda each: -used[each]):
            restoring.take(name)
        num_tokens = restoring.finish()
        seconds, read = time.monotonic() - started_s, self._store.stats().bytes_read
        log.info(
            "--cache-dir: read %d of %d pieces, %d tokens, %d bytes in %.2f s",
            *(len(restoring.tokens), len(self._store.entries), num_tokens, read, seconds),
        )

    def _ends(self) -> list[str]:
        """The pieces that a path is read for: those with states where the model has them, else those at the ends."""
        entries = self._store.entries
        parents = {entry.header.parent for entry in entries.values()}
        return [
            name
            for name, entry in entries.items()
            if (entry.header.state_bytes if self._has_state else name not in parents)
        ]

    def _keep_part(self, part: ScheduledSequence) -> None:
        sequence, end = part.sequence, part.sequence.num_computed + part.num_tokens
        for start in range(len(sequence.pieces) * self._chunk, end, self._chunk) if self._has_blocks else ():
            if start + self._chunk <= end:
                parent = sequence.pieces[-1] if sequence.pieces else ""
                sequence.pieces.append(self._keep_piece(sequence, parent, start, start + self._chunk))
        if self._has_state:
            for position, slot in self._states(part):
                self._keep_end(sequence, position, slot)
        elif part.samples and end % self._chunk >= LEAST_TOKENS:
            self._keep_end(sequence, end)
        elif sequence.pieces:
            self._store.touch(sequence.pieces[-1])

    def _states(self, part: ScheduledSequence) -> list[tuple[int, int]]:
        """Of a part, after how many tokens which slot has a state that is worth to be kept."""
        sequence = part.sequence
        assert sequence.tokens is not None
        last = len(sequence.tokens) - 1
        marked = {last, *sequence.request.marks}

        def qualifies(position: int) -> bool:
            # Of the regular ones those 0, 1, 2, 4, 8... intervals before the end: of two prompts that differ in their
            # last part only, the second finds one that is not much before that.
            before = last // self._every - position // self._every
            return bool(position % self._every) or position in marked or not before & (before - 1)

        states = [(position, slot) for position, slot in part.snapshots if qualifies(position)]
        start = sequence.num_computed
        if start == sequence.num_cached and sequence.run is not None:
            # It went on from another's: where one did, more will.
            states += [(start, run.snapshots[start].slot) for run in sequence.run.path() if start in run.snapshots]
        return [(position, slot) for position, slot in states if position >= LEAST_TOKENS]

    def _keep_end(self, sequence: Sequence, position: int, slot: int | None = None) -> None:
        number = position // self._chunk if self._has_blocks else 0
        if number <= len(sequence.pieces):
            parent = sequence.pieces[number - 1] if number else ""
            self._keep_piece(sequence, parent, number * self._chunk, position, slot)

    def _keep_piece(self, sequence: Sequence, parent: str, start: int, end: int, slot: int | None = None) -> str:
        """Have a piece of a sequence written, if it is not yet; returns its name."""
        assert sequence.tokens is not None
        store, size, plan = self._store, self._plan.block_size, self._plan
        salt, tokens = sequence.request.cache_salt, sequence.tokens[start:end]
        name = piece_name(store.fingerprint, salt, parent, tokens, state=slot is not None)
        if name in store:
            if slot is not None or end % self._chunk:  # that its path is in use follows
                store.touch(name)
            return name
        table = sequence.block_table[start // size : plan.num_blocks_for(end)]
        total = len(table) * plan.block_bytes + (0 if slot is None else plan.bytes_per_sequence) + tokens.nbytes
        if (not parent or parent in store) and store.has_room(total):
            blocks = self._rows.read_blocks(table) if table else memoryview(b"")
            state = memoryview(b"") if slot is None else self._rows.read_state(slot)
            store.put(name, Piece(store.fingerprint, salt, parent, start, tokens.copy(), blocks, state))
        return name
