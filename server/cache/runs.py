"""Runs of tokens, of which the prefix index is made, with what is remembered of them."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int32]


def num_equal(a: Tokens, b: Tokens) -> int:
    """How many tokens two runs have in common at their beginning."""
    length = min(len(a), len(b))
    differs = a[:length] != b[:length]
    return int(differs.argmax()) if differs.any() else length


@dataclass(slots=True)
class Snapshot:
    """A state after some tokens of a path. saved: tokens that need not be computed thanks to it. stamp: of its place in
    the order in which things go. is_held: it does not go, whatever its place.
    """

    slot: int
    saved: int = 0
    priority: float = 0.0
    stamp: int = -1
    is_held: bool = False


@dataclass(slots=True, eq=False)
class Run:
    """Tokens start .. end of a path, and what is remembered of them.

    blocks: those with the positions start .. end; the first may also be the parent's last. snapshots: by the number of
    tokens from the root that they stand after, start < number <= end. pins: sequences that go on from here. used:
    the clock when it last was. stamp: as in a snapshot. hits: sequences that found it. used_s: when it last was used,
    on the machine's clock. salt: of the path's root.

    For the tiers below (server/cache/offload.py): names, of the pieces that end at these positions; kept: what lies
    from there on has been handed down already; needed: up to here blocks are of use to states that were handed down.
    """

    parent: "Run | None"
    start: int
    tokens: Tokens
    blocks: list[int]
    snapshots: dict[int, Snapshot]
    children: dict[int, "Run"]
    pins: int = 0
    used: float = 0.0
    stamp: int = -1
    hits: int = 0
    used_s: float = 0.0
    salt: str = ""
    names: dict[int, str] = field(default_factory=dict)
    kept: int = sys.maxsize
    needed: int = 0

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)

    def path(self) -> "Iterator[Run]":
        """This run and all before it, the root last."""
        run: Run | None = self
        while run is not None:
            yield run
            run = run.parent

    def tokens_between(self, start: int, stop: int) -> Tokens:
        """The path's tokens from position `start` up to `stop`."""
        parts = []
        for run in self.path():
            if run.end <= start:
                break
            parts.append(run.tokens[max(0, start - run.start) : max(0, stop - run.start)])
        return np.concatenate(parts[::-1]) if parts else np.empty(0, np.int32)
