"""Everything that one forward pass needs, as tensors. Passed as an argument; there is no ambient context."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from models.config import RopeSpec

FRESH = -1  # in place of a state slot: a state of zeros


@dataclass(frozen=True)  # without slots: what is derived is kept
class ForwardBatch:
    """New tokens of b sequences, concatenated to t rows; prefill chunks and decode steps may be mixed.

    Attributes:
        token_ids: (t,) int64.
        positions: (t,) int64, position of each token in its sequence.
        query_start: (b + 1,) int64 on the CPU; sequence i owns rows query_start[i]:query_start[i + 1].
        context_lens: (b,) int64 on the CPU, tokens remembered before this pass; 0 = the sequence starts fresh
            and its state slot counts as zero whatever it holds.
        block_tables: (b, m) int64, -1 = padding.
        slot_mapping: (t,) int64, block * block_size + offset; -1 = not written.
        state_slots: (b,) int64, distinct.
        logit_rows: (r,) int64, the rows whose logits are wanted.
        snapshots: by the number of a sequence, after how many of its new tokens its recurrent state is copied into
            which slots, in order.
        angles: cosines and sines at the positions, filled by the first layer that needs them.
    """

    token_ids: Tensor
    positions: Tensor
    query_start: Tensor
    context_lens: Tensor
    block_tables: Tensor
    slot_mapping: Tensor
    state_slots: Tensor
    logit_rows: Tensor
    snapshots: Mapping[int, tuple[tuple[int, int], ...]] = field(default_factory=dict)
    angles: dict[RopeSpec, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @cached_property
    def num_new(self) -> Tensor:
        """(b,) int64 on the CPU, new tokens of each sequence."""
        return self.query_start.diff()

    @cached_property
    def written(self) -> Tensor:
        """(b,) int64 on the CPU, positions written once this pass is done."""
        return self.context_lens + self.num_new

    @cached_property
    def singles(self) -> "Rows":
        """The sequences with one new token, fresh ones among them."""
        return self._rows(self.num_new == 1)

    @cached_property
    def steps(self) -> "Rows":
        """The sequences with one new token that go on from a state and leave no other."""
        count = len(self.context_lens)
        if len(self.token_ids) == count and not self.snapshots and bool(self.context_lens.all()):
            return Rows(count, None, None)  # as most are, found out at once
        return self._rows(self._takes_step)

    @cached_property
    def runs(self) -> list[int]:
        """Which sequences have several new tokens."""
        return list((self.num_new > 1).nonzero().squeeze(-1).tolist())

    @cached_property
    def scans(self) -> "Runs":
        """The others: those with several new tokens, and fresh ones, of which a former state must not be read."""
        first, slots, remembered = self.query_start.tolist(), self.state_slots.tolist(), self.context_lens.tolist()
        runs: list[list[Piece]] = []
        for i in (~self._takes_step).nonzero().squeeze(-1).tolist():
            ends = [(first[i] + count, slot) for count, slot in self.snapshots.get(i, ())] + [(first[i + 1], slots[i])]
            starts = [first[i], *(stop for stop, _ in ends)]
            known = [slots[i] if remembered[i] else FRESH, *(slot for _, slot in ends)]
            runs.append([Piece(starts[k], stop, known[k], slot) for k, (stop, slot) in enumerate(ends)])
        return Runs(runs)

    @cached_property
    def _takes_step(self) -> Tensor:
        takes = (self.num_new == 1) & (self.context_lens > 0)
        if self.snapshots:
            takes[list(self.snapshots)] = False
        return takes

    @cached_property
    def on_device(self) -> "DeviceLengths":
        """What kernels read that know their work only on the device."""
        device = self.token_ids.device
        return DeviceLengths(
            self.query_start.to(device, torch.int32),
            self.written.to(device, torch.int32),
            self.block_tables.to(torch.int32),
            max_query=int(self.num_new.max()),
            max_length=int(self.written.max()),
        )

    def _rows(self, chosen: Tensor) -> "Rows":
        if bool(chosen.all()) and len(self.token_ids) == len(chosen):
            return Rows(len(chosen), None, None)
        sequences = chosen.nonzero().squeeze(-1)
        device = self.token_ids.device
        return Rows(len(sequences), sequences.to(device), self.query_start[sequences].to(device), sequences)


class Piece(NamedTuple):
    """Rows start .. stop of a batch, of one sequence. begins: the slot whose state they follow, or FRESH.
    ends: the slot that their state goes to.
    """

    start: int
    stop: int
    begins: int
    ends: int


@dataclass(frozen=True)  # without slots: what is derived is kept
class Runs:
    """Runs of tokens, each of one sequence, in pieces: all but the first go on from where the last has ended."""

    pieces: Sequence[Sequence[Piece]]

    @classmethod
    def whole(cls, count: int, length: int) -> "Runs":
        """Of so many sequences of a length, one behind the other, in one piece each, from and to the first slots."""
        return cls([[Piece(i * length, (i + 1) * length, i, i)] for i in range(count)])

    @cached_property
    def arrays(self) -> "tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]":
        """For kernels: (p, 4) int64, all pieces; (r + 1,) int64, run i owns pieces starts[i]:starts[i + 1]."""
        every = [piece for run in self.pieces for piece in run]
        starts = np.cumsum([0, *map(len, self.pieces)], dtype=np.int64)
        return np.array(every, np.int64).reshape(len(every), 4), starts


@dataclass(frozen=True, slots=True)
class Rows:
    """Some of a batch's sequences, of one new token each. None: all there are, and each one's row is its number.

    Attributes:
        count: how many. sequences: their numbers, (count,) int64; rows: of their tokens. On the batch's device.
        on_cpu: the numbers on the CPU.
    """

    count: int
    sequences: Tensor | None
    rows: Tensor | None
    on_cpu: Tensor | None = None


@dataclass(frozen=True, slots=True)
class DeviceLengths:
    """The lengths of a batch's sequences on its device.

    Attributes:
        query_start: (b + 1,) int32. lengths: (b,) int32, positions written, the new tokens' own included.
        block_tables: (b, m) int32. max_query, max_length: the largest number of new tokens, and of positions.
    """

    query_start: Tensor
    lengths: Tensor
    block_tables: Tensor
    max_query: int
    max_length: int
