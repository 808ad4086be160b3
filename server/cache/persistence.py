"""Decides which pieces of what sequences compute go to the disk, and takes them from there at the start. No torch.

Keys and values go in runs of whole blocks at fixed positions, so that prompts that begin alike share them there too;
recurrent states where a prompt ends, where it left the way of another, where another went on from, and where an answer
ends. A model with both has, with each state, the keys and values from the last whole run up to it: the state is of no
use without them.
"""

import logging
import time

from server.cache.costs import Costs
from server.cache.memory import SequenceMemory
from server.cache.naming import PieceNames
from server.cache.pieces import TOKEN
from server.cache.planner import CachePlan
from server.cache.restoring import Restoring
from server.cache.rows import CacheRows, PieceBegin, read_piece_from
from server.cache.runs import Tokens
from server.cache.tiers import DiskStore
from server.sequence import ScheduledBatch, ScheduledSequence, Sequence

READ_AT_MOST_S = 5.0  # at the start: what is not read then is read when it is asked for
LEAST_ANSWER = 16  # tokens: of a shorter one the end is computed as fast as it is found

log = logging.getLogger("fathom.disk")


class Persistence:
    """Between a store and the memory of an engine.

    Args:
        snapshot_every: tokens between the regular states of a prompt, which are not kept for themselves. least_tokens:
            fewer are computed as fast as they are found.
    """

    def __init__(
        self,
        store: DiskStore,
        plan: CachePlan,
        rows: CacheRows,
        *,
        names: PieceNames,
        costs: Costs,
        snapshot_every: int,
        least_tokens: int,
    ) -> None:
        self._store, self._plan, self._rows, self._every = store, plan, rows, snapshot_every
        self._names, self._costs, self._least_tokens = names, costs, least_tokens
        self._has_blocks, self._has_state = names.has_blocks, names.has_state
        self._chunk = names.chunk

    def keep(self, batch: ScheduledBatch) -> None:
        """Hand on what a step has left, before its sequences go on."""
        if self._writes:
            for part in batch.parts:
                if not part.sequence.decodes or not part.sequence.num_generated:
                    self._keep_part(part)

    def keep_answer(self, sequence: Sequence, memory: SequenceMemory) -> None:
        """Hand on what a sequence has left at its end, before anything else is taken from the memory."""
        end, index = sequence.num_computed, memory.index
        if not self._writes or end < max(self._least_tokens, sequence.num_prompt + LEAST_ANSWER):
            return
        tokens = sequence.as_array()[:end]
        run, known = index.find(tokens, sequence.request.cache_salt)
        slot = next((part.snapshots[end].slot for part in run.path() if end in part.snapshots), None)
        if known < end or (slot is None) == self._has_state:
            return
        table = index.blocks_of(run, end) if self._has_blocks else []
        self._keep_whole(sequence, end, table)
        if slot is not None or end % self._chunk >= self._least_tokens:
            self._keep_end(sequence, end, table, slot)

    @property
    def _writes(self) -> bool:
        # Keys and values that are computed sooner than read are not worth it, nor are states that need them.
        return self._store.writes and (not self._has_blocks or self._costs.disk_pays(self._plan.bytes_per_token))

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
        table = sequence.block_table
        self._keep_whole(sequence, end, table)
        if self._has_state:
            for position, slot in self._states(part):
                self._keep_end(sequence, position, table, slot)
        elif part.samples and end % self._chunk >= self._least_tokens:
            self._keep_end(sequence, end, table)
        elif sequence.pieces:
            self._store.touch(sequence.pieces[-1])

    def _keep_whole(self, sequence: Sequence, end: int, table: list[int]) -> None:
        """The whole pieces of keys and values in a sequence's first tokens."""
        for start in range(len(sequence.pieces) * self._chunk, end, self._chunk) if self._has_blocks else ():
            if start + self._chunk <= end:
                parent = sequence.pieces[-1] if sequence.pieces else ""
                sequence.pieces.append(self._keep_piece(sequence, parent, (start, start + self._chunk), table))

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
        return [(position, slot) for position, slot in states if position >= self._least_tokens]

    def _keep_end(self, sequence: Sequence, position: int, table: list[int], slot: int | None = None) -> None:
        start = self._names.begin(position)
        number = start // self._chunk
        if number <= len(sequence.pieces):
            parent = sequence.pieces[number - 1] if number else ""
            self._keep_piece(sequence, parent, (start, position), table, slot)

    def _keep_piece(
        self, sequence: Sequence, parent: str, span: tuple[int, int], table: list[int], slot: int | None = None
    ) -> str:
        """Have a piece of a sequence written, from one position to another, if it is not yet; returns its name."""
        start, end = span
        store, size, plan = self._store, self._plan.block_size, self._plan
        salt, tokens = sequence.request.cache_salt, self._tokens(sequence)[start:end]
        name = self._names.name(salt, parent, tokens, state=slot is not None)
        if name in store:
            if slot is not None or end % self._chunk:  # that its path is in use follows
                store.touch(name)
            return name
        blocks = table[start // size : plan.num_blocks_for(end)]
        total = len(blocks) * plan.block_bytes + (0 if slot is None else plan.bytes_per_sequence)
        if (not parent or parent in store) and store.has_room(total + tokens.size * TOKEN.itemsize):
            begin = PieceBegin(store.fingerprint, salt, parent, start)
            store.put(name, read_piece_from(self._rows, begin, tokens, table=blocks, slot=slot))
        return name

    @staticmethod
    def _tokens(sequence: Sequence) -> Tokens:
        assert sequence.tokens is not None
        return sequence.tokens
