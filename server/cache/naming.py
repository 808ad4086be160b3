"""Which pieces a path of tokens is made of, what they are called, and which of them some stores have. No torch.

Keys and values are in pieces of a fixed number of tokens from the root on, and a rest; a state is in a piece that goes
on from the last whole one before it, or from the root where the model has states alone.
"""

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from server.cache.pieces import Header, names_at, piece_name
from server.cache.planner import CachePlan
from server.cache.runs import Run, Tokens


class PieceNames:
    """Names for the pieces of one engine.

    Args:
        chunk_tokens: of a piece of keys and values, or a block if that is more.
    """

    def __init__(self, fingerprint: str, plan: CachePlan, *, chunk_tokens: int) -> None:
        self.fingerprint = fingerprint
        self.has_blocks, self.has_state = bool(plan.bytes_per_token), bool(plan.bytes_per_sequence)
        self.chunk = plan.block_size * max(1, chunk_tokens // plan.block_size)

    def name(self, salt: str, parent: str, tokens: Tokens, *, state: bool) -> str:
        return piece_name(self.fingerprint, salt, parent, tokens, state=state)

    def begin(self, position: int) -> int:
        """Where the piece begins that ends in the state or the rest at a position."""
        return position // self.chunk * self.chunk if self.has_blocks else 0

    def of_path(self, run: Run, length: int) -> list[str]:
        """The names of the whole pieces in the first `length` tokens of a path; its runs remember them."""
        names: list[str] = []
        end = self.chunk
        for part in reversed(list(run.path())) if self.has_blocks else ():
            while end <= min(part.end, length):
                name = part.names.get(end)
                if name is None:
                    tokens = part.tokens_between(end - self.chunk, end)
                    name = self.name(run.salt, names[-1] if names else "", tokens, state=False)
                    part.names[end] = name
                names.append(name)
                end += self.chunk
        return names


class Catalog:
    """Which pieces a store has, by what they go on from. Safe for several threads."""

    def __init__(self) -> None:
        self._changing = threading.Lock()
        self._ends: dict[tuple[str, str, bool], Counter[int]] = {}

    def add(self, header: Header) -> None:
        with self._changing:
            self._ends.setdefault(self._key(header), Counter())[header.end] += 1

    def remove(self, header: Header) -> None:
        with self._changing:
            key = self._key(header)
            ends = self._ends[key]
            ends[header.end] -= 1
            if not ends[header.end]:
                del ends[header.end]
            if not ends:
                del self._ends[key]

    def ends(self, salt: str, parent: str, *, state: bool) -> list[int]:
        """After how many tokens pieces end that go on from another."""
        with self._changing:
            return list(self._ends.get((salt, parent, state), ()))

    def __len__(self) -> int:
        with self._changing:
            return sum(ends.total() for ends in self._ends.values())

    @staticmethod
    def _key(header: Header) -> tuple[str, str, bool]:
        return header.salt, header.parent, bool(header.state_bytes)


class Catalogued(Protocol):
    """A store of pieces, of which it can be told what it has."""

    catalog: Catalog

    def header(self, name: str) -> Header | None:
        """Of a piece that can be read; None if there is none."""


@dataclass(frozen=True, slots=True)
class Way:
    """Pieces to be read in order, and how many tokens are known then."""

    names: tuple[str, ...]
    end: int


class Lookup:
    """Finds the way to the longest known beginning of a prompt, over several stores and what the device has."""

    def __init__(self, names: PieceNames, stores: Sequence[Catalogued]) -> None:
        self._names, self._stores = names, stores

    def find(self, tokens: Tokens, run: Run, *, known: int, start: int) -> Way | None:
        """The best way, if it leads further than `start`.

        Args:
            tokens: of the prompt. run, known: the run of the index in which its known tokens end, and how many they
                are. start: how many of those a sequence could go on from.
        """
        names, chunk = self._names, self._names.chunk
        chain = names.of_path(run, known)
        num_there = len(chain)
        while names.has_blocks and (end := (len(chain) + 1) * chunk) <= len(tokens):
            name = names.name(run.salt, chain[-1] if chain else "", tokens[end - chunk : end], state=False)
            if not self._have(name):
                break
            chain.append(name)
        if not names.has_state:
            last, end = self._longest(tokens, run.salt, chain, len(chain), state=False)
            way = Way((*chain[num_there:], *last), end or len(chain) * chunk)
            return way if way.end > known else None
        for number in range(len(chain), min(self._names.begin(start) // chunk, len(chain)) - 1, -1):
            last, end = self._longest(tokens[:-1], run.salt, chain, number, state=True)
            if end > start:
                return Way((*chain[num_there:number], *last), end)
        return None

    def names_on(self, run: Run) -> set[str]:
        """Of a path of the index, the names of the pieces that the stores have and that the path has as well."""
        chain = self._names.of_path(run, run.end)
        tokens = run.tokens_between(0, run.end)
        states = {position for part in run.path() for position in part.snapshots}
        found = {name for name in chain if self._have(name)}
        for number in range(len(chain) + 1):
            going_on = self._going_on(tokens, run.salt, chain, number, state=self._names.has_state)
            found |= {name for end, name in going_on if end in states or not self._names.has_state}
        return found

    def _longest(
        self, tokens: Tokens, salt: str, chain: list[str], number: int, *, state: bool
    ) -> tuple[tuple[str, ...], int]:
        going_on = self._going_on(tokens, salt, chain, number, state=state)
        return ((going_on[-1][1],), going_on[-1][0]) if going_on else ((), 0)

    def _going_on(
        self, tokens: Tokens, salt: str, chain: list[str], number: int, *, state: bool
    ) -> list[tuple[int, str]]:
        """Pieces that go on from the first `number` of a chain with these tokens, and where they end, in order."""
        parent, begin = (chain[number - 1] if number else ""), number * self._names.chunk if number else 0
        ends = {end for store in self._stores for end in store.catalog.ends(salt, parent, state=state)}
        # A state may stand right where a whole piece ends: then its own has no tokens.
        lengths = sorted(end - begin for end in ends if begin <= end <= len(tokens))
        names = names_at(self._names.fingerprint, salt, parent, tokens[begin:], lengths, state=state)
        return [(begin + length, name) for length, name in names if self._have(name)]

    def _have(self, name: str) -> bool:
        return any(store.header(name) is not None for store in self._stores)
