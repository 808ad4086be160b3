"""The memory that a decoder's layers write to: one entry per layer, of the kind that its mixer declares."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.config import AttentionSpec, MixerSpec, ModelConfig, ParallelSpec, RecurrentSpec, SharedSpec


@dataclass(frozen=True, slots=True)
class KVCache:
    """Keys and values of one attention layer, each (num_blocks, block_size, num_kv_heads, head_dim)."""

    keys: Tensor
    values: Tensor


@dataclass(frozen=True, slots=True)
class StateCache:
    """Recurrent state of one layer, one row per state slot.

    conv_state: (num_state_slots, conv_size, conv_kernel - 1), the last inputs of the convolution, float32.
    ssm_state: what the recurrence carries on, float32, bfloat16 or float16, (num_state_slots, *state_shape):
    (inner_size, state_size) in Mamba-1, (num_heads, head_dim, state_size) in Mamba-2, (num_value_heads, key_head_dim,
    value_head_dim) in Gated DeltaNet.
    """

    conv_state: Tensor
    ssm_state: Tensor


@dataclass(frozen=True, slots=True)
class ParallelCache:
    """Keys and values of the attention, and the state of the recurrent mixer beside or behind it."""

    attention: KVCache
    recurrent: StateCache


LayerCache = KVCache | StateCache | ParallelCache | None


@dataclass(frozen=True, slots=True)
class CacheShape:
    """How much to allocate: blocks of block_size tokens for keys and values, slots for recurrent state."""

    num_blocks: int
    block_size: int
    num_state_slots: int


def allocate_caches(
    config: ModelConfig,
    shape: CacheShape,
    *,
    dtype: torch.dtype,
    device: torch.device,
    state_dtype: torch.dtype = torch.float32,
) -> list[LayerCache]:
    """Allocate every layer's cache. The sizes are exactly what the layers' `cache_needs` declare.

    Args:
        dtype: of keys and values. state_dtype: of what recurrences carry on; all is computed in float32.
    """

    def attention_cache(spec: AttentionSpec) -> KVCache:
        blocks = (shape.num_blocks, shape.block_size, spec.num_kv_heads, spec.head_dim)
        keys, values = (_zeros(blocks, dtype, device) for _ in range(2))
        return KVCache(keys, values)

    def recurrent_cache(spec: RecurrentSpec) -> StateCache:
        conv = (shape.num_state_slots, spec.conv_size, spec.conv_kernel - 1)
        ssm = (shape.num_state_slots, *spec.state_shape)
        return StateCache(_zeros(conv, torch.float32, device), _zeros(ssm, state_dtype, device))

    def layer_cache(spec: MixerSpec | None) -> LayerCache:
        if spec is None:
            return None
        if isinstance(spec, AttentionSpec):
            return attention_cache(spec)
        if isinstance(spec, ParallelSpec | SharedSpec):
            return ParallelCache(attention_cache(spec.attention), recurrent_cache(spec.recurrent))
        return recurrent_cache(spec)

    return [layer_cache(layer.mixer) for layer in config.layers]


def _zeros(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros, on a CPU of the kind that take no memory until they are written to, which most of a cache may never be."""
    if device.type != "cpu":
        return torch.zeros(size, dtype=dtype, device=device)
    return torch.from_numpy(np.zeros(math.prod(size) * dtype.itemsize, np.uint8)).view(dtype).view(size)


def simple_caches(caches: Iterable[LayerCache]) -> Iterator[KVCache | StateCache]:
    """Those inside of parallel ones one by one, and none for layers that remember nothing."""
    for cache in caches:
        if isinstance(cache, ParallelCache):
            yield cache.attention
            yield cache.recurrent
        elif cache is not None:
            yield cache


def block_tensors(caches: Iterable[LayerCache]) -> list[Tensor]:
    """Keys and values of all layers, in order: what has a row for each block."""
    return [t for cache in simple_caches(caches) if isinstance(cache, KVCache) for t in (cache.keys, cache.values)]


def state_tensors(caches: Iterable[LayerCache]) -> list[Tensor]:
    """Recurrent states of all layers: what has a row for each state slot.

    In order, but those of wider numbers first: one after the other, the rows of each then begin where they may.
    """
    states = [cache for cache in simple_caches(caches) if isinstance(cache, StateCache)]
    tensors = [tensor for state in states for tensor in (state.conv_state, state.ssm_state)]
    return sorted(tensors, key=lambda tensor: -tensor.itemsize)


def copy_rows(
    caches: Sequence[LayerCache], block_copies: Sequence[tuple[int, int]], state_copies: Sequence[tuple[int, int]]
) -> None:
    """Copy blocks and state slots (from, to) in all layers, one after the other."""
    for tensors, copies in ((block_tensors, block_copies), (state_tensors, state_copies)):
        for tensor in tensors(caches) if copies else ():
            for source, target in copies:
                tensor[target].copy_(tensor[source])


def read_rows(tensors: Sequence[Tensor], rows: Sequence[int]) -> memoryview:
    """A copy of some rows of each tensor in the host's memory, all of the first tensor before those of the next."""
    index = torch.tensor(rows, dtype=torch.int64, device=tensors[0].device)
    sizes = _sizes(tensors, rows)
    # Together on the device first, so that there is one transfer and not one for each tensor.
    together = torch.empty(sum(sizes), dtype=torch.uint8, device=index.device)
    for tensor, part in zip(tensors, together.split(sizes), strict=True):
        torch.index_select(tensor, 0, index, out=_as_rows(part, tensor))
    return together.cpu().numpy().data


def write_rows(tensors: Sequence[Tensor], rows: Sequence[int], content: memoryview) -> None:
    """Put back what `read_rows` gave, into rows that may be others. `content` must be writable, as torch wants it.

    Raises:
        ValueError: it is not of so many rows of these tensors.
    """
    sizes = _sizes(tensors, rows)
    if sum(sizes) != len(content):
        raise ValueError(f"{len(content):,} bytes for rows of {sum(sizes):,} bytes")
    if not content:
        return
    index = torch.tensor(rows, dtype=torch.int64, device=tensors[0].device)
    # A copy even on a CPU: what was read from somewhere may begin at any address.
    together = torch.frombuffer(content, dtype=torch.uint8).to(index.device, copy=True)
    for tensor, part in zip(tensors, together.split(sizes), strict=True):
        tensor.index_copy_(0, index, _as_rows(part, tensor))


def _sizes(tensors: Sequence[Tensor], rows: Sequence[int]) -> list[int]:
    return [tensor[0].numel() * tensor.itemsize * len(rows) for tensor in tensors]


def _as_rows(content: Tensor, tensor: Tensor) -> Tensor:
    """Bytes as rows of a tensor."""
    return content.view(tensor.dtype).view(-1, *tensor.shape[1:])


def row_layout(caches: Sequence[LayerCache]) -> str:
    """What a row of each tensor is made of, as text: rows of caches of another layout mean something else."""
    tensors = [*block_tensors(caches), *state_tensors(caches)]
    return ";".join(f"{tensor.dtype}{tuple(tensor.shape[1:])}" for tensor in tensors)
