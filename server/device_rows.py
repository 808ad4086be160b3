"""The bytes of blocks and of states, to and from the host's memory. The torch half of the tiers below the device."""

from collections.abc import Callable, Sequence
from time import monotonic

import torch
from torch import Tensor

from models.cache import LayerCache, RowCopy, block_tensors, copy_rows, read_rows, state_tensors, write_rows
from server.cache.rows import WriteTimer


class DeviceRows:
    """What `server.cache.rows.CacheRows` says, over the tensors of all layers.

    On a GPU rows are gathered on the stream of the steps, in their order, and then carried into page-locked memory on a
    stream of their own, while steps go on. What is written is carried over on a third, while the step before goes on.
    """

    def __init__(self, caches: Sequence[LayerCache], device: torch.device) -> None:
        self._caches = caches
        self._blocks, self._states = block_tensors(caches), state_tensors(caches)
        self._down = self._up = None
        if device.type == "cuda":
            self._down, self._up = (torch.cuda.Stream(device) for _ in range(2))  # type: ignore[no-untyped-call]

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
        if self._down is None:
            return _nothing_to_wait_for
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(self._down)
        return event.synchronize

    def write_blocks(self, blocks: Sequence[int], content: memoryview) -> None:
        """Put back what `read_blocks` gave; blocks that are -1 are left out."""
        write_rows(self._blocks, blocks, content, stream=self._up)

    def write_state(self, slot: int, content: memoryview) -> None:
        """Put back what `read_state` gave."""
        write_rows(self._states, [slot], content, stream=self._up)

    def time_writes(self) -> WriteTimer:
        """Times what is written from now on until the timer is stopped."""
        return ProcessorTimer() if self._up is None else StreamTimer(self._up)

    def _read(self, tensors: Sequence[Tensor], rows: Sequence[int]) -> memoryview:
        return read_rows(tensors, rows, stream=self._down)


class ProcessorTimer:
    """On a processor what is written is there at once."""

    def __init__(self) -> None:
        self._started_s, self._seconds = monotonic(), 0.0

    def stop(self) -> None:
        self._seconds = monotonic() - self._started_s

    def seconds(self) -> float | None:
        return self._seconds


class StreamTimer:
    """Of what a GPU's stream does."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._stream = stream
        self._begin, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        self._begin.record(stream)

    def stop(self) -> None:
        self._end.record(self._stream)

    def seconds(self) -> float | None:
        has_arrived = self._end.query()  # type: ignore[no-untyped-call]
        return self._begin.elapsed_time(self._end) / 1000 if has_arrived else None


def _nothing_to_wait_for() -> None:
    """On a processor what is read is there at once."""
