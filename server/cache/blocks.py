"""Who holds which block or state slot. Plain integers; the tensors behind them live in the runner."""

from collections import Counter
from collections.abc import Iterable
from typing import Literal

RowKind = Literal["block", "slot"]
RowCopy = tuple[RowKind, int, int]  # what is copied, from which, to which


class Pool:
    """Hands out ids from a fixed set; each is free again when all who hold it have given it back."""

    def __init__(self, size: int) -> None:
        self.size = size
        # Taken from the end: the lowest ids are used first, and a freed one is reused while still warm.
        self._free = list(range(size - 1, -1, -1))
        self._holders: dict[int, int] = {}

    @property
    def num_free(self) -> int:
        return len(self._free)

    def num_holders(self, number: int) -> int:
        return self._holders.get(number, 0)

    def allocate(self, count: int) -> list[int]:
        """Take `count` ids. Callers ask `num_free` first: running short is their decision, not an error here.

        Raises:
            ValueError: fewer are free.
        """
        if count > len(self._free):
            raise ValueError(f"{count} asked for, {len(self._free)} free")
        taken = [self._free.pop() for _ in range(count)]
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
                self._free.append(number)

    def check(self, held: Iterable[int]) -> None:
        """Assert that exactly these are held, each by as many as it is there times, and that none is lost."""
        assert Counter(held) == self._holders, "the holders disagree with the pool"
        assert len(self._free) + len(self._holders) == self.size, "one is lost"
        assert not self._holders.keys() & set(self._free), "one is free and held"
