"""What sequences remember: the blocks and state slots that each holds, and what they leave behind for others."""

from collections import Counter
from collections.abc import Collection
from time import monotonic

from server.cache.blocks import Pool, RowCopy
from server.cache.holds import Holds
from server.cache.planner import CachePlan
from server.cache.prefix import PrefixIndex
from server.cache.runs import Run, Tokens
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
        self.blocks, self.slots = Pool(plan.num_blocks), Pool(plan.num_state_slots)
        self.index = PrefixIndex(
            self.blocks,
            self.slots,
            block_size=plan.block_size,
            token_bytes=plan.bytes_per_token,
            state_bytes=plan.bytes_per_sequence,
        )
        # Half of what there is may be held for callers, so that the others can always run.
        self.holds = Holds(self.index, max_blocks=plan.num_blocks // 2, max_snapshots=plan.num_state_slots // 2)
        self._held: dict[int, int] = {}  # of each block, how many tables it is in: the rest could be given up
        self._num_running = 0
        self._copies: list[RowCopy] = []

    @property
    def num_free_blocks(self) -> int:
        """Blocks that no sequence holds, those among them that the index keeps."""
        return self.blocks.size - len(self._held)

    @property
    def num_free_slots(self) -> int:
        """State slots that no sequence holds, those among them that are snapshots."""
        return self.slots.num_free + self.index.num_snapshots

    @property
    def num_cached_blocks(self) -> int:
        return self.num_free_blocks - self.blocks.num_free

    def admit(self, sequence: Sequence) -> bool:
        """Give a sequence all that its tokens so far need, and what is known of them; False if there is no room."""
        tokens = sequence.as_array()
        # The last token is always computed: its logits are what is wanted.
        self.holds.expire(monotonic())
        salt = sequence.request.cache_salt
        if self._admit(sequence, tokens, *self.index.find(tokens[:-1], salt)):
            return True
        # What is known may take the room that the rest needs. Where nobody runs who will end, it goes.
        if self._num_running:
            return False
        self.holds.drop()
        return self._admit(sequence, tokens, *self.index.find(tokens[:0], salt))

    def _admit(self, sequence: Sequence, tokens: Tokens, run: Run, known: int) -> bool:
        start = self.index.nearest_snapshot(run, known) if self._has_state else known
        shared = known if self._has_blocks else start
        run = self.index.pin(run, known)
        slot = None
        if self._free_blocks(self._plan.num_blocks_for(len(tokens)) - shared // self._plan.block_size):
            slot = self._begin_state(run, start if self._has_state else 0)
        if slot is None:
            self.index.unpin(run)
            return False
        self._num_running += 1
        for part in run.path() if start else ():
            part.hits += 1
        sequence.run = run
        sequence.num_computed, sequence.num_shared = start, shared
        sequence.block_table = self._begin_table(sequence, shared)
        self._hold(sequence.block_table)
        sequence.state_slot = slot
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
        needed = self._plan.num_blocks_for(len(sequence.token_ids))
        return needed <= self.num_free_blocks and self.num_free_slots > 0

    def make_room(self, num_blocks: int) -> bool:
        """Have so many blocks free; False if they cannot be."""
        return self._free_blocks(num_blocks)

    def lacks_room(self, sequence: Sequence) -> bool:
        """Whether its newest token does not fit into its blocks."""
        return self._has_blocks and sequence.num_tokens > len(sequence.block_table) * self._plan.block_size

    def grow(self, sequence: Sequence) -> bool:
        """Make room for the newest token; False if nothing can be given up for it."""
        needed = self._plan.num_blocks_for(sequence.num_tokens) - len(sequence.block_table)
        if needed > 0:
            if not self._free_blocks(needed):
                return False
            more = self.blocks.allocate(needed)
            sequence.block_table += more
            self._hold(more)
        return True

    def take_snapshots(self, sequence: Sequence, num_tokens: int) -> tuple[tuple[int, int], ...]:
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
        return tuple(sequence.taken)

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
            self._num_running -= 1
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
        self.index.check()

    def _begin_state(self, run: Run, start: int) -> int | None:
        """A slot with the state after `start` tokens of a path, where a snapshot is; None if there is no room."""
        snapshot = self.index.use_snapshot(run, start) if start else None
        if self.index.free_slots(1, keep=snapshot):
            [slot] = self.slots.allocate(1)
            if snapshot is not None:
                self._copies.append(("slot", snapshot.slot, slot))
            return slot
        return None if snapshot is None else self.index.take_snapshot(run, start)

    def _free_blocks(self, count: int) -> bool:
        # Where even all would not do, nothing is given up: who waits for room must not empty the index in vain.
        return count <= self.blocks.size - len(self._held) and self.index.free_blocks(count)

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
