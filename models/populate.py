"""Memory of a cache that is there before a step writes to it.

A page that nobody has touched has to be found and cleared by the system first, in a virtual machine by two of them: the
first prompts would pay for it, a tenth of their time. So a thread asks for the beginning of a cache while the engine
starts. What lies there is not changed, and the rest takes no memory until it is used.
"""

import ctypes
import logging
import mmap
import os
import threading
from collections.abc import Sequence

from torch import Tensor

POPULATE_WRITE = 23  # of madvise, Linux 5.14: pages become there, and writable, and keep what they hold
PIECE = 8 << 20  # bytes of a call, between which the thread can be told to end

log = logging.getLogger("fathom.engine")


def memory_of(tensors: Sequence[Tensor], share: float) -> list[tuple[int, int]]:
    """The beginning of each memory that the tensors lie in: addresses and bytes, whole pages, none twice."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    page, found = mmap.PAGESIZE, []
    for address, size in storages.items():
        begin, end = -(-address // page) * page, (address + int(size * share)) // page * page
        if end > begin:
            found.append((begin, end - begin))
    return found


class Populating:
    """A thread that populates the beginnings of what some tensors on a processor take.

    Args:
        wanted: tensors, and how many bytes of their memory, evenly among them.
    """

    def __init__(self, *wanted: tuple[Sequence[Tensor], int]) -> None:
        parts: list[tuple[int, int]] = []
        for tensors, num_bytes in wanted:
            whole = sum(size for _, size in memory_of(tensors, 1.0))
            parts += memory_of(tensors, min(1.0, num_bytes / max(1, whole)))
        self._ended = threading.Event()
        self._wanted = wanted  # their memory must not go while the thread works
        self._thread = threading.Thread(target=self._run, args=(parts,), daemon=True)
        self._thread.start()

    def wait(self) -> None:
        self._thread.join()

    def close(self) -> None:
        """End it, done or not."""
        self._ended.set()
        self.wait()

    def _run(self, parts: Sequence[tuple[int, int]]) -> None:
        if not hasattr(mmap, "MADV_NORMAL"):
            return
        madvise = ctypes.CDLL(None, use_errno=True).madvise
        madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
        for address, size in parts:
            for at in range(0, size, PIECE):
                if self._ended.is_set():
                    return
                if madvise(address + at, min(PIECE, size - at), POPULATE_WRITE):
                    log.debug("no memory is populated ahead: %s", os.strerror(ctypes.get_errno()))
                    return
