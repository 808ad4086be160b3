"""Decode steps captured as CUDA graphs: one launch for all the kernels of a step, however many there are.

A graph replays what was captured with the very tensors that it was captured with. So there is one set of input tensors,
as large as the largest batch; a step's inputs are copied there, and rows beyond its sequences are padding that kernels
leave alone: slot -1, length 0.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from models.batch import DeviceLengths, ForwardBatch, Rows
from models.cache import LayerCache
from models.config import ExpertsSpec
from models.decoder import Decoder
from models.kernels.choose import Choice

DECODE_OPERATIONS = ("attention", "convolution step", "selective step", "SSD step", "delta step")
SMALL_SIZES, EVERY = (1, 2, 4), 8
WARM_UPS = 2  # kernels are compiled and libraries set up before anything is captured


def why_no_graphs(decoder: Decoder, choices: Sequence[Choice]) -> str | None:
    """Why a decoder's steps cannot be captured, None if they can: something in them would wait for the GPU."""
    for choice in choices:
        if choice.operation in DECODE_OPERATIONS and choice.backend == "torch":
            return f"{choice.operation} runs in plain torch"
    if any(isinstance(layer.mlp, ExpertsSpec) for layer in decoder.config.layers):
        return "experts are chosen by the host"
    return None


def is_decode_step(batch: ForwardBatch) -> bool:
    """Whether it is one new token for each sequence, all of which go on from a state and want their logits."""
    return batch.steps.rows is None and len(batch.logit_rows) == batch.steps.count


def batch_sizes(largest: int) -> list[int]:
    """The sizes that are captured, ascending: a step takes the first that holds it."""
    sizes = {size for size in SMALL_SIZES if size < largest} | set(range(EVERY, largest, EVERY)) | {largest}
    return sorted(sizes)


@dataclass(frozen=True)
class DecodeBatch(ForwardBatch):
    """One new token for each of b sequences, of which nothing is known but on the device."""

    lengths: Tensor | None = None

    @cached_property
    def singles(self) -> Rows:
        return Rows(len(self.token_ids), None, None)

    @cached_property
    def steps(self) -> Rows:
        return self.singles

    @cached_property
    def written(self) -> Tensor:
        assert self.lengths is not None
        return self.lengths

    @cached_property
    def on_device(self) -> DeviceLengths:
        assert self.lengths is not None
        size, device = len(self.token_ids), self.token_ids.device
        starts = torch.arange(size + 1, dtype=torch.int32, device=device)
        return DeviceLengths(starts, self.lengths, self.block_tables, max_query=1, max_length=0)


class DecodeGraphs:
    """Owns the inputs and the graphs. `prepare` captures; without it steps are computed on the same padded inputs."""

    def __init__(
        self,
        decoder: Decoder,
        caches: Sequence[LayerCache],
        *,
        largest: int,
        max_blocks: int,
    ) -> None:
        """largest: sequences of a step. max_blocks: of a sequence."""
        self._decoder, self._caches = decoder, caches
        self._sizes = batch_sizes(largest)
        device = decoder.embedding.weight.device

        def integers(*shape: int, fill: int = 0, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.full(shape, fill, dtype=dtype, device=device)

        self._token_ids, self._positions = integers(largest), integers(largest)
        self._slot_mapping, self._state_slots = integers(largest, fill=-1), integers(largest, fill=-1)
        self._block_tables = integers(largest, max_blocks, dtype=torch.int32)
        self._lengths = integers(largest, dtype=torch.int32)
        self._replays: dict[int, Callable[[], Tensor]] = {}

    @property
    def captured(self) -> list[int]:
        return sorted(self._replays)

    def prepare(self) -> None:
        """Capture a step of every size. All rows are padding, so that the caches stay as they are."""
        pool = torch.cuda.graph_pool_handle()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        # The largest first: the others then fit into the memory that it has taken.
        for size in reversed(self._sizes):
            with torch.cuda.stream(stream):
                for _ in range(WARM_UPS):
                    self._compute(size)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                logits = self._compute(size)
            self._replays[size] = _replay(graph, logits)

    def takes(self, batch: ForwardBatch) -> bool:
        return is_decode_step(batch) and batch.steps.count <= self._sizes[-1]

    def run(self, batch: ForwardBatch) -> Tensor:
        """Logits (b, vocab) float32 of such a batch. They are overwritten by the next step."""
        count = batch.steps.count
        size = next(size for size in self._sizes if size >= count)
        self._token_ids[:count] = batch.token_ids
        self._positions[:count] = batch.positions
        self._slot_mapping[:count] = batch.slot_mapping
        self._state_slots[:count] = batch.state_slots
        self._lengths[:count] = batch.on_device.lengths
        self._block_tables[:count, : batch.block_tables.shape[1]] = batch.block_tables
        self._slot_mapping[count:size] = -1
        self._state_slots[count:size] = -1
        self._lengths[count:size] = 0
        replay = self._replays.get(size)
        return (self._compute(size) if replay is None else replay())[:count]

    def _compute(self, size: int) -> Tensor:
        """The decoder on the first rows of the inputs. A batch of its own: what layers derive is part of the step."""
        nothing = torch.empty(0, dtype=torch.int64)
        batch = DecodeBatch(
            token_ids=self._token_ids[:size],
            positions=self._positions[:size],
            query_start=nothing,
            context_lens=nothing,
            block_tables=self._block_tables[:size],
            slot_mapping=self._slot_mapping[:size],
            state_slots=self._state_slots[:size],
            logit_rows=torch.arange(size, device=self._token_ids.device),
            lengths=self._lengths[:size],
        )
        logits: Tensor = self._decoder(batch, self._caches)
        return logits


def _replay(graph: torch.cuda.CUDAGraph, logits: Tensor) -> Callable[[], Tensor]:
    def replay() -> Tensor:
        graph.replay()
        return logits

    return replay
