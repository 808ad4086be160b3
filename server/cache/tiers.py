"""The disk below the cache: a directory of pieces, bounded, written by a thread of its own. Bytes only, no torch.

No caller ever waits for the disk but at the start: what shall be written is queued, in a bounded queue, and left out
where that is full. A piece is written under a temporary name and renamed when it is whole and on the disk, so that a
process may be killed at any moment. Where a directory cannot be written to, it is said once, and no more is tried.
"""

import contextlib
import fcntl
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from server.cache.naming import Catalog
from server.cache.pieces import (
    BrokenFileError,
    ForeignFileError,
    Header,
    Piece,
    encode,
    file_bytes,
    read_header,
    read_piece,
)
from server.counters import TierStats

QUEUE_BYTES = 256 << 20
LOCK_WAIT_S = 10.0  # the engine of a server that was killed may still be at its last step
SUFFIX, TEMPORARY, LOCK = ".piece", ".tmp", "lock"
SLACK = 20  # when room is made, it is a twentieth of the bound more than is needed, so that it need not be made soon

log = logging.getLogger("fathom.disk")


@dataclass(slots=True)
class Entry:
    """A piece on the disk. used_ns: when it was last written or asked for, as the file's own time says too. hits: how
    often it was read in this life.
    """

    header: Header
    size: int
    used_ns: int
    hits: int = 0


@dataclass(slots=True)
class _Queue:
    """What the writer shall do, and of the pieces that it shall write the names and the bytes."""

    jobs: "queue.SimpleQueue[Callable[[], None] | None]" = field(default_factory=queue.SimpleQueue)
    names: set[str] = field(default_factory=set)
    bytes: int = 0


def _locked(file: int) -> bool:
    """Take a file's lock, which ends with this process; False if another has it and keeps it."""
    deadline = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.1)
        else:
            return True


class DiskStore:
    """Owns the directory of one fingerprint below `root`. Its methods are for one thread, the engine's, but for `read`,
    which is for any.

    The bound is for this directory alone; those of others below `root` are not touched. One process writes to it: where
    another does already, this one only reads.

    Args:
        max_bytes: of all files; those go first that were not used for longest, an end of a path before its begin.
    """

    def __init__(self, root: Path, fingerprint: str, *, max_bytes: int) -> None:
        self._directory, self.fingerprint = root / fingerprint, fingerprint
        self._max_bytes = max_bytes
        self._queue = _Queue()
        self._changing = threading.Lock()
        self._stats = TierStats()
        self._lock: int | None = None
        self.writes = self._open()
        self.entries: dict[str, Entry] = dict(self._scan())
        self.catalog = Catalog()
        for entry in self.entries.values():
            self.catalog.add(entry.header)
        self._stats.bytes = sum(entry.size for entry in self.entries.values())
        if self.writes:
            with contextlib.suppress(OSError):
                self._make_room(0, "")
        self._writer = threading.Thread(target=self._work, name="cache-dir", daemon=True)
        self._writer.start()

    def __contains__(self, name: str) -> bool:
        """Whether a piece is on the disk or on its way there."""
        return name in self.entries or name in self._queue.names

    def header(self, name: str) -> Header | None:
        """Of a piece that can be read; None if there is none."""
        entry = self.entries.get(name)
        return None if entry is None else entry.header

    def stats(self) -> TierStats:
        """Figures as they are now; what is counted is since the start."""
        self._stats.pieces = len(self.entries)
        return self._stats

    def count_hit(self) -> None:
        """A sequence goes on from what was read."""
        self._stats.hits += 1

    def has_room(self, size: int) -> bool:
        """Whether the queue takes so many bytes; asked before they are copied, and counted as left out if not."""
        fits = self.writes and (not self._queue.bytes or self._queue.bytes + size <= QUEUE_BYTES)
        self._stats.skipped += not fits
        return fits

    def put(self, name: str, piece: Piece) -> None:
        """Have a piece written under its name some time, after its parent, which must have been put before it."""
        with self._changing:
            self._queue.names.add(name)
            self._queue.bytes += file_bytes(piece.header)
        self._queue.jobs.put(partial(self._take, name, piece))

    def touch(self, name: str) -> None:
        """A piece was of use, and with it all that it goes on from."""
        if self.writes and name in self:
            self._queue.jobs.put(partial(self._mark, name))

    def clear(self) -> None:
        """Give up everything, what waits to be written among it."""
        if self.writes:
            self._queue.jobs.put(self._clear)

    def read(self, name: str) -> Piece | None:
        """A piece, verified; None if it cannot be had, which is told, and it goes if it is broken."""
        file, started_s = self._file(name), time.monotonic()
        try:
            piece = read_piece(file)
        except (OSError, ForeignFileError, BrokenFileError) as error:
            with self._changing:
                is_known = self._forget(name) is not None
            if is_known:  # else it was given up meanwhile
                self._refuse(file, error)
            return None
        with self._changing:
            if name in self.entries:
                self.entries[name].hits += 1
            self._stats.bytes_read += file_bytes(piece.header)
            self._stats.read_s += time.monotonic() - started_s
        return piece

    def last_used(self) -> dict[str, int]:
        """When each piece was last of use: itself, or one that goes on from it."""
        entries = dict(self.entries)
        used = {name: entry.used_ns for name, entry in entries.items()}
        for name in sorted(entries, key=lambda each: -entries[each].header.end):
            parent = entries[name].header.parent
            if parent in used:
                used[parent] = max(used[parent], used[name])
        return used

    def check(self) -> None:
        """Assert that the bytes are counted rightly, and that the catalog has what is here."""
        with self._changing:
            assert self._stats.bytes == sum(entry.size for entry in self.entries.values())
            assert len(self.entries) == len(self.catalog), "pieces are counted wrongly"

    def close(self, timeout_s: float) -> None:
        """Write what is queued, for so many seconds at most; no more is taken."""
        self._queue.jobs.put(None)
        self._writer.join(timeout_s)
        if self._writer.is_alive():
            log.warning("--cache-dir: %d pieces were not written before the end", len(self._queue.names))
        elif self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _open(self) -> bool:
        """Make and lock the directory; False where it can at most be read."""
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(self._directory / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
            if _locked(self._lock):
                return True
            log.warning("--cache-dir: another process writes to %s; this one only reads", self._directory)
        except OSError as error:
            log.warning("--cache-dir: nothing is written to %s: %s", self._directory, error.strerror)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        return False

    def _file(self, name: str) -> Path:
        return self._directory / f"{name}{SUFFIX}"

    def _scan(self) -> Iterable[tuple[str, Entry]]:
        try:
            files = sorted(self._directory.iterdir())
        except OSError:
            return
        for file in files:
            if file.name == LOCK:
                continue
            if file.suffix == TEMPORARY:
                # Of a process that was killed: who has the lock is the only one who writes.
                self._remove(file)
                continue
            try:
                header = read_header(file)
                if header.fingerprint != self.fingerprint:
                    raise ForeignFileError("it is of another model or another form of the cache")
                yield file.stem, Entry(header, file_bytes(header), file.stat().st_mtime_ns)
            except (OSError, ForeignFileError, BrokenFileError) as error:
                self._refuse(file, error)

    def _refuse(self, file: Path, error: Exception) -> None:
        log.warning("--cache-dir: %s is not used: %s", file, error)
        if isinstance(error, BrokenFileError):
            self._remove(file)

    def _remove(self, file: Path) -> None:
        if self.writes:
            with contextlib.suppress(OSError):
                file.unlink()

    def _work(self) -> None:
        """The writer's thread: jobs one by one, until None comes."""
        while (job := self._queue.jobs.get()) is not None:
            try:
                job()
            except OSError as error:
                self.writes = False
                log.warning("--cache-dir: nothing more is written to %s: %s", self._directory, error.strerror or error)

    def _mark(self, name: str) -> None:
        entry = self.entries.get(name)
        if entry is not None and self.writes:
            entry.used_ns = time.time_ns()
            with contextlib.suppress(FileNotFoundError):
                os.utime(self._file(name), ns=(entry.used_ns, entry.used_ns))

    def _take(self, name: str, piece: Piece) -> None:
        """Write a piece that was queued."""
        try:
            if self.writes:
                self._write(name, piece)
        finally:
            with self._changing:
                self._queue.names.discard(name)
                self._queue.bytes -= file_bytes(piece.header)

    def _write(self, name: str, piece: Piece) -> None:
        header, size = piece.header, file_bytes(piece.header)
        if (piece.parent and piece.parent not in self.entries) or not self._make_room(size, piece.parent):
            self._stats.skipped += 1
            return
        file = self._file(name)
        temporary = file.with_suffix(TEMPORARY)
        try:
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as content:
                for part in encode(piece):
                    content.write(part)
                content.flush()
                os.fsync(content.fileno())
            temporary.rename(file)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        with self._changing:
            self.entries[name] = Entry(header, size, time.time_ns())
            self.catalog.add(header)
            self._stats.bytes += size
            self._stats.writes += 1

    def _make_room(self, size: int, parent: str) -> bool:
        """Give up what was not used for longest until a piece of `size` fits; False if that would take its path."""
        if self._stats.bytes + size <= self._max_bytes:
            return True
        kept = set(self._path(parent))
        if sum(entry.size for name in kept if (entry := self.entries.get(name))) + size > self._max_bytes:
            return False
        used = self.last_used()
        order = sorted((used[name], -entry.header.end, name) for name, entry in dict(self.entries).items())
        excess = self._stats.bytes + size - self._max_bytes + self._max_bytes // SLACK
        for _, _, name in order:
            if excess <= 0:
                break
            if name not in kept:
                excess -= self._give_up(name)
        return self._stats.bytes + size <= self._max_bytes

    def _path(self, name: str) -> Iterable[str]:
        while (entry := self.entries.get(name)) is not None:
            yield name
            name = entry.header.parent

    def _clear(self) -> None:
        for name in list(self.entries):
            self._give_up(name)

    def _give_up(self, name: str) -> int:
        with self._changing:
            entry = self._forget(name)
        if entry is None:  # a reader found it broken
            return 0
        with contextlib.suppress(FileNotFoundError):
            self._file(name).unlink()
        return entry.size

    def _forget(self, name: str) -> Entry | None:
        """Of a piece that is here; the lock is held."""
        entry = self.entries.pop(name, None)
        if entry is not None:
            self.catalog.remove(entry.header)
            self._stats.bytes -= entry.size
        return entry
