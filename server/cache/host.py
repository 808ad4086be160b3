"""The host's memory below a device's: pieces of what the device has no room for, bounded in bytes. No torch.

What goes first is what saves the fewest tokens for its bytes and was not used for longest, as in the prefix index: the
measure is the same, and so is the clock's rule. What a preempted sequence will go on from does not go.
"""

import heapq
import itertools
import time
from dataclasses import dataclass, field

from server.cache.naming import Catalog
from server.cache.pieces import TOKEN, Header, Piece
from server.counters import TierStats

PIECE_BYTES = 512  # what a piece takes beside its content, at least


@dataclass(slots=True)
class HostEntry:
    """saved: tokens that need not be computed thanks to it. pins: request ids of sequences that will go on from it.
    hits: how often it was read.
    """

    piece: Piece
    header: Header
    size: int
    saved: int
    priority: float = 0.0
    stamp: int = -1
    pins: set[str] = field(default_factory=set)
    hits: int = 0
    used_s: float = 0.0


class HostStore:
    """Owns the pieces. For one thread.

    Args:
        max_bytes: of all pieces. is_page_locked: their bytes come from an allocator that rounds up to powers of two.
    """

    def __init__(self, max_bytes: int, *, is_page_locked: bool = False) -> None:
        self._max_bytes, self._is_page_locked = max_bytes, is_page_locked
        self.entries: dict[str, HostEntry] = {}
        self.catalog = Catalog()
        self._stats = TierStats()
        self._clock = 0.0
        self._serial = itertools.count()
        self._order: list[tuple[float, int, int, str]] = []

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def header(self, name: str) -> Header | None:
        entry = self.entries.get(name)
        return None if entry is None else entry.header

    def stats(self) -> TierStats:
        """Figures as they are now; what is counted is since the start."""
        return self._stats

    def count_hit(self) -> None:
        """A sequence goes on from what was read."""
        self._stats.hits += 1

    def count_seconds(self, seconds: float) -> None:
        """How long it took to bring a piece that was read to the device."""
        self._stats.read_s += seconds

    def size_of(self, *, blocks_bytes: int, state_bytes: int, num_tokens: int) -> int:
        """What a piece takes in memory."""
        if self._is_page_locked:
            blocks_bytes, state_bytes = (
                1 << (size - 1).bit_length() if size else 0 for size in (blocks_bytes, state_bytes)
            )
        return blocks_bytes + state_bytes + num_tokens * TOKEN.itemsize + PIECE_BYTES

    def make_room(self, size: int, saved: int, *, pinned: bool = False) -> bool:
        """Give up what is worth less than a piece that saves so many tokens, until it fits; False if it does not.

        Args:
            pinned: it is worth more than all that is not.
        """
        worth = float("inf") if pinned else self._clock + saved / size
        kept = sum(entry.size for entry in self.entries.values() if entry.pins) if pinned else 0
        if size + kept > self._max_bytes:
            self._stats.skipped += 1
            return False
        while self._stats.bytes + size > self._max_bytes:
            least = self._least()
            if least is None or self.entries[least].priority > worth:
                self._stats.skipped += 1
                return False
            self._clock = max(self._clock, self.entries[least].priority)
            self._drop(least)
        return True

    def put(self, name: str, piece: Piece, saved: int) -> None:
        """Take a piece for which `make_room` has made room."""
        assert name not in self.entries, "a piece is taken twice"
        header = piece.header
        size = self.size_of(
            blocks_bytes=header.blocks_bytes, state_bytes=header.state_bytes, num_tokens=len(piece.tokens)
        )
        entry = self.entries[name] = HostEntry(piece, header, size, saved)
        self.catalog.add(header)
        self._stats.bytes += entry.size
        self._stats.writes += 1
        self._enter(name, entry)

    def read(self, name: str) -> Piece | None:
        """A piece whose bytes are there; None if it is not here."""
        entry = self.entries.get(name)
        if entry is None:
            return None
        self.touch(name)
        entry.hits += 1
        entry.piece.ready()
        self._stats.bytes_read += entry.header.payload_bytes
        return entry.piece

    def touch(self, name: str) -> None:
        """A piece was of use, and with it all that it goes on from."""
        while (entry := self.entries.get(name)) is not None:
            self._enter(name, entry)
            name = entry.header.parent

    def pin(self, name: str, request_id: str) -> None:
        """Keep a piece for a sequence, whatever wants its room, until `unpin`."""
        self.entries[name].pins.add(request_id)

    def unpin(self, name: str, request_id: str) -> None:
        """A sequence needs a piece no longer, which may have been cleared meanwhile."""
        entry = self.entries.get(name)
        if entry is not None:
            entry.pins.discard(request_id)
            self._enter(name, entry)

    def clear(self) -> None:
        for name in list(self.entries):
            self._drop(name)

    def check(self) -> None:
        """Assert that the bytes are counted rightly, within the bound, and that the catalog has what is here."""
        assert self._stats.bytes == sum(entry.size for entry in self.entries.values()) <= self._max_bytes
        assert self._stats.pieces == len(self.entries) == len(self.catalog), "pieces are counted wrongly"
        for name, entry in self.entries.items():
            assert entry.piece.name == name, "a piece bears the name of another"

    def _enter(self, name: str, entry: HostEntry) -> None:
        """Put a piece in its place in the order in which they go; of those of one path the last goes first."""
        self._stats.pieces = len(self.entries)
        entry.priority = self._clock + entry.saved / entry.size
        entry.stamp, entry.used_s = next(self._serial), time.monotonic()
        heapq.heappush(self._order, (entry.priority, -entry.header.end, entry.stamp, name))
        if len(self._order) > 64 + 4 * len(self.entries):
            self._order = [place for place in self._order if self._is_current(place)]
            heapq.heapify(self._order)

    def _is_current(self, place: tuple[float, int, int, str]) -> bool:
        entry = self.entries.get(place[-1])
        return entry is not None and entry.stamp == place[2] and not entry.pins

    def _least(self) -> str | None:
        while self._order and not self._is_current(self._order[0]):
            heapq.heappop(self._order)
        return self._order[0][-1] if self._order else None

    def _drop(self, name: str) -> None:
        entry = self.entries.pop(name)
        self.catalog.remove(entry.header)
        self._stats.bytes -= entry.size
        self._stats.pieces = len(self.entries)
