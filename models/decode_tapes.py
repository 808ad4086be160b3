"""Decode steps recorded on a processor: what a step asks of Python costs a small model as much as its arithmetic.

A tape replays what was recorded with the very tensors that it was recorded with. So there is one set of input tensors,
as large as the largest batch, to which a step's inputs are copied. A size of batch is recorded on a step of that size,
once it has come often enough. Rows beyond a step's sequences would be computed for nothing: there is no padding.

No tape is believed. A step that is recorded is computed by the decoder, then recorded, then replayed, each time from
the same caches, and so is the next one of its size: unless all numbers agree to the bit, nothing is replayed any more.
"""

import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from models.batch import ForwardBatch
from models.cache import LayerCache, block_tensors, state_tensors
from models.decode_graphs import DecodeBatch, is_decode_step
from models.decoder import Decoder
from models.tape import Tape, UnrecordableError, record

LARGEST = 64  # sequences of a step: with more of them what Python does is little beside the arithmetic
SEEN = 48  # steps of a size before it is recorded, for which those wait that are computed then
TRIALS = 2  # steps on which a tape is compared with the decoder
MOST_BYTES = 256 << 20  # of all tapes together
FIRST_SIZES = (1, 8, 16, 4, 2)  # recorded before there are requests
PREPARE_S = 3.0  # after which no further size is begun with

log = logging.getLogger("fathom.tapes")


class DecodeTapes:
    """Owns the inputs and the tapes, and what has come of proving them.

    refused: why nothing is replayed, None while all that was recorded has proved right.
    """

    def __init__(
        self, decoder: Decoder, caches: Sequence[LayerCache], *, largest: int, max_blocks: int, block_size: int
    ) -> None:
        """largest: sequences of a step. max_blocks: of a sequence. block_size: tokens."""
        self._decoder, self._caches, self._block_size = decoder, caches, block_size
        self._largest = min(largest, LARGEST)
        self._inputs = _zeros(5, self._largest)
        self._tables = _zeros(self._largest, max_blocks)
        self._tapes: OrderedDict[int, Tape] = OrderedDict()
        self._trials: Counter[int] = Counter()
        self._seen: Counter[int] = Counter()
        self.refused: str | None = None

    @property
    def recorded(self) -> list[int]:
        """The sizes that have proved right."""
        return sorted(size for size in self._tapes if not self._trials[size])

    def prepare(self) -> str | None:
        """Record the smallest steps, while nothing in the caches is anybody's; returns why not, if not."""
        blocks, states = block_tensors(self._caches), state_tensors(self._caches)
        if self._block_size < TRIALS:  # a second token is in a second block
            return None
        room = min([self._largest, *(len(tensor) for tensor in (*blocks[:1], *states[:1]))])
        started_s = time.monotonic()
        for size in dict.fromkeys(min(size, room) for size in FIRST_SIZES):
            if not size or time.monotonic() - started_s > PREPARE_S:
                break
            for trial in range(TRIALS):
                if self.refused is None:
                    self._seen[size] = SEEN
                    self.run(self._made_up(size, trial))
        return self.refused

    def takes(self, batch: ForwardBatch) -> bool:
        """Whether such a step may be replayed, now or once it has come often enough."""
        return (
            self.refused is None
            and is_decode_step(batch)
            and batch.steps.count <= self._largest
            and batch.block_tables.shape[1] <= self._tables.shape[1]
        )

    def run(self, batch: ForwardBatch) -> Tensor:
        """Logits (b, vocab) float32 of such a batch. They may be overwritten by the next step."""
        size = batch.steps.count
        if size in self._tapes:
            self._tapes.move_to_end(size)
            return self._prove(batch) if self._trials[size] else self._replay(batch)
        self._seen[size] += 1
        if self._seen[size] <= SEEN:
            logits: Tensor = self._decoder(batch, self._caches)
            return logits
        return self._record(batch)

    def _record(self, batch: ForwardBatch) -> Tensor:
        size, rows = batch.steps.count, _Rows(self._caches, batch, self._block_size)
        before = rows.read()
        self._fill(batch)
        try:
            tape = record(lambda: self._compute(size), self._decoder.parameters())
        except UnrecordableError as error:
            self._refuse(str(error))
        rows.write(before)
        if self.refused is not None:
            logits: Tensor = self._decoder(batch, self._caches)
            return logits
        self._tapes[size], self._trials[size] = tape, TRIALS
        while len(self._tapes) > 1 and sum(tape.num_bytes for tape in self._tapes.values()) > MOST_BYTES:
            forgotten, _ = self._tapes.popitem(last=False)
            self._seen[forgotten] = 0
        return self._prove(batch)

    def _prove(self, batch: ForwardBatch) -> Tensor:
        """The decoder's own logits, after which the caches are what it has made of them."""
        size, rows = batch.steps.count, _Rows(self._caches, batch, self._block_size)
        before = rows.read()
        expected: Tensor = self._decoder(batch, self._caches)
        after = rows.read()
        rows.write(before)
        logits = self._replay(batch)
        self._trials[size] -= 1
        if not _same([logits, *rows.read()], [expected, *after]):
            self._refuse(f"a step of {size} replayed is not what the decoder computes")
            rows.write(after)
        return expected

    def _refuse(self, reason: str) -> None:
        log.warning("decode steps are replayed no more: %s", reason)
        self.refused = reason
        self._tapes.clear()

    def _replay(self, batch: ForwardBatch) -> Tensor:
        self._fill(batch)
        return self._tapes[batch.steps.count].run()

    def _fill(self, batch: ForwardBatch) -> None:
        count = batch.steps.count
        given = batch.token_ids, batch.positions, batch.slot_mapping, batch.state_slots
        *inputs, written = self._inputs[:, :count].unbind()
        for into, tensor in zip(inputs, given, strict=True):
            into.copy_(tensor)
        torch.add(batch.positions, 1, out=written)
        self._tables[:count, : batch.block_tables.shape[1]] = batch.block_tables

    def _compute(self, size: int) -> Tensor:
        """The decoder on the first rows of the inputs. A batch of its own: what layers derive is part of the step."""
        nothing = torch.empty(0, dtype=torch.int64)
        token_ids, positions, slot_mapping, state_slots, written = self._inputs[:, :size]
        batch = DecodeBatch(
            token_ids=token_ids,
            positions=positions,
            query_start=nothing,
            context_lens=nothing,
            block_tables=self._tables[:size],
            slot_mapping=slot_mapping,
            state_slots=state_slots,
            logit_rows=nothing,
            lengths=written,
        )
        return self._decoder.logits(self._decoder.hidden(batch, self._caches))

    def _made_up(self, size: int, number: int) -> ForwardBatch:
        """A step of sequences whose second token it is, or the next with the next number; each has a block alone."""
        ids, places = torch.arange(size), torch.full((size,), min(1 + number, self._block_size - 1))
        return ForwardBatch(
            token_ids=(7 * number + 3 * ids + 1) % self._decoder.config.vocab_size,
            positions=places,
            query_start=torch.arange(size + 1),
            context_lens=places,
            block_tables=ids.unsqueeze(-1),
            slot_mapping=ids * self._block_size + places,
            state_slots=ids.flip(0),
            logit_rows=ids,
        )


class _Rows:
    """What a decode step may change of the caches: its sequences' states, and where its tokens' keys and values go."""

    def __init__(self, caches: Sequence[LayerCache], batch: ForwardBatch, block_size: int) -> None:
        written = batch.slot_mapping[batch.slot_mapping >= 0]
        places = written // block_size, written % block_size
        self._parts = [(tensor, places) for tensor in block_tensors(caches)]
        self._states = state_tensors(caches)
        self._slots = batch.state_slots.clone()

    def read(self) -> list[Tensor]:
        return [tensor[places] for tensor, places in self._parts] + [tensor[self._slots] for tensor in self._states]

    def write(self, content: Sequence[Tensor]) -> None:
        kept = iter(content)
        for tensor, places in self._parts:
            tensor[places] = next(kept)
        for tensor in self._states:
            tensor[self._slots] = next(kept)


def _same(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> bool:
    """To the bit, NaN and all."""
    return all(
        torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))
        for a, b in zip(ours, theirs, strict=True)
    )


def _zeros(*shape: int) -> Tensor:
    """int64, of memory that is not taken until it is written to."""
    return torch.from_numpy(np.zeros(shape, np.int64))
