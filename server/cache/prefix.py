"""What was computed before, found again by its tokens: a tree of runs of tokens with their blocks and snapshots.

Whoever begins with the tokens of a path from the root may use what the path remembers. Keys and values are good up to
any token: the block that a hit ends in is copied, the ones before it are shared. Recurrent state is good only where a
snapshot was taken. Nothing here knows of requests, and nothing of tensors.

When room is wanted, what goes first is what saves the fewest tokens of prefill for its bytes and was not used for
longest: everything has a priority, `clock` at its last use plus tokens saved per byte, the least goes, and `clock`
rises to its priority (Cao and Irani, "Cost-Aware WWW Proxy Caching Algorithms", 1997: GreedyDual-Size). Blocks go from
the ends of paths, snapshots from anywhere.
"""

import heapq
import itertools
from collections.abc import Callable, Iterator
from time import monotonic

import numpy as np

from server.cache.blocks import Pool, RowKind, renumber
from server.cache.runs import Run, Snapshot, Tokens, num_equal

MAX_EMPTY_ROOTS = 1024

# Priority and stamp of what may be given up: a run's end, or a run's snapshot and its position.
_End = tuple[float, int, Run]
_State = tuple[float, int, Run, int]


class PrefixIndex:
    """The tree, one root for each salt. It holds blocks and slots of two pools, and gives them up when asked to.

    Args:
        block_size: positions in a block. token_bytes, state_bytes: of keys and values for a token, and of a state; 0
            where the model remembers none.
    """

    def __init__(self, blocks: Pool, slots: Pool, *, block_size: int, token_bytes: int, state_bytes: int) -> None:
        self._blocks, self._slots = blocks, slots
        self._block_size, self._token_bytes, self._state_bytes = block_size, token_bytes, state_bytes
        self._roots: dict[str, Run] = {}
        self._clock = 0.0
        self._serial = itertools.count()
        self._ends: list[_End] = []
        self._states: list[_State] = []
        self.num_snapshots = 0
        # Told of what is about to be given up for want of room: a run's last block, a snapshot.
        self.on_block: Callable[[Run], None] | None = None
        self.on_snapshot: Callable[[Run, int], None] | None = None

    def find(self, tokens: Tokens, salt: str = "") -> tuple[Run, int]:
        """The run in which the longest known prefix of the tokens ends, and how long it is."""
        run, length = self._root(salt), 0
        while length < len(tokens):
            child = run.children.get(int(tokens[length]))
            if child is None:
                break
            equal = num_equal(child.tokens, tokens[length:])
            run, length = child, length + equal
            if equal < len(child.tokens):
                break
        return run, length

    def nearest_snapshot(self, run: Run, length: int) -> int:
        """The most tokens, at most `length`, of this path after which a state is remembered; 0 without one."""
        for part in run.path():
            positions = [position for position in part.snapshots if position <= length]
            if positions:
                return max(positions)
        return 0

    def snapshot_at(self, run: Run, position: int) -> Snapshot:
        """The path's snapshot at a position where `nearest_snapshot` found one."""
        return self._holder(run, position).snapshots[position]

    def use_snapshot(self, run: Run, position: int) -> None:
        """It is used once more."""
        self._use_snapshot(self._holder(run, position), position)

    def renumber(self, kind: RowKind, moves: dict[int, int]) -> None:
        """Blocks or slots have new numbers."""
        for run in self.runs():
            if kind == "block":
                renumber(run.blocks, moves)
            else:
                for snapshot in run.snapshots.values():
                    snapshot.slot = moves.get(snapshot.slot, snapshot.slot)

    def take_snapshot(self, run: Run, position: int) -> int:
        """Give a snapshot of the path up for good, but not its slot: that is the caller's."""
        holder = self._holder(run, position)
        slot = holder.snapshots[position].slot
        self._slots.share([slot])
        self._drop_snapshot(holder, position)
        return slot

    @staticmethod
    def _holder(run: Run, position: int) -> Run:
        return next(part for part in run.path() if position in part.snapshots)

    def blocks_of(self, run: Run, length: int, start: int = 0) -> list[int]:
        """The blocks that hold the path's positions from `start`, where one begins, up to `length`, the last of them
        perhaps in part.
        """
        before = start // self._block_size
        table = [-1] * (-(-length // self._block_size) - before)
        for part in run.path():
            if part.end <= start:
                break
            first = part.start // self._block_size - before
            for number, block in enumerate(part.blocks, first):
                # The deepest run that has a position has it whole.
                if 0 <= number < len(table) and table[number] < 0:
                    table[number] = block
        return table

    def pin(self, run: Run, length: int) -> Run:
        """Keep the path up to `length` from being given up; returns the run that ends there, which `unpin` takes."""
        while run.parent is not None and length <= run.start:
            run = run.parent
        if run.start < length < run.end:
            run = self._split(run, length)
        run.pins += 1
        now_s = monotonic()
        for part in run.path():
            part.used, part.used_s = self._clock, now_s
        return run

    def unpin(self, run: Run) -> None:
        run.pins -= 1
        assert run.pins >= 0, "a run is unpinned twice"
        self._tidy(run)

    def extend(self, run: Run, tokens: Tokens, table: list[int]) -> Run:
        """Add what a sequence computed after a pinned run; returns the run that ends there, pinned in its place.

        Args:
            tokens: of the whole path, from the root. table: the sequence's blocks for them, of which new runs hold
                those that others have not brought already.
        """
        last, length = run, run.end
        while length < len(tokens):
            child = last.children.get(int(tokens[length]))
            if child is None:
                last = self._add(last, tokens[length:], table)
                break
            equal = num_equal(child.tokens, tokens[length:])
            last = child if equal == len(child.tokens) else self._split(child, length + equal)
            length += equal
        if last is not run:
            last.pins += 1
            self.unpin(run)
            last.used, last.used_s = self._clock, monotonic()
        return last

    def add_snapshot(self, run: Run, position: int, slot: int) -> None:
        """Take over a slot with the state after `position` tokens of the path; one that is there already stays."""
        holder = next(part for part in run.path() if part.start < position)
        assert position <= holder.end, "a snapshot beyond what is known"
        if position in holder.snapshots:
            self._slots.release([slot])
            return
        holder.snapshots[position] = Snapshot(slot)
        self.num_snapshots += 1
        self._use_snapshot(holder, position)
        self._rate_next(holder, position)

    def worth(self, saved: int) -> float:
        """The priority that a snapshot would have that saves so many tokens."""
        return self._clock + saved / self._state_bytes

    def free_blocks(self, count: int) -> bool:
        """Give up what is worth least until so many blocks are free; False if that cannot be."""
        return self.make_room(count, 0)

    def free_slots(self, count: int, *, below: float = float("inf"), keep: Snapshot | None = None) -> bool:
        """The same for slots."""
        return self.make_room(0, count, below=below, keep=keep)

    def make_room(
        self, num_blocks: int, num_slots: int, *, below: float = float("inf"), keep: Snapshot | None = None
    ) -> bool:
        """Give up what has least priority, and less than `below`, until so many blocks and slots are free at once.

        Where blocks and slots share their bytes, either makes room for the other.

        Returns:
            False if that cannot be.
        """
        kept: list[_State] = []
        while True:
            ends_help, states_help = self._who_is_short(num_blocks, num_slots)
            end = self._least_end() if ends_help else None
            state = self._least_state(keep, kept) if states_help else None
            priority = min((entry[0] for entry in (end, state) if entry is not None), default=below)
            if not (ends_help or states_help) or priority >= below:
                break
            self._clock = max(self._clock, priority)
            if end is not None and end[0] == priority:
                heapq.heappop(self._ends)
                if self.on_block is not None:
                    self.on_block(end[2])
                self._cut(end[2])
            elif state is not None:
                _, _, run, position = heapq.heappop(self._states)
                if self.on_snapshot is not None:
                    self.on_snapshot(run, position)
                self._drop_snapshot(run, position)
                self._tidy(run)
        for entry in kept:
            heapq.heappush(self._states, entry)
        return not (ends_help or states_help)

    def _who_is_short(self, num_blocks: int, num_slots: int) -> tuple[bool, bool]:
        """Whether it helps to give up ends, and snapshots, until so many blocks and slots are free."""
        arena = self._blocks.arena
        if arena and not arena.has_room(self._blocks.num_held + num_blocks, self._slots.num_held + num_slots):
            return True, True
        return self._blocks.num_free < num_blocks, self._slots.num_free < num_slots

    def clear(self) -> None:
        """Give up everything that no sequence goes on from."""
        for run in [run for run in self.runs() if run.parent is not None]:
            for position in list(run.snapshots):
                self._drop_snapshot(run, position)
        for run in sorted(self.runs(), key=lambda run: -run.start):
            while run.parent is not None and not run.children and not run.pins:
                self._cut(run)

    @property
    def roots(self) -> tuple[Run, ...]:
        return tuple(self._roots.values())

    def runs(self) -> Iterator[Run]:
        """All runs, roots included."""
        pending = list(self._roots.values())
        while pending:
            run = pending.pop()
            yield run
            pending += run.children.values()

    def check(self) -> None:
        """Assert that the tree is one, and that each run has the blocks of its positions."""
        count = 0
        for run in self.runs():
            count += len(run.snapshots)
            if run.parent is None:
                assert not len(run.tokens), "a root has tokens"
                assert not run.snapshots, "a root has snapshots"
                continue
            assert len(run.tokens), "an empty run"
            assert run.start == run.parent.end, "a run does not begin where its parent ends"
            assert run.parent.children[int(run.tokens[0])] is run, "a parent does not know its child"
            assert all(run.start < position <= run.end for position in run.snapshots), "a snapshot of another run"
            assert len(run.blocks) == self._num_blocks(run.start, run.end), "a run lacks blocks"
        assert count == self.num_snapshots, "snapshots are counted wrongly"

    def _root(self, salt: str) -> Run:
        if salt not in self._roots:
            if len(self._roots) >= MAX_EMPTY_ROOTS:
                self._roots = {salt: root for salt, root in self._roots.items() if root.children or root.pins}
            self._roots[salt] = Run(None, 0, np.empty(0, np.int32), [], {}, {}, salt=salt)
        return self._roots[salt]

    def _num_blocks(self, start: int, end: int) -> int:
        return -(-end // self._block_size) - start // self._block_size if self._token_bytes else 0

    def _add(self, parent: Run, tokens: Tokens, table: list[int]) -> Run:
        first = parent.end // self._block_size
        blocks = table[first : first + self._num_blocks(parent.end, parent.end + len(tokens))]
        self._blocks.share(blocks)
        run = Run(parent, parent.end, tokens.copy(), blocks, {}, {}, salt=parent.salt)
        parent.children[int(tokens[0])] = run
        return run

    def _split(self, run: Run, length: int) -> Run:
        """Divide a run after `length` tokens of its path; the run itself becomes the lower part, its upper is new."""
        parent, count = run.parent, length - run.start
        assert parent is not None
        blocks = run.blocks[: self._num_blocks(run.start, length)]
        lower = run.blocks[length // self._block_size - run.start // self._block_size :]
        self._blocks.share(set(blocks) & set(lower))  # one that holds positions of both
        upper = Run(parent, run.start, run.tokens[:count], blocks, {}, {int(run.tokens[count]): run})
        upper.used, upper.used_s, upper.hits = run.used, run.used_s, run.hits
        upper.salt, upper.names, upper.kept, upper.needed = run.salt, dict(run.names), run.kept, run.needed
        upper.snapshots = {p: snapshot for p, snapshot in run.snapshots.items() if p <= length}
        for position in upper.snapshots:
            self._enter(upper, position)
        run.snapshots = {p: snapshot for p, snapshot in run.snapshots.items() if p > length}
        run.parent, run.start, run.tokens, run.blocks = upper, length, run.tokens[count:], lower
        parent.children[int(upper.tokens[0])] = upper
        return upper

    def _use_snapshot(self, run: Run, position: int) -> None:
        snapshot = run.snapshots[position]
        snapshot.saved = position - self._before(run, position)
        snapshot.priority = self.worth(snapshot.saved)
        self._enter(run, position)

    def _enter(self, run: Run, position: int) -> None:
        """Put a snapshot in its place in the order in which they go; of the same priority, behind the others."""
        snapshot = run.snapshots[position]
        snapshot.stamp = next(self._serial)
        heapq.heappush(self._states, (snapshot.priority, snapshot.stamp, run, position))

    def _before(self, run: Run, position: int) -> int:
        return self.nearest_snapshot(run, position - 1)

    def _rate_next(self, run: Run, position: int) -> None:
        """What the next snapshot of the same run saves has changed; when it was used has not."""
        after = min((p for p in run.snapshots if p > position), default=None)
        if after is not None:
            snapshot = run.snapshots[after]
            used = snapshot.priority - snapshot.saved / self._state_bytes
            snapshot.saved = after - self._before(run, after)
            snapshot.priority = used + snapshot.saved / self._state_bytes
            self._enter(run, after)

    def _offer(self, run: Run) -> None:
        """A run that nothing goes on from may be given up from its end."""
        if run.blocks and not run.children and not run.pins and run.parent is not None:
            run.stamp = next(self._serial)
            heapq.heappush(self._ends, (self._end_priority(run), run.stamp, run))

    def _end_priority(self, run: Run) -> float:
        """That of a run's last block. In a model with states, blocks are of use only up to a snapshot."""
        if not self._state_bytes:
            return run.used + 1 / self._token_bytes
        end = self._last_block_start(run)
        return max((s.priority for position, s in run.snapshots.items() if position > end), default=run.used)

    def _last_block_start(self, run: Run) -> int:
        return max(run.start, (run.end - 1) // self._block_size * self._block_size)

    def _least_end(self) -> _End | None:
        """The first in the order of ends; it stays there."""
        while self._ends:
            _, stamp, run = entry = self._ends[0]
            if stamp == run.stamp and run.parent is not None and not run.children and not run.pins:
                return entry
            heapq.heappop(self._ends)
        return None

    def _least_state(self, keep: Snapshot | None, kept: list[_State]) -> _State | None:
        """The same of snapshots; those that must not go are taken out, into `kept`."""
        while self._states:
            _, stamp, run, position = entry = self._states[0]
            snapshot = run.snapshots.get(position)
            if snapshot is not None and snapshot.stamp == stamp:
                if snapshot is not keep and not snapshot.is_held:
                    return entry
                kept.append(entry)
            heapq.heappop(self._states)
        return None

    def _cut(self, run: Run) -> None:
        """Give up the last block of a run and what needs it; where the model has no blocks, all of the run."""
        if run.blocks:
            end = self._last_block_start(run)
            self._blocks.release([run.blocks.pop()])
        else:
            end = run.start
        for position in [p for p in run.snapshots if p > end]:
            self._drop_snapshot(run, position)
        parent = self._shorten(run, end)
        if parent is None:
            self._offer(run)
        else:
            self._tidy(parent)

    def _shorten(self, run: Run, end: int) -> Run | None:
        """Forget a run's tokens from `end` on. If none is left the run goes, and its former parent is returned."""
        if end > run.start:
            run.tokens = run.tokens[: end - run.start]
            return None
        parent = run.parent
        assert parent is not None
        del parent.children[int(run.tokens[0])]
        run.tokens, run.parent = run.tokens[:0], None
        return parent

    def _drop_snapshot(self, run: Run, position: int) -> None:
        self._slots.release([run.snapshots.pop(position).slot])
        self.num_snapshots -= 1
        self._rate_next(run, position)

    def _tidy(self, run: Run) -> None:
        """After something ended: what nothing needs any more goes, what nothing goes on from may be given up."""
        last: Run | None = run
        while last is not None and last.parent is not None and not last.children and not last.pins:
            if self._token_bytes:
                self._offer(last)
                return
            last = self._shorten(last, max(last.snapshots, default=last.start))
