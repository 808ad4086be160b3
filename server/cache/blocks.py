"""Who holds which block or state slot. Plain integers; the tensors behind them live in the runner."""

import heapq
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Literal

RowKind = Literal["block", "slot"]
RowCopy = tuple[RowKind, int, int]  # what is copied, from which, to which


def renumber(numbers: list[int], moves: dict[int, int]) -> bool:
    """Replace the numbers that are others now; whether there were any."""
    if moves.keys().isdisjoint(numbers):
        return False
    numbers[:] = [moves.get(number, number) for number in numbers]
    return True


class Pool:
    """Hands out ids from a fixed set; each is free again when all who hold it have given it back.

    The lowest that are free go first, counted from the end on which the pool grows.

    Args:
        row_bytes: of each, where it shares its bytes with another pool. from_top: it grows from the highest id down.
    """

    def __init__(self, size: int, *, row_bytes: int = 0, from_top: bool = False) -> None:
        self.size, self.row_bytes, self._from_top = size, row_bytes, from_top
        self.arena: Arena | None = None
        # Places are ids counted from the end on which it grows. Those from the extent on are free; of those before it
        # the heap has the free ones, and perhaps some beyond it, which are forgotten when the extent grows.
        self.extent = 0
        self._free: list[int] = []
        self._holders: dict[int, int] = {}

    @property
    def num_held(self) -> int:
        return len(self._holders)

    @property
    def num_free(self) -> int:
        """How many could be handed out; where bytes are shared, if the other pool got none of them."""
        return self.most - self.num_held

    @property
    def most(self) -> int:
        """How many can be held at once, with what the other pool now holds of bytes that are shared."""
        return self.size if self.arena is None else self.arena.most(self)

    def num_holders(self, number: int) -> int:
        return self._holders.get(number, 0)

    def allocate(self, count: int) -> list[int]:
        """Take `count` ids. Callers ask `num_free` first: running short is their decision, not an error here.

        Where bytes are shared, this may give ids of the other pool, but none of this one, new numbers: `Arena.move`.

        Raises:
            ValueError: fewer are free.
        """
        if count > self.num_free:
            raise ValueError(f"{count} asked for, {self.num_free} free")
        if self.arena is not None:
            self.arena.clear_way(self, self.num_held + count)
        taken = [self._turned(self._take_place()) for _ in range(count)]
        self._holders.update(dict.fromkeys(taken, 1))
        return taken

    def share(self, numbers: Iterable[int]) -> None:
        """One holder more for each.

        Raises:
            ValueError: nobody holds one of them.
        """
        for number in numbers:
            if number not in self._holders:
                raise ValueError(f"{number} is shared, but nobody holds it")
            self._holders[number] += 1

    def release(self, numbers: Iterable[int]) -> None:
        """One holder less for each.

        Raises:
            ValueError: nobody holds one of them (freed twice, or never handed out).
        """
        for number in numbers:
            holders = self._holders.get(number)
            if holders is None:
                raise ValueError(f"{number} is given back, but nobody holds it")
            if holders > 1:
                self._holders[number] = holders - 1
            else:
                del self._holders[number]
                heapq.heappush(self._free, self._turned(number))
        self._trim()

    def shrink(self, extent: int) -> dict[int, int]:
        """Give what lies from `extent` places on lower places that are free; returns the new ids by the old ones."""
        high = [place for place in range(extent, self.extent) if self._turned(place) in self._holders]
        low = sorted(place for place in self._free if place < extent)
        moves = {self._turned(source): self._turned(target) for source, target in zip(high, low, strict=False)}
        assert len(moves) == len(high), "a pool shall be smaller than what it holds"
        for source, target in moves.items():
            self._holders[target] = self._holders.pop(source)
        self._free, self.extent = low[len(high) :], extent  # sorted, so it is a heap
        self._trim()
        return moves

    def check(self, held: Iterable[int]) -> None:
        """Assert that exactly these are held, each by as many as it is there times, and that none is lost."""
        assert Counter(held) == self._holders, "the holders disagree with the pool"
        free = [self._turned(place) for place in self._free if place < self.extent]
        assert len(free) + len(self._holders) == self.extent <= self.size, "one is lost"
        assert not self._holders.keys() & set(free), "one is free and held"
        assert all(self._turned(number) < self.extent for number in self._holders), "one lies beyond the others"

    def _turned(self, place: int) -> int:
        """An id's place, and a place's id."""
        return self.size - 1 - place if self._from_top else place

    def _take_place(self) -> int:
        if self._free and self._free[0] < self.extent:
            return heapq.heappop(self._free)
        self._free.clear()
        self.extent += 1
        return self.extent - 1

    def _trim(self) -> None:
        while self.extent and self._turned(self.extent - 1) not in self._holders:
            self.extent -= 1


class Arena:
    """Bytes that two pools share: blocks take them from the begin on, slots from the end. Either may take any.

    What is free below a pool's extent is a hole. Where a pool needs bytes that the other's extent covers, the other's
    outermost rows move into its holes: `move` is told which ids became which, and has the rows copied.
    """

    def __init__(self, total_bytes: int, blocks: Pool, slots: Pool, move: Callable[[RowKind, dict[int, int]], None]):
        self.total_bytes = total_bytes
        self._blocks, self._slots, self._move = blocks, slots, move
        blocks.arena = slots.arena = self

    def most(self, pool: Pool) -> int:
        """How many rows of a pool there is room for beside what the other one holds."""
        other = self._other(pool)
        return min(pool.size, (self.total_bytes - other.num_held * other.row_bytes) // pool.row_bytes)

    def has_room(self, num_blocks: int, num_slots: int) -> bool:
        """Whether so many of both fit at once, whoever holds them."""
        return num_blocks * self._blocks.row_bytes + num_slots * self._slots.row_bytes <= self.total_bytes

    def clear_way(self, pool: Pool, extent: int) -> None:
        """Let a pool reach so far."""
        other = self._other(pool)
        extent = max(extent, pool.extent)
        most = (self.total_bytes - extent * pool.row_bytes) // other.row_bytes
        if other.extent > most:
            self._move("slot" if other is self._slots else "block", other.shrink(most))

    def check(self) -> None:
        """Assert that no block and no slot lie on the same bytes."""
        taken = sum(pool.extent * pool.row_bytes for pool in (self._blocks, self._slots))
        assert taken <= self.total_bytes, "blocks and slots overlap"

    def _other(self, pool: Pool) -> Pool:
        return self._slots if pool is self._blocks else self._blocks
