"""What sequences remember: the blocks and state slots that each holds, and what they leave behind for others."""

from collections import Counter
from collections.abc import Collection
from time import monotonic

from server.cache.blocks import Arena, Pool, RowCopy, RowKind, renumber
from server.cache.holds import Holds
from server.cache.planner import CachePlan
from server.cache.prefix import PrefixIndex
from server.cache.runs import Run, Snapshot, Tokens
from server.sequence import Sequence

LEAST_GAP = 16  # tokens that a snapshot at a divergence must save: fewer are computed as fast as copied


class SequenceMemory:
    """Gives sequences their blocks and slots, and takes them back into the prefix index.

    A sequence that is admitted begins with what the index knows of its tokens: whole blocks are shared, a block that
    the known part ends in is copied, and so is the state of the nearest snapshot. What it computes is added to the
    index as it goes; when it ends or is preempted it leaves all of it there, where it stays until room is wanted.

    Args:
        snapshot_every: tokens between the snapshots that a long prompt leaves. caches: whether anything is left at all.
    """

    def __init__(self, plan: CachePlan, *, snapshot_every: int, caches: bool = True) -> None:
        self._plan, self._every, self._caches = plan, snapshot_every, caches
        self._has_blocks, self._has_state = bool(plan.bytes_per_token), bool(plan.bytes_per_sequence)
        self.blocks = Pool(plan.num_blocks, row_bytes=plan.block_row_bytes)
        self.slots = Pool(plan.num_state_slots, row_bytes=plan.slot_row_bytes, from_top=True)
        self._arena = None
        if plan.arena_bytes is not None:
            self._arena = Arena(plan.arena_bytes, self.blocks, self.slots, self._renumber)
        self.index = PrefixIndex(
            self.blocks,
            self.slots,
            block_size=plan.block_size,
            token_bytes=plan.bytes_per_token,
            state_bytes=plan.bytes_per_sequence,
        )
        # No more may be held for callers, so that the others can always run.
        self.holds = Holds(self.index, fits=self.is_within_half)
        self._held: dict[int, int] = {}  # of each block, how many tables it is in: the rest could be given up
        self._running: set[Sequence] = set()
        self._copies: list[RowCopy] = []

    def is_within_half(self, num_blocks: int, num_slots: int) -> bool:
        """Whether so many blocks and slots together take half of what there is at most."""
        if self._arena is not None:
            return self._arena.has_room(2 * num_blocks, 2 * num_slots)
        return 2 * num_blocks <= self.blocks.size and 2 * num_slots <= self.slots.size

    @property
    def num_free_blocks(self) -> int:
        """Blocks that sequences do not hold and could, if all that is kept for others went."""
        held, size = len(self._held), self.blocks.size
        if self._arena is None:
            return size - held
        return (
            min(size, (self._arena.total_bytes - self._num_used_slots * self.slots.row_bytes) // self.blocks.row_bytes)
            - held
        )

    @property
    def num_free_slots(self) -> int:
        """The same of state slots."""
        used, size = self._num_used_slots, self.slots.size
        if self._arena is None:
            return size - used
        return (
            min(size, (self._arena.total_bytes - len(self._held) * self.blocks.row_bytes) // self.slots.row_bytes)
            - used
        )

    def num_more(self, num_tokens: int) -> int:
        """Sequences of a length that there is room for beside those that run, if all that is kept for others went."""
        needed = self._plan.num_blocks_for(num_tokens)
        if self._arena is not None:
            used = len(self._held) * self.blocks.row_bytes + self._num_used_slots * self.slots.row_bytes
            return min(self.num_free_slots, (self._arena.total_bytes - used) // self._plan.bytes_for(num_tokens))
        fits = self.num_free_blocks // needed if needed else self.num_free_slots
        return min(self.num_free_slots, fits) if self._has_state else fits

    @property
    def extents(self) -> tuple[int, int]:
        """How many blocks and how many slots in the order in which they are handed out: all beyond are free."""
        return self.blocks.extent, self.slots.extent

    @property
    def num_cached_blocks(self) -> int:
        """Blocks that are kept for others and that no sequence holds."""
        return self.blocks.num_held - len(self._held)

    @property
    def _num_used_slots(self) -> int:
        return self.slots.num_held - self.index.num_snapshots

    def admit(self, sequence: Sequence) -> bool:
        """Give a sequence all that its tokens so far need, and what is known of them; False if there is no room."""
        tokens = sequence.as_array()
        self.holds.expire(monotonic())
        salt = sequence.request.cache_salt
        if self._admit(sequence, tokens, *self.index.find(tokens[: sequence.num_usable], salt)):
            return True
        # What is known may take the room that the rest needs. Where nobody runs who will end, it goes.
        if self._running:
            return False
        self.holds.drop()
        return self._admit(sequence, tokens, *self.index.find(tokens[:0], salt))

    def _admit(self, sequence: Sequence, tokens: Tokens, run: Run, known: int) -> bool:
        start = self.index.nearest_snapshot(run, known) if self._has_state else known
        shared = known if self._has_blocks else start
        run = self.index.pin(run, known)
        needed = self._plan.num_blocks_for(len(tokens)) - shared // self._plan.block_size
        slot = self._begin_state(run, start if self._has_state else 0, needed)
        if slot is None:
            self.index.unpin(run)
            return False
        for part in run.path() if start else ():
            part.hits += 1
        sequence.run = run
        sequence.num_computed, sequence.num_shared = start, shared
        # Before it gets its blocks, for which its slot may have to move.
        sequence.state_slot = slot
        self._running.add(sequence)
        sequence.block_table = self._begin_table(sequence, shared)
        self._hold(sequence.block_table)
        sequence.wanted = self._wanted(sequence, start, known) if self._has_state and self._caches else []
        return True

    def num_known(self, tokens: Tokens, salt: str) -> int:
        """How many of these tokens a sequence would not have to compute."""
        return self.start_of(*self.index.find(tokens, salt))

    def start_of(self, run: Run, known: int) -> int:
        """Where a sequence begins of which so many tokens are known, in a path that goes through this run."""
        return self.index.nearest_snapshot(run, known) if self._has_state else known

    def could_admit(self, sequence: Sequence) -> bool:
        """Whether there would be room for a sequence if all went that may go."""
        return self._could_have(self._plan.num_blocks_for(len(sequence.token_ids)), 1)

    def make_room(self, num_blocks: int) -> bool:
        """Have so many blocks free; False if they cannot be."""
        return self._make_room(num_blocks, 0)

    def lacks_room(self, sequence: Sequence) -> bool:
        """Whether its newest token does not fit into its blocks."""
        return self._has_blocks and sequence.num_tokens > len(sequence.block_table) * self._plan.block_size

    def grow(self, sequence: Sequence) -> bool:
        """Make room for the newest token; False if nothing can be given up for it."""
        needed = self._plan.num_blocks_for(sequence.num_tokens) - len(sequence.block_table)
        if needed > 0:
            if not self._make_room(needed, 0):
                return False
            more = self.blocks.allocate(needed)
            sequence.block_table += more
            self._hold(more)
        return True

    def take_snapshots(self, sequence: Sequence, num_tokens: int) -> None:
        """Slots for the snapshots that the sequence shall leave within its next tokens, where they are worth it."""
        stop = sequence.num_computed + num_tokens
        due = [position for position in sequence.wanted if position <= stop]
        sequence.wanted = sequence.wanted[len(due) :]
        before = sequence.num_computed
        for position in due:
            if self.index.free_slots(1, below=self.index.worth(position - before)):
                [slot] = self.slots.allocate(1)
                sequence.taken.append((position, slot))
                before = position

    @property
    def has_copies(self) -> bool:
        return bool(self._copies)

    def take_copies(self) -> tuple[RowCopy, ...]:
        """What must be copied before the next step, in this order: each as if it had been when it was asked for."""
        copies, self._copies = tuple(self._copies), []
        return copies

    def commit(self, sequence: Sequence) -> None:
        """Let others find what a running sequence has computed, and the snapshots that it has left."""
        run = sequence.run
        assert run is not None
        if self._caches and sequence.num_computed > run.end:
            tokens = sequence.as_array()[: sequence.num_computed]
            sequence.run = run = self.index.extend(run, tokens, sequence.block_table)
        for position, slot in sequence.taken:
            self.index.add_snapshot(run, position, slot)
        sequence.taken = []
        marks, kept = sequence.request.marks, sequence.num_marks_kept
        while self._caches and kept < len(marks) and marks[kept] <= run.end:
            self.holds.keep(run, marks[kept], monotonic() + sequence.request.mark_ttl_s[kept])
            kept += 1
        sequence.num_marks_kept = kept

    def release(self, sequence: Sequence) -> None:
        """Take back all that a sequence holds; what it has computed stays for others as long as there is room."""
        if sequence.run is not None:
            assert sequence.state_slot is not None
            self.commit(sequence)
            keeps = self._caches and self._has_state and sequence.num_computed == sequence.run.end > 0
            if keeps:
                self.index.add_snapshot(sequence.run, sequence.num_computed, sequence.state_slot)
            else:
                self.slots.release([sequence.state_slot])
            self._let_go(sequence.block_table)
            self.blocks.release(sequence.block_table)
            self.index.unpin(sequence.run)
            self._running.discard(sequence)
        sequence.run = sequence.state_slot = sequence.table = None
        sequence.block_table, sequence.wanted = [], []

    def clear(self) -> None:
        """Give up all that no sequence uses."""
        self.holds.drop()
        self.index.clear()

    def check(self, sequences: Collection[Sequence]) -> None:
        """Assert that every block and slot is held by whom the pools think, and that nothing is lost."""
        blocks = [block for run in self.index.runs() for block in run.blocks]
        slots = [snapshot.slot for run in self.index.runs() for snapshot in run.snapshots.values()]
        for sequence in sequences:
            blocks += sequence.block_table
            slots += [slot for _, slot in sequence.taken]
            if sequence.state_slot is not None:
                slots.append(sequence.state_slot)
        assert self._held == Counter(block for sequence in sequences for block in sequence.block_table)
        self.blocks.check(blocks)
        self.slots.check(slots)
        assert len(slots) == len(set(slots)), "a state slot has two holders"
        if self._arena is not None:
            self._arena.check()
        self.index.check()

    def _begin_state(self, run: Run, start: int, num_blocks: int) -> int | None:
        """A slot with the state after `start` tokens of a path, where a snapshot is, and room for so many blocks beside
        it; None if there is none.
        """
        snapshot = self.index.snapshot_at(run, start) if start else None
        if self._make_room(num_blocks, 1, keep=snapshot):
            [slot] = self.slots.allocate(1)
            if snapshot is not None:
                self.index.use_snapshot(run, start)
                self._copies.append(("slot", snapshot.slot, slot))
            return slot
        if snapshot is not None and self._make_room(num_blocks, 0, keep=snapshot):
            return self.index.take_snapshot(run, start)
        return None

    def _make_room(self, num_blocks: int, num_slots: int, *, keep: Snapshot | None = None) -> bool:
        # Where even all would not do, nothing is given up: who waits for room must not empty the index in vain.
        return self._could_have(num_blocks, num_slots) and self.index.make_room(num_blocks, num_slots, keep=keep)

    def _could_have(self, num_blocks: int, num_slots: int) -> bool:
        """Whether so many more fit beside what sequences hold."""
        blocks, slots = len(self._held) + num_blocks, self._num_used_slots + num_slots
        if blocks > self.blocks.size or slots > self.slots.size:
            return False
        return self._arena is None or self._arena.has_room(blocks, slots)

    def _renumber(self, kind: RowKind, moves: dict[int, int]) -> None:
        """Have rows copied that moved, and tell all who know them by their numbers."""
        self._copies += [(kind, source, target) for source, target in moves.items()]
        self.index.renumber(kind, moves)
        if kind == "block":
            self._held = {moves.get(block, block): count for block, count in self._held.items()}
            for sequence in self._running:
                if renumber(sequence.block_table, moves):
                    sequence.table = None
            return
        for sequence in self._running:
            if sequence.state_slot is not None:
                sequence.state_slot = moves.get(sequence.state_slot, sequence.state_slot)
            sequence.taken = [(position, moves.get(slot, slot)) for position, slot in sequence.taken]

    def _hold(self, blocks: list[int]) -> None:
        for block in blocks:
            self._held[block] = self._held.get(block, 0) + 1

    def _let_go(self, blocks: list[int]) -> None:
        for block in blocks:
            if self._held[block] == 1:
                del self._held[block]
            else:
                self._held[block] -= 1

    def _begin_table(self, sequence: Sequence, shared: int) -> list[int]:
        """The blocks of what is known, shared, and new ones for the rest."""
        assert sequence.run is not None
        if not self._has_blocks:
            return []
        known = self.index.blocks_of(sequence.run, shared)
        whole = known[: shared // self._plan.block_size]
        self.blocks.share(whole)
        table = whole + self.blocks.allocate(self._plan.num_blocks_for(len(sequence.token_ids)) - len(whole))
        if len(known) > len(whole):
            self._copies.append(("block", known[-1], table[len(whole)]))
        return table

    def _wanted(self, sequence: Sequence, start: int, known: int) -> list[int]:
        """Where snapshots are of use: regularly, before the last token, where others have gone another way, and where
        the client says that they will.
        """
        last = len(sequence.token_ids) - 1
        positions = set(range((start // self._every + 1) * self._every, last, self._every))
        positions.add(last)
        positions.update(sequence.request.marks)
        if known - start >= LEAST_GAP:
            positions.add(known)
        return sorted(position for position in positions if start < position <= last)
