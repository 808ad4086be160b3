"""Who owns which block. Plain integers; the tensors behind them live in the runner."""


class BlockAllocator:
    """Hands out block ids from a fixed set and takes them back."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        # Taken from the end: the lowest ids are used first, and a freed block is reused while still warm.
        self._free = list(range(num_blocks - 1, -1, -1))
        self._owned: set[int] = set()

    @property
    def num_free(self) -> int:
        return len(self._free)

    def allocate(self, count: int) -> list[int]:
        """Take `count` blocks. Callers ask `num_free` first: running short is their decision, not an error here.

        Raises:
            ValueError: fewer are free.
        """
        if count > len(self._free):
            raise ValueError(f"{count} blocks asked for, {len(self._free)} free")
        taken = [self._free.pop() for _ in range(count)]
        self._owned.update(taken)
        return taken

    def release(self, blocks: list[int]) -> None:
        """Give blocks back.

        Raises:
            ValueError: one of them is not owned (freed twice, or never handed out).
        """
        for block in blocks:
            if block not in self._owned:
                raise ValueError(f"block {block} is given back but not owned")
            self._owned.remove(block)
            self._free.append(block)

    def check(self, owned: list[int]) -> None:
        """Assert that exactly the blocks in `owned` are out, each once, and that none is lost."""
        assert len(owned) == len(set(owned)), "a block is owned twice"
        assert set(owned) == self._owned, "the owners disagree with the allocator"
        assert len(self._free) + len(self._owned) == self.num_blocks, "a block is lost"
