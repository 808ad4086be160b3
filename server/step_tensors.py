"""From the parts of a step to the tensors of its forward pass, through buffers that are made once."""

import numpy as np
import torch
from numpy.typing import NDArray

from models.batch import ForwardBatch
from server.sequence import ScheduledBatch, ScheduledSequence

Integers = NDArray[np.int64]
LEAST_ENTRIES = 1 << 12


class StepTensors:
    """Fills one host buffer per step with all that the device wants of it, so that it takes one transfer.

    Two buffers in turn, so that a step can be prepared while the one before still reads its own.

    Args:
        block_size: tokens.
    """

    def __init__(self, device: torch.device, block_size: int) -> None:
        self._device, self._block_size = device, block_size
        self._buffers = [torch.empty(0, dtype=torch.int64)] * 2

    def fill(self, batch: ScheduledBatch) -> ForwardBatch:
        """The tensors of a step. They are good until the next but one is filled."""
        parts, num_tokens = batch.parts, batch.num_tokens
        widths = [len(part.sequence.block_table) for part in parts]
        count, width = len(parts), max(widths)
        sampling = sum(part.samples for part in parts)
        sizes = (num_tokens, num_tokens, num_tokens, count, sampling, count * width)
        buffer = self._take(sum(sizes))
        token_ids, positions, slots, state_slots, logit_rows, tables = (
            part.numpy() for part in buffer.split_with_sizes(sizes)
        )
        starts = np.zeros(count + 1, np.int64)
        np.cumsum([part.num_tokens for part in parts], out=starts[1:])
        contexts = np.array([part.sequence.num_computed for part in parts], np.int64)
        state_slots[:] = [part.sequence.state_slot or 0 for part in parts]
        logit_rows[:] = [stop - 1 for part, stop in zip(parts, starts[1:].tolist(), strict=True) if part.samples]
        table_rows = tables.reshape(count, width)
        for row, part, length in zip(table_rows, parts, widths, strict=True):
            row[:length] = part.sequence.as_table()
            row[length:] = -1
        self._fill_singles(parts, starts, token_ids, positions, slots)
        for part, start in zip(parts, starts.tolist(), strict=False):
            if part.num_tokens > 1:
                rows = slice(start, start + part.num_tokens)
                self._fill_run(part, token_ids[rows], positions[rows], slots[rows])
        there = buffer.to(self._device, non_blocking=True).split_with_sizes(sizes)
        return ForwardBatch(
            token_ids=there[0],
            positions=there[1],
            query_start=torch.from_numpy(starts),
            context_lens=torch.from_numpy(contexts),
            block_tables=there[5].view(count, width),
            slot_mapping=there[2],
            state_slots=there[3],
            logit_rows=there[4],
            snapshots={
                number: tuple((position - part.sequence.num_computed, slot) for position, slot in part.snapshots)
                for number, part in enumerate(parts)
                if part.snapshots
            },
        )

    def _take(self, size: int) -> torch.Tensor:
        """(size,) int64 of the buffer that was not taken last."""
        self._buffers.reverse()
        if len(self._buffers[0]) < size:
            length = max(LEAST_ENTRIES, 1 << (size - 1).bit_length())
            self._buffers[0] = torch.empty(length, dtype=torch.int64, pin_memory=self._device.type == "cuda")
        return self._buffers[0][:size]

    def _fill_singles(
        self,
        parts: tuple[ScheduledSequence, ...],
        starts: Integers,
        token_ids: Integers,
        positions: Integers,
        slots: Integers,
    ) -> None:
        """The rows of all parts of one token. One that is not known yet is 0."""
        size = self._block_size
        singles = [(number, part.sequence) for number, part in enumerate(parts) if part.num_tokens == 1]
        rows = starts[[number for number, _ in singles]]
        token_ids[rows] = [0 if s.num_unknown else s.token_ids[s.num_computed] for _, s in singles]
        positions[rows] = [sequence.num_computed for _, sequence in singles]
        slots[rows] = [
            sequence.block_table[sequence.num_computed // size] * size + sequence.num_computed % size
            if sequence.block_table and sequence.num_computed >= sequence.num_shared
            else -1
            for _, sequence in singles
        ]

    def _fill_run(self, part: ScheduledSequence, token_ids: Integers, positions: Integers, slots: Integers) -> None:
        """The rows of a part of several tokens. Where the model keeps no keys and values, or others have written
        them, the slot is -1.
        """
        sequence, size = part.sequence, self._block_size
        start, stop = sequence.num_computed, sequence.num_computed + part.num_tokens
        token_ids[:] = sequence.as_array()[start:stop]
        positions[:] = np.arange(start, stop)
        slots[:] = -1
        if sequence.block_table and sequence.num_shared < stop:
            written = positions[max(0, sequence.num_shared - start) :]
            slots[len(slots) - len(written) :] = sequence.as_table()[written // size] * size + written % size
