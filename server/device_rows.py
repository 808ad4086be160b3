"""The bytes of blocks and of states, to and from the host's memory. The torch half of the tiers below the device."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from models.cache import LayerCache, RowCopy, block_tensors, copy_rows, read_rows, state_tensors, write_rows


class DeviceRows:
    """What `server.cache.rows.CacheRows` says, over the tensors of all layers.

    On a GPU rows are gathered on the stream of the steps, in their order, and then carried into page-locked memory on a
    stream of their own, while steps go on. What is written is waited for.
    """

    def __init__(self, caches: Sequence[LayerCache], device: torch.device) -> None:
        self._caches = caches
        self._blocks, self._states = block_tensors(caches), state_tensors(caches)
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def copy(self, copies: Sequence[RowCopy]) -> None:
        """Copy blocks and state slots, one after the other, as a step does before anything else."""
        copy_rows(self._caches, copies)

    def read_blocks(self, blocks: Sequence[int]) -> memoryview:
        """A copy of blocks, of all layers, in the host's memory."""
        return self._read(self._blocks, blocks)

    def read_state(self, slot: int) -> memoryview:
        """A copy of a state slot, of all layers, in the host's memory."""
        return self._read(self._states, [slot])

    def reads_done(self) -> Callable[[], None]:
        """Waits, in any thread, until all has arrived that was read so far."""
        if self._stream is None:
            return _nothing_to_wait_for
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(self._stream)
        return event.synchronize

    def write_blocks(self, blocks: Sequence[int], content: memoryview) -> None:
        """Put back what `read_blocks` gave; blocks that are -1 are left out."""
        write_rows(self._blocks, blocks, content)

    def write_state(self, slot: int, content: memoryview) -> None:
        """Put back what `read_state` gave."""
        write_rows(self._states, [slot], content)

    def _read(self, tensors: Sequence[Tensor], rows: Sequence[int]) -> memoryview:
        return read_rows(tensors, rows, stream=self._stream)


def _nothing_to_wait_for() -> None:
    """On a processor what is read is there at once."""
