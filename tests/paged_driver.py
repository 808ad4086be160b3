"""Drives a decoder over paged caches without a scheduler: any chunking, any company, scattered blocks and slots."""

from collections.abc import Callable

import torch

from models.batch import ForwardBatch
from models.cache import CacheShape, StateCache, allocate_caches, row_bytes, simple_caches
from models.decoder import Decoder
from models.kernels.bind import bind
from models.kernels.environment import Environment, probe

BLOCK_SIZE = 4


class PagedDriver:
    """Holds the caches of a few sequences. Blocks are dealt in a scattered order and start out poisoned.

    Where a model has blocks and states, all lie in one buffer.
    """

    def __init__(
        self,
        decoder: Decoder,
        num_sequences: int,
        max_tokens: int,
        environment: Environment | None = None,
        state_dtype: torch.dtype = torch.float32,
    ) -> None:
        """environment: what chooses the kernels, if not this machine."""
        self.decoder = decoder
        self.device = decoder.embedding.weight.device
        per_sequence = -(-max_tokens // BLOCK_SIZE)
        num_blocks, num_slots = num_sequences * per_sequence, num_sequences + 2
        dtype = decoder.norm.weight.dtype
        rows = row_bytes(decoder.config, BLOCK_SIZE, dtype, state_dtype)
        arena_bytes = num_blocks * rows.block + num_slots * rows.slot if rows.block and rows.slot else None
        shape = CacheShape(num_blocks, BLOCK_SIZE, num_slots, arena_bytes)
        self.caches = allocate_caches(decoder.config, shape, dtype=dtype, device=self.device, state_dtype=state_dtype)
        for cache in simple_caches(self.caches):
            for field in cache.__slots__:
                # What was a state may be anything as keys and values.
                getattr(cache, field).fill_(float("nan") if arena_bytes else 1e4)
        bind(decoder, environment or probe(self.device), dtype, BLOCK_SIZE, state_dtype)
        deal = torch.randperm(num_sequences * per_sequence, generator=torch.Generator().manual_seed(0))
        self.tables = deal.view(num_sequences, per_sequence)
        self.slots = torch.arange(num_sequences).flip(0) + 2
        self.lengths = [0] * num_sequences

    def copy(self, source: int, target: int) -> None:
        """Make the target a copy of the source as it is now: its blocks into other blocks, its state into another slot.

        A target that is never stepped is a snapshot; what it held before is lost.
        """
        used = -(-self.lengths[source] // BLOCK_SIZE)
        for cache in simple_caches(self.caches):
            rows = self.slots if isinstance(cache, StateCache) else self.tables[:, :used]
            for field in cache.__slots__:
                tensor = getattr(cache, field)
                tensor[rows[target].to(self.device)] = tensor[rows[source].to(self.device)]
        self.lengths[target] = self.lengths[source]

    def batch(self, work: dict[int, list[int]]) -> ForwardBatch:
        """Each sequence's new tokens, with logits wanted of all of them."""
        rows, positions, mapping, starts = [], [], [], [0]
        for sequence, tokens in work.items():
            for token in tokens:
                position = self.lengths[sequence] + len(rows) - starts[-1]
                rows.append(token)
                positions.append(position)
                block = int(self.tables[sequence, position // BLOCK_SIZE])
                mapping.append(block * BLOCK_SIZE + position % BLOCK_SIZE)
            starts.append(len(rows))
        order = list(work)
        return ForwardBatch(
            token_ids=torch.tensor(rows, device=self.device),
            positions=torch.tensor(positions, device=self.device),
            query_start=torch.tensor(starts),
            context_lens=torch.tensor([self.lengths[sequence] for sequence in order]),
            block_tables=self.tables[order].to(self.device),
            slot_mapping=torch.tensor(mapping, device=self.device),
            state_slots=self.slots[order].to(self.device),
            logit_rows=torch.arange(len(rows), device=self.device),
        )

    def step(
        self, work: dict[int, list[int]], compute: Callable[[ForwardBatch], torch.Tensor] | None = None
    ) -> dict[int, torch.Tensor]:
        """Feed each sequence its new tokens, all in one pass; returns logits (n, vocab) of all of them.

        compute: what gives them, if not the decoder itself.
        """
        batch = self.batch(work)
        with torch.inference_mode():
            logits = (compute(batch) if compute else self.decoder(batch, self.caches)).cpu()
        for sequence, tokens in work.items():
            self.lengths[sequence] += len(tokens)
        counts = [len(tokens) for tokens in work.values()]
        return dict(zip(work, logits.split(counts), strict=True))
