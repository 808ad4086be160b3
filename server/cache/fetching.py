"""Takes what a waiting sequence begins with from the tiers below into the prefix index, before it runs. No torch.

Files are read by threads, while others run. What the host's memory has is carried to the device beside the step
before, as much of it at once as a step may be held up. A sequence that is aborted, or whose time is over, is fetched
for no more. What cannot be read is computed.
"""

from collections import deque
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from time import monotonic

import numpy as np

from server.cache.costs import Costs
from server.cache.host import HostStore
from server.cache.memory import SequenceMemory
from server.cache.naming import Lookup, PieceNames, Way
from server.cache.pieces import Piece
from server.cache.planner import CachePlan
from server.cache.rows import CacheRows, WriteTimer, make_copies
from server.cache.runs import Tokens
from server.cache.tiers import DiskStore
from server.sequence import Sequence

MOST_OPEN = 4  # sequences that are fetched for at once
READERS = 2
READ_AHEAD = 4  # pieces of a sequence
STEP_S = 0.05  # how long the copies of a step may hold up the sequences that run
LEAST_GAIN = 16  # tokens: fewer are computed as fast as they are found


@dataclass(slots=True)
class Fetch:
    """Pieces still to be placed, those of them that are being read, and which tiers have given something."""

    tokens: Tokens
    salt: str
    names: deque[str]
    reading: dict[str, "Future[tuple[Piece | None, float]]"] = field(default_factory=dict)
    given: set[str] = field(default_factory=set)


class Placing:
    """Puts pieces of a path into the index, into rows of their own."""

    def __init__(self, memory: SequenceMemory, plan: CachePlan, rows: CacheRows) -> None:
        self._memory, self._plan, self._rows = memory, plan, rows

    def place(self, piece: Piece, tokens: Tokens, salt: str) -> bool:
        """Let what is in a piece be found; False if it is not what it should be, or has no room.

        Args:
            tokens: of the prompt that it is for.
        """
        memory, index, path = self._memory, self._memory.index, tokens[: piece.end]
        num_blocks = self._plan.num_blocks_for(piece.end) - self._plan.num_blocks_for(piece.start)
        if (
            len(piece.blocks) != num_blocks * self._plan.block_bytes
            or len(piece.state) not in (0, self._plan.bytes_per_sequence)
            or not np.array_equal(piece.tokens, path[piece.start :])
        ):
            return False
        run, known = index.find(path, salt)
        if known < piece.start and self._plan.bytes_per_token:
            return False
        run = index.pin(run, known)
        first = known // self._plan.block_size if known < len(path) else self._plan.num_blocks_for(known)
        count = max(0, self._plan.num_blocks_for(len(path)) - first)
        fits = memory.make_room(count)
        if fits and known < len(path):
            table = memory.blocks.allocate(count)
            make_copies(self._rows, memory)
            if table:
                self._rows.write_blocks([-1] * (num_blocks - count) + table, piece.blocks)
            run = index.extend(run, path, [-1] * first + table)
            memory.blocks.release(table)
        is_new = bool(piece.state) and not any(len(path) in part.snapshots for part in run.path())
        if fits and is_new:
            fits = index.free_slots(1)
            if fits:
                [slot] = memory.slots.allocate(1)
                make_copies(self._rows, memory)
                self._rows.write_state(slot, piece.state)
                index.add_snapshot(run, len(path), slot)
        index.unpin(run)
        return fits


class Fetching:
    """Owns what is being fetched, and the threads that read files.

    Args:
        host, disk: the tiers, where there are such.
    """

    def __init__(
        self,
        memory: SequenceMemory,
        plan: CachePlan,
        rows: CacheRows,
        *,
        names: PieceNames,
        costs: Costs,
        host: HostStore | None,
        disk: DiskStore | None,
    ) -> None:
        self._memory, self._costs, self._host, self._disk = memory, costs, host, disk
        self._rows, self._placing = rows, Placing(memory, plan, rows)
        self._has_blocks = names.has_blocks
        self.lookup = Lookup(names, [store for store in (host, disk) if store is not None])
        self._readers = ThreadPoolExecutor(READERS, "cache-dir-reader") if disk is not None else None
        self._open: dict[str, Fetch] = {}
        self._bytes_left = float("inf")
        # Pieces of the host's memory on their way to the device, which are theirs as long.
        self._arriving: deque[tuple[Piece, WriteTimer]] = deque()

    @property
    def request_ids(self) -> set[str]:
        """Of those for whom something is being fetched."""
        return set(self._open)

    def begin_step(self, *, holds_up: bool) -> None:
        self.note_arrivals()
        self._bytes_left = self._costs.host_rate * STEP_S if holds_up else float("inf")

    def note_arrivals(self) -> None:
        """Learn from what has arrived how fast the host's memory is read."""
        while self._arriving and (seconds := self._arriving[0][1].seconds()) is not None:
            piece, _ = self._arriving.popleft()
            self._costs.note_host(piece.header.payload_bytes, seconds)
            if self._host is not None:
                self._host.count_seconds(seconds)

    def awaits(self, sequence: Sequence) -> bool:
        """Whether a sequence whose turn it is has something to wait for; begins to fetch it, and goes on with it."""
        fetch = self._open.get(sequence.request_id)
        if fetch is None:
            if sequence.is_looked_up or not self._memory.could_admit(sequence):
                return False
            if len(self._open) >= MOST_OPEN:
                return True
            sequence.is_looked_up = True
            fetch = self._begin(sequence)
            if fetch is None:
                return False
            self._open[sequence.request_id] = fetch
        if self._advance(fetch):
            return True
        self._end(self._open.pop(sequence.request_id))
        return False

    def cancel(self, sequence: Sequence) -> None:
        fetch = self._open.pop(sequence.request_id, None)
        if fetch is not None:
            self._end(fetch, is_used=False)

    def clear(self) -> None:
        """Fetch no more for anybody: they compute."""
        for request_id in list(self._open):
            self._end(self._open.pop(request_id), is_used=False)

    def wait(self, timeout_s: float) -> bool:
        """Wait until some file is read, for so long at most; False if nobody waits for anything."""
        futures = [future for fetch in self._open.values() for future in fetch.reading.values()]
        if futures:
            wait(futures, timeout_s, FIRST_COMPLETED)
        return bool(self._open)

    def close(self) -> None:
        self.clear()
        if self._readers is not None:
            self._readers.shutdown(cancel_futures=True)

    def _begin(self, sequence: Sequence) -> Fetch | None:
        tokens, salt = sequence.as_array(), sequence.request.cache_salt
        run, known = self._memory.index.find(tokens[:-1], salt)
        start = self._memory.start_of(run, known)
        way = self.lookup.find(tokens, run, known=known, start=start)
        if way is None or not self._pays(way, min(way.end, sequence.num_usable) - start, sequence):
            return None
        for store in (self._host, self._disk):
            if store is not None and way.names[-1] in store:
                store.touch(way.names[-1])
        return Fetch(tokens, salt, deque(way.names))

    def _pays(self, way: Way, gain: int, sequence: Sequence) -> bool:
        sizes = {"host": 0, "disk": 0}
        for name in way.names:
            for tier, store in (("host", self._host), ("disk", self._disk)):
                header = None if store is None else store.header(name)
                if header is not None:
                    sizes[tier] += header.payload_bytes
                    break
        if gain < (1 if sequence.kept_piece else LEAST_GAIN):
            return False
        # States always, for they are small.
        return not self._has_blocks or self._costs.reading_pays(
            host_bytes=sizes["host"], disk_bytes=sizes["disk"], num_tokens=gain
        )

    def _advance(self, fetch: Fetch) -> bool:
        """Place what there is; False when all is placed that can be."""
        self._read_ahead(fetch)
        while fetch.names:
            name = fetch.names[0]
            if name in fetch.reading:
                if not fetch.reading[name].done():
                    return True
                piece, seconds = fetch.reading.pop(name).result()
                if piece is not None:
                    self._costs.note_disk(piece.header.payload_bytes, seconds)
                tier, place = "disk", self._place
            else:
                if self._bytes_left <= 0:
                    return True
                piece = None if self._host is None else self._host.read(name)
                tier, place = "host", self._place_timed
            if piece is None or not place(piece, fetch):
                return False
            fetch.given.add(tier)
            fetch.names.popleft()
            self._bytes_left -= piece.header.payload_bytes
            self._read_ahead(fetch)
        return False

    def _place(self, piece: Piece, fetch: Fetch) -> bool:
        return self._placing.place(piece, fetch.tokens, fetch.salt)

    def _place_timed(self, piece: Piece, fetch: Fetch) -> bool:
        timer = self._rows.time_writes()
        placed = self._place(piece, fetch)
        timer.stop()
        self._arriving.append((piece, timer))
        return placed

    def _read_ahead(self, fetch: Fetch) -> None:
        """Have the next pieces read that only the disk has."""
        if self._disk is None or self._readers is None:
            return
        for name in list(fetch.names)[:READ_AHEAD]:
            is_here = self._host is not None and name in self._host
            if name not in fetch.reading and not is_here and self._disk.header(name) is not None:
                fetch.reading[name] = self._readers.submit(_timed, self._disk.read, name)

    def _end(self, fetch: Fetch, *, is_used: bool = True) -> None:
        for future in fetch.reading.values():
            future.cancel()
        for tier, store in (("host", self._host), ("disk", self._disk)):
            if is_used and store is not None and tier in fetch.given:
                store.count_hit()


def _timed(read: Callable[[str], Piece | None], name: str) -> tuple[Piece | None, float]:
    started_s = monotonic()
    piece = read(name)
    return piece, monotonic() - started_s
