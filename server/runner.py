"""Executes what the scheduler decided: ScheduledBatch -> ForwardBatch -> sampled tokens. The torch half."""

from collections.abc import Sequence
from pathlib import Path

import torch

from models.batch import ForwardBatch
from models.cache import (
    CacheShape,
    allocate_caches,
    block_tensors,
    copy_rows,
    read_rows,
    row_layout,
    state_tensors,
    write_rows,
)
from models.decode_graphs import DecodeGraphs, why_no_graphs
from models.kernels.bind import bind
from models.kernels.choose import Choice, preferred_block_size
from models.kernels.environment import probe
from models.load import load_decoder
from models.sampler import SamplingRow, sample
from server.cache.planner import CachePlan
from server.config import ConfigError, EngineConfig
from server.sequence import ScheduledBatch, ScheduledSequence

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(config: EngineConfig) -> torch.device:
    """The device asked for, or a GPU where there is one."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch sees no CUDA device here")
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(config.device)


def choose_dtype(config: EngineConfig, device: torch.device) -> torch.dtype:
    """The dtype asked for, or bfloat16 on a GPU and float32 on a CPU."""
    if config.dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return DTYPES[config.dtype]


class Runner:
    """Owns the weights and the cache tensors."""

    def __init__(self, directory: Path, *, dtype: torch.dtype, device: torch.device) -> None:
        self.device = device
        self.dtype = dtype
        self.environment = probe(device)
        self._graphs: DecodeGraphs | None = None
        self.decoder = load_decoder(directory, dtype=dtype, device=device)

    def preferred_block_size(self) -> int:
        """Tokens per KV block that this machine's kernels like best."""
        name = str(self.dtype).removeprefix("torch.")
        return preferred_block_size(self.decoder.config.layers, self.environment, name)

    def allocate(self, plan: CachePlan) -> tuple[Choice, ...]:
        """Allocate the cache and choose the kernels, some of which want a certain block size; returns the choices."""
        self._block_size, self._graphs = plan.block_size, None
        self._choices = choices = bind(self.decoder, self.environment, self.dtype, plan.block_size)
        self._caches = allocate_caches(
            self.decoder.config,
            CacheShape(plan.num_blocks, plan.block_size, plan.num_state_slots),
            dtype=self.dtype,
            device=self.device,
        )
        return choices

    @property
    def cache_layout(self) -> str:
        """What blocks and states are made of, as text."""
        return row_layout(self._caches)

    def read_blocks(self, blocks: Sequence[int]) -> memoryview:
        """A copy of blocks, of all layers, in the host's memory."""
        return read_rows(block_tensors(self._caches), blocks)

    def read_state(self, slot: int) -> memoryview:
        """A copy of a state slot, of all layers, in the host's memory."""
        return read_rows(state_tensors(self._caches), [slot])

    def write_blocks(self, blocks: Sequence[int], content: memoryview) -> None:
        """Put back what `read_blocks` gave."""
        write_rows(block_tensors(self._caches), blocks, content)

    def write_state(self, slot: int, content: memoryview) -> None:
        """Put back what `read_state` gave."""
        write_rows(state_tensors(self._caches), [slot], content)

    def capture(self, *, max_running: int, max_context: int) -> str | None:
        """Capture decode steps as CUDA graphs, for so many sequences of so many tokens; returns why not, if not."""
        if self.device.type != "cuda":
            return "there is no GPU"
        if reason := why_no_graphs(self.decoder, self._choices):
            return reason
        blocks = -(-max_context // self._block_size)
        with torch.inference_mode():
            graphs = DecodeGraphs(self.decoder, self._caches, largest=max_running, max_blocks=blocks)
            graphs.prepare()
        self._graphs = graphs
        return None

    @torch.inference_mode()
    def run(self, batch: ScheduledBatch) -> dict[str, int]:
        """Compute the step; returns request id -> sampled token, for the parts that sample."""
        copy_rows(self._caches, batch.block_copies, batch.state_copies)
        forward = self._forward_batch(batch)
        if self._graphs is not None and self._graphs.takes(forward):
            logits = self._graphs.run(forward)
        else:
            logits = self.decoder(forward, self._caches)
        sampling = [part.sequence for part in batch.parts if part.samples]
        rows = [
            SamplingRow(
                temperature=sequence.request.params.temperature,
                top_p=sequence.request.params.top_p,
                top_k=sequence.request.params.top_k,
                min_p=sequence.request.params.min_p,
                seed=sequence.seed,
                step=sequence.num_generated,
            )
            for sequence in sampling
        ]
        tokens = sample(logits, rows)
        return {s.request_id: token for s, token in zip(sampling, tokens, strict=True)}

    def _forward_batch(self, batch: ScheduledBatch) -> ForwardBatch:
        token_ids: list[int] = []
        positions: list[int] = []
        starts, logit_rows = [0], []
        for part in batch.parts:
            start = part.sequence.num_computed
            token_ids += part.sequence.token_ids[start : start + part.num_tokens]
            positions += range(start, start + part.num_tokens)
            starts.append(len(token_ids))
            if part.samples:
                logit_rows.append(len(token_ids) - 1)

        def on_device(values: list[int]) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.int64, device=self.device)

        return ForwardBatch(
            token_ids=on_device(token_ids),
            positions=on_device(positions),
            query_start=torch.tensor(starts),
            context_lens=torch.tensor([part.sequence.num_computed for part in batch.parts]),
            block_tables=self._tables(batch),
            slot_mapping=on_device([slot for part in batch.parts for slot in self._slots(part)]),
            state_slots=on_device([part.sequence.state_slot or 0 for part in batch.parts]),
            logit_rows=on_device(logit_rows),
            snapshots={
                number: tuple((position - part.sequence.num_computed, slot) for position, slot in part.snapshots)
                for number, part in enumerate(batch.parts)
                if part.snapshots
            },
        )

    def _tables(self, batch: ScheduledBatch) -> torch.Tensor:
        longest = max(len(part.sequence.block_table) for part in batch.parts)
        tables = [part.sequence.block_table + [-1] * (longest - len(part.sequence.block_table)) for part in batch.parts]
        return torch.tensor(tables, dtype=torch.int64, device=self.device).view(len(batch.parts), longest)

    def _slots(self, part: ScheduledSequence) -> list[int]:
        """Where each new token's keys and values go; -1 where the model keeps none, or others have written them."""
        table, size = part.sequence.block_table, self._block_size
        start = part.sequence.num_computed
        if not table:
            return [-1] * part.num_tokens
        stop, shared = start + part.num_tokens, part.sequence.num_shared
        written = range(max(start, shared), stop)
        return [-1] * (part.num_tokens - len(written)) + [table[p // size] * size + p % size for p in written]
