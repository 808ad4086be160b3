"""The memory that a decoder's layers write to: one entry per layer, of the kind that its mixer declares."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from models.config import (
    AttentionSpec,
    MixerSpec,
    ModelConfig,
    ParallelSpec,
    RecurrentSpec,
    SharedSpec,
    simple_mixers,
)

ALIGNMENT = 64  # bytes at whose multiples tensors begin that lie in one buffer


@dataclass(frozen=True, slots=True)
class KVCache:
    """Keys and values of one attention layer, each (num_blocks, block_size, num_kv_heads, head_dim).

    A block is contiguous; from one to the next there may be other layers' (`CacheShape.arena_bytes`).
    """

    keys: Tensor
    values: Tensor


@dataclass(frozen=True, slots=True)
class StateCache:
    """Recurrent state of one layer, one row per state slot; a row is contiguous, as a block is.

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
    """How much to allocate: blocks of block_size tokens for keys and values, slots for recurrent state.

    arena_bytes: where given, all blocks and slots lie in one buffer of so many bytes, a multiple of ALIGNMENT, which
    need not hold all of both. Block i of all layers begins i blocks after the buffer's begin, and slot i of all layers
    num_state_slots - i slots before its end: the bytes in the middle may be either's.
    """

    num_blocks: int
    block_size: int
    num_state_slots: int
    arena_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class RowBytes:
    """Bytes of a block and of a state slot, of all layers, where they lie in one buffer: aligned parts, one by one."""

    block: int
    slot: int


Part = tuple[tuple[int, ...], torch.dtype]


def _parts(
    mixer: AttentionSpec | RecurrentSpec, block_size: int, dtype: torch.dtype, state_dtype: torch.dtype
) -> tuple[Part, Part]:
    """What a layer's row is made of: keys and values of a block, or the two states of a slot."""
    if isinstance(mixer, AttentionSpec):
        kv = (block_size, mixer.num_kv_heads, mixer.head_dim), dtype
        return kv, kv
    conv = (mixer.conv_size, mixer.conv_kernel - 1)
    return (conv, torch.float32), (mixer.state_shape, state_dtype)


def _aligned_bytes(part: Part) -> int:
    shape, dtype = part
    return -(-math.prod(shape) * dtype.itemsize // ALIGNMENT) * ALIGNMENT


def row_bytes(config: ModelConfig, block_size: int, dtype: torch.dtype, state_dtype: torch.dtype) -> RowBytes:
    """What `CacheShape.arena_bytes` is divided into."""
    block = slot = 0
    for mixer in simple_mixers(config.layers):
        size = sum(map(_aligned_bytes, _parts(mixer, block_size, dtype, state_dtype)))
        if isinstance(mixer, AttentionSpec):
            block += size
        else:
            slot += size
    return RowBytes(block, slot)


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
    Raises:
        ValueError: blocks or slots do not fit into `arena_bytes`.
    """
    new_blocks, new_slots = _makers(config, shape, dtype, state_dtype, device)

    def attention_cache(spec: AttentionSpec) -> KVCache:
        keys, values = map(new_blocks, _parts(spec, shape.block_size, dtype, state_dtype))
        return KVCache(keys, values)

    def recurrent_cache(spec: RecurrentSpec) -> StateCache:
        conv_state, ssm_state = map(new_slots, _parts(spec, shape.block_size, dtype, state_dtype))
        return StateCache(conv_state, ssm_state)

    def layer_cache(spec: MixerSpec | None) -> LayerCache:
        if spec is None:
            return None
        if isinstance(spec, AttentionSpec):
            return attention_cache(spec)
        if isinstance(spec, ParallelSpec | SharedSpec):
            return ParallelCache(attention_cache(spec.attention), recurrent_cache(spec.recurrent))
        return recurrent_cache(spec)

    return [layer_cache(layer.mixer) for layer in config.layers]


MakeTensor = Callable[[Part], Tensor]


def _makers(
    config: ModelConfig, shape: CacheShape, dtype: torch.dtype, state_dtype: torch.dtype, device: torch.device
) -> tuple[MakeTensor, MakeTensor]:
    """What gives the next part of all blocks, (num_blocks, *shape), and of all slots, (num_state_slots, *shape)."""
    if shape.arena_bytes is None:

        def apart(count: int) -> MakeTensor:
            return lambda part: _zeros((count, *part[0]), part[1], device)

        return apart(shape.num_blocks), apart(shape.num_state_slots)
    size, rows = shape.arena_bytes, row_bytes(config, shape.block_size, dtype, state_dtype)
    if max(shape.num_blocks * rows.block, shape.num_state_slots * rows.slot) > size or size % ALIGNMENT:
        raise ValueError(
            f"{size:,} bytes are not for {shape.num_blocks:,} blocks of {rows.block:,} bytes or "
            f"{shape.num_state_slots:,} slots of {rows.slot:,}"
        )
    buffer = _zeros((size + ALIGNMENT,), torch.uint8, device)
    buffer = buffer[-buffer.data_ptr() % ALIGNMENT :][:size]
    slots_begin = size - shape.num_state_slots * rows.slot
    return (
        _views(buffer, shape.num_blocks, rows.block),
        _views(buffer[slots_begin:], shape.num_state_slots, rows.slot),
    )


def _views(buffer: Tensor, count: int, size: int) -> MakeTensor:
    """Gives one part after the other of rows of `size` bytes at the beginning of a buffer."""
    taken = 0

    def next_part(part: Part) -> Tensor:
        nonlocal taken
        (shape, dtype), begin = part, taken
        taken += _aligned_bytes(part)
        strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
        numbers = buffer[begin:].view(dtype)
        return numbers.as_strided((count, *shape), (size // dtype.itemsize, *strides))

    return next_part


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


RowCopy = tuple[Literal["block", "slot"], int, int]  # what is copied, from which, to which


def copy_rows(caches: Sequence[LayerCache], copies: Sequence[RowCopy]) -> None:
    """Copy blocks and state slots in all layers, one after the other: each reads what those before it have written."""
    if not copies:
        return
    rows = {"block": whole_rows(block_tensors(caches)), "slot": whole_rows(state_tensors(caches))}
    for kind, source, target in copies:
        for tensor in rows[kind]:
            tensor[target].copy_(tensor[source])


def whole_rows(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """As one tensor (rows, bytes) where the rows of all of them lie side by side in one buffer; else as they are."""
    if len({tensor.untyped_storage().data_ptr() for tensor in tensors}) != 1 or len(tensors) == 1:
        return tensors
    first = min(tensors, key=lambda tensor: tensor.data_ptr())
    size = first.stride(0) * first.itemsize
    begin = first.storage_offset() * first.itemsize
    content = torch.empty(0, dtype=torch.uint8, device=first.device).set_(first.untyped_storage())
    return [content.as_strided((len(first), size), (size, 1), begin)]


def read_rows(tensors: Sequence[Tensor], rows: Sequence[int], *, stream: torch.cuda.Stream | None = None) -> memoryview:
    """A copy of some rows of each tensor in the host's memory, all of the first tensor before those of the next.

    Args:
        stream: on a GPU, on which the copy goes on after this returns; it is of what the rows are now.
    """
    index = _on_device(rows, tensors[0].device)
    sizes = _sizes(tensors, rows)
    # Together on the device first, so that there is one transfer and not one for each tensor.
    together = torch.empty(sum(sizes), dtype=torch.uint8, device=index.device)
    for tensor, part in zip(tensors, together.split(sizes), strict=True):
        torch.index_select(tensor, 0, index, out=_as_rows(part, tensor))
    if stream is None:
        return together.cpu().numpy().data
    content = torch.empty(together.numel(), dtype=torch.uint8, pin_memory=True)
    stream.wait_stream(torch.cuda.current_stream(together.device))
    with torch.cuda.stream(stream):
        content.copy_(together, non_blocking=True)
    together.record_stream(stream)  # its memory is not given to others before the copy is made
    return content.numpy().data


def write_rows(
    tensors: Sequence[Tensor], rows: Sequence[int], content: memoryview, *, stream: torch.cuda.Stream | None = None
) -> None:
    """Put back what `read_rows` gave, into rows that may be others; those that go to -1 are left out. `content` must be
    writable, as torch wants it.

    Args:
        stream: on a GPU, on which the bytes are carried over, beside the steps that were begun before; what is begun
            after this returns finds them. `content` must stay as it is until they have arrived.
    Raises:
        ValueError: it is not of so many rows of these tensors.
    """
    sizes = _sizes(tensors, rows)
    if sum(sizes) != len(content):
        raise ValueError(f"{len(content):,} bytes for rows of {sum(sizes):,} bytes")
    chosen = [number for number, row in enumerate(rows) if row >= 0]
    if not content or not chosen:
        return
    device = tensors[0].device
    index, places = _on_device([rows[number] for number in chosen], device), _on_device(chosen, device)
    together = _carried_over(torch.frombuffer(content, dtype=torch.uint8), device, stream)
    for tensor, part in zip(tensors, together.split(sizes), strict=True):
        content_rows = _as_rows(part, tensor)
        tensor.index_copy_(0, index, content_rows if len(chosen) == len(rows) else content_rows[places])


def _carried_over(content: Tensor, device: torch.device, stream: torch.cuda.Stream | None) -> Tensor:
    """A copy on the device, for what follows on the current stream."""
    if stream is None:
        # A copy even on a CPU: what was read from somewhere may begin at any address.
        return content.to(device, copy=True)
    with torch.cuda.stream(stream):
        copied = content.to(device, non_blocking=True)
    current = torch.cuda.current_stream(device)
    current.wait_stream(stream)
    copied.record_stream(current)  # its memory is not given to others before it is read
    return copied


def _on_device(numbers: Sequence[int], device: torch.device) -> Tensor:
    """Row numbers as a tensor. On a GPU nothing is waited for, as it would be for memory that is not page-locked."""
    index = torch.tensor(numbers, dtype=torch.int64, pin_memory=device.type == "cuda")
    return index.to(device, non_blocking=True)


def _sizes(tensors: Sequence[Tensor], rows: Sequence[int]) -> list[int]:
    return [tensor[0].numel() * tensor.itemsize * len(rows) for tensor in tensors]


def _as_rows(content: Tensor, tensor: Tensor) -> Tensor:
    """Bytes as rows of a tensor."""
    return content.view(tensor.dtype).view(-1, *tensor.shape[1:])


def row_layout(caches: Sequence[LayerCache]) -> str:
    """What a row of each tensor is made of, as text: rows of caches of another layout mean something else."""
    tensors = [*block_tensors(caches), *state_tensors(caches)]
    return ";".join(f"{tensor.dtype}{tuple(tensor.shape[1:])}" for tensor in tensors)
