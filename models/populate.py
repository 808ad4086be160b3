"""Memory of a cache that is there before a step writes to it.

A page that nobody has touched has to be found and cleared by the system first, in a virtual machine by two of them: a
prompt would wait for it, of a Mamba, whose states are large, longer than for its arithmetic. So a thread asks for the
memory that will be handed out next, when nothing else has to be done. What lies there is not changed, and the rest of a
cache takes no memory.
"""

import ctypes
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence

from torch import Tensor

from models.cache import whole_rows

POPULATE_WRITE = 23  # of madvise, Linux 5.14: pages become there, and writable, and keep what they hold
PAGE = 4096  # a divisor of all sizes of pages
PIECE = 8 << 20  # bytes after which the thread looks whether it shall end or wait
REST_S = 0.05  # after a step, for the next may follow
AHEAD = 1 << 30  # bytes at most of either kind of row, but no more than half of them

log = logging.getLogger("fathom.engine")


class Rows:
    """Rows of tensors on a processor, in the order in which they are handed out; how many of them are there already.

    Args:
        from_end: the last row is the first that is handed out. ahead: rows that shall be there beyond those in use;
            None: all of them.
    """

    def __init__(self, tensors: Sequence[Tensor], *, from_end: bool, ahead: int | None) -> None:
        self._tensors, self._from_end = whole_rows(tensors) if tensors else (), from_end
        self._count = len(self._tensors[0]) if self._tensors else 0
        self._row_bytes = sum(tensor.stride(0) * tensor.itemsize for tensor in self._tensors)
        self._ahead = self._count
        if ahead is not None and self._count:
            self._ahead = min(ahead, AHEAD // self._row_bytes, -(-self._count // 2))
        self._done, self._wanted = 0, self._ahead

    def want(self, used: int) -> bool:
        """So many rows are in use; whether more than before are wanted."""
        wanted = min(used + self._ahead, self._count)
        if wanted <= self._wanted:
            return False
        self._wanted = wanted
        return True

    def pieces(self) -> Iterator[tuple[int, int]]:
        """Addresses, and bytes from there on, until all that is wanted has been named."""
        while self._done < self._wanted:
            stop = min(self._done + max(1, PIECE // self._row_bytes), self._wanted)
            begin, end = (self._count - stop, self._count - self._done) if self._from_end else (self._done, stop)
            for tensor in self._tensors:
                size = tensor.stride(0) * tensor.itemsize
                first = (tensor.data_ptr() + begin * size) // PAGE * PAGE
                yield first, tensor.data_ptr() + end * size - first
            self._done = stop


class Populating:
    """A thread that populates what comes behind the rows in use, while no steps are computed: these would wait for it,
    as the threads of a step wait for one another.
    """

    def __init__(self, *parts: Rows) -> None:
        self._parts = parts  # their memory must not go while the thread works
        self._ended = False
        self._busy, self._computed_s = False, 0.0  # since when not, on the monotonic clock
        self._changed = threading.Condition()
        self._idle = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def reach(self, *used: int) -> None:
        """A step begins, and so many rows of each of the parts are in use."""
        self._busy = True
        if any([part.want(number) for part, number in zip(self._parts, used, strict=True)]):
            with self._changed:
                self._idle = False
                self._changed.notify_all()

    def rest(self) -> None:
        """The step is done."""
        self._busy, self._computed_s = False, time.monotonic()

    def wait(self, seconds: float | None = None) -> bool:
        """Until all that is wanted now is there, or cannot be, but no longer than so many seconds; whether it is."""
        with self._changed:
            self._changed.wait_for(lambda: self._idle or self._ended, seconds)
            return self._idle and not self._ended

    def close(self) -> None:
        """End it, done or not."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        if sys.platform == "linux":
            # Of this thread alone: whatever computes goes first.
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
            while self._populate() and self._wait_for_more():
                pass
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _wait_for_more(self) -> bool:
        """Wait until more is wanted; False at the end."""
        with self._changed:
            self._idle = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._ended or not self._idle)
            return not self._ended

    def _populate(self) -> bool:
        """All that is wanted; False if it was told to end, or the system has no such call or no more memory."""
        madvise = ctypes.CDLL(None, use_errno=True).madvise
        madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
        for part in self._parts:
            for address, size in part.pieces():
                while not self._ended and (self._busy or time.monotonic() < self._computed_s + REST_S):
                    time.sleep(REST_S)
                if self._ended:
                    return False
                if madvise(address, size, POPULATE_WRITE):
                    log.debug("no memory is populated ahead: %s", os.strerror(ctypes.get_errno()))
                    return False
        return True
