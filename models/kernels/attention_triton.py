"""Paged attention for a GPU that has torch alone: kernels in Triton, which torch's CUDA builds bring with them.

It imports triton at its top, so only what has made sure of triton may import it. Nothing here waits for the GPU or
reads a tensor on the host: grids follow from shapes, so that a decode step can be captured in a CUDA graph. The kernels
are launched on the current CUDA device, which must be the tensors' own.
"""

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from models.config import ScoreSpec
from models.kernels.softmax_triton import FLOOR, LOG2E, read_range, with_sinks

# A decode program that reads fewer positions than this costs more to start and combine than it saves.
MIN_SPLIT: tl.constexpr = tl.constexpr(128)
MAX_SPLITS: tl.constexpr = tl.constexpr(128)
# And one that reads more than this would keep the others waiting, however many sequences fill the GPU.
LONG_SPLIT = 8192
PROGRAMS_PER_PROCESSOR = 4
TILE_BYTES = 16 << 10
SEARCH: tl.constexpr = tl.constexpr(128)  # sequences looked at together for the one that owns a tile
COMBINED: tl.constexpr = tl.constexpr(16)  # splits added together


@triton.jit
def _split_size(attended, splits, TILE: tl.constexpr):
    """Positions per split, in whole tiles. By the sequence's own length, so that a short one is split as well."""
    return tl.maximum(tl.cdiv(tl.cdiv(attended, splits), TILE) * TILE, tl.maximum(MIN_SPLIT, TILE))


@triton.jit(do_not_specialize=["table_stride"])
def _decode_kernel(
    out_ptr, read_ptr, peak_ptr, total_ptr, q_ptr, keys_ptr, values_ptr, tables_ptr, lengths_ptr, sinks_ptr,
    q_stride, q_head_stride, table_stride, block_stride, scale,
    WHOLE: tl.constexpr, SOFTCAP: tl.constexpr, WINDOW: tl.constexpr, GROUP: tl.constexpr, KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr, ROWS: tl.constexpr, DIMS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Program (key head, split, sequence): the queries of one key head over one split of a sequence's positions.

    WHOLE: there is one split, and its result is the output.
    """
    # Neighbouring programs read neighbouring heads of the same blocks.
    kv_head, split, sequence = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    splits = tl.num_programs(1)
    length = tl.load(lengths_ptr + sequence).to(tl.int32)
    begin = 0
    if WINDOW is not None:
        begin = tl.maximum(length - WINDOW, 0)
    size = _split_size(length - begin, splits, TILE)
    start = begin + split * size
    if not WHOLE:  # noqa: SIM102 - decided when this is compiled, the other one when it runs
        if start >= length:
            return
    stop = tl.minimum(start + size, length)

    rows, dims = tl.arange(0, ROWS), tl.arange(0, DIMS)
    heads = kv_head * GROUP + rows
    there = (rows < GROUP)[:, None] & (dims < HEAD_DIM)[None, :]
    q_offsets = sequence * q_stride + heads[:, None] * q_head_stride + dims[None, :]
    q = tl.load(q_ptr + q_offsets, mask=there, other=0.0)
    read = tl.zeros([ROWS, DIMS], dtype=tl.float32)
    peak, total = tl.full([ROWS], FLOOR, dtype=tl.float32), tl.zeros([ROWS], dtype=tl.float32)
    positions = tl.zeros([ROWS], dtype=tl.int32) + (length - 1)
    head_offset = kv_head * HEAD_DIM
    read, peak, total = read_range(
        q, read, peak, total, positions, start, stop, tables_ptr + sequence * table_stride, keys_ptr + head_offset,
        values_ptr + head_offset, block_stride, scale, True, SOFTCAP, None, HEAD_DIM, KV_HEADS, BLOCK_SIZE, TILE,
    )  # fmt: skip

    out_rows = sequence * (KV_HEADS * GROUP) + heads
    if WHOLE:
        factor, divisor = with_sinks(peak, total, sinks_ptr, heads, rows < GROUP)
        read = read * (factor / divisor)[:, None]
        offsets = out_rows[:, None] * HEAD_DIM + dims[None, :]
        tl.store(out_ptr + offsets, read.to(out_ptr.dtype.element_ty), mask=there)
    else:
        part_rows = out_rows * splits + split
        tl.store(read_ptr + part_rows[:, None] * HEAD_DIM + dims[None, :], read, mask=there)
        tl.store(peak_ptr + part_rows, peak, mask=rows < GROUP)
        tl.store(total_ptr + part_rows, total, mask=rows < GROUP)


@triton.jit(do_not_specialize=["splits"])
def _combine_kernel(
    out_ptr, read_ptr, peak_ptr, total_ptr, lengths_ptr, sinks_ptr, splits,
    WINDOW: tl.constexpr, HEAD_DIM: tl.constexpr, DIMS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Program (head, sequence): one softmax of what `_decode_kernel` read split by split."""
    head, sequence = tl.program_id(0), tl.program_id(1).to(tl.int64)
    attended = tl.load(lengths_ptr + sequence).to(tl.int32)
    if WINDOW is not None:
        attended = tl.minimum(attended, WINDOW)
    used = tl.cdiv(attended, _split_size(attended, splits, TILE))
    row = sequence * tl.num_programs(0) + head
    first_part = row * splits

    parts = tl.arange(0, MAX_SPLITS)
    peaks = tl.load(peak_ptr + first_part + parts, mask=parts < used, other=FLOOR)
    totals = tl.load(total_ptr + first_part + parts, mask=parts < used, other=0.0)
    peak = tl.max(peaks, axis=0)
    total = tl.sum(totals * tl.exp2(peaks - peak), axis=0)
    dims = tl.arange(0, DIMS)
    read = tl.zeros([DIMS], dtype=tl.float32)
    for first in tl.range(0, used, COMBINED):
        part = first + tl.arange(0, COMBINED)
        weights = tl.exp2(tl.load(peak_ptr + first_part + part, mask=part < used, other=FLOOR) - peak)
        there = (part < used)[:, None] & (dims < HEAD_DIM)[None, :]
        reads = tl.load(read_ptr + (first_part + part)[:, None] * HEAD_DIM + dims[None, :], mask=there, other=0.0)
        read += tl.sum(reads * weights[:, None], axis=0)
    factor, divisor = with_sinks(peak, total, sinks_ptr, head, True)
    read = read * (factor / divisor)
    tl.store(out_ptr + row * HEAD_DIM + dims, read.to(out_ptr.dtype.element_ty), mask=dims < HEAD_DIM)


@triton.jit
def _owner(tile, query_start_ptr, num_sequences, QUERIES: tl.constexpr):
    """The sequence that a tile of queries belongs to, where sequence i has those from query_start[i] // QUERIES + i on.

    That is one tile more than needed at most, and spares a grid of as many tiles for all as the longest one has.
    """
    before = 0
    for first in tl.range(0, num_sequences, SEARCH):
        sequences = first + tl.arange(0, SEARCH)
        starts = tl.load(query_start_ptr + sequences, mask=sequences < num_sequences, other=0).to(tl.int32)
        begun = (sequences < num_sequences) & (starts // QUERIES + sequences <= tile)
        before += tl.sum(begun.to(tl.int32), axis=0)
    return before - 1


@triton.jit(do_not_specialize=["table_stride", "num_sequences"])
def _prefill_kernel(
    out_ptr, q_ptr, keys_ptr, values_ptr, tables_ptr, query_start_ptr, lengths_ptr, sinks_ptr,
    q_stride, q_head_stride, table_stride, block_stride, num_sequences, scale,
    SOFTCAP: tl.constexpr, WINDOW: tl.constexpr, GROUP: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, QUERIES: tl.constexpr, ROWS: tl.constexpr, DIMS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Program (tile, key head): QUERIES neighbouring tokens of a sequence, each with the GROUP heads of a key head."""
    # Programs that run together read the same keys; those with most to read begin first.
    tile, kv_head = tl.num_programs(0) - 1 - tl.program_id(0), tl.program_id(1)
    sequence = _owner(tile, query_start_ptr, num_sequences, QUERIES)
    begin = tl.load(query_start_ptr + sequence).to(tl.int32)
    num_queries = tl.load(query_start_ptr + sequence + 1).to(tl.int32) - begin
    first_query = (tile - begin // QUERIES - sequence) * QUERIES
    if first_query >= num_queries:
        return

    rows, dims = tl.arange(0, ROWS), tl.arange(0, DIMS)
    queries, heads = first_query + rows // GROUP, kv_head * GROUP + rows % GROUP
    used = (rows < QUERIES * GROUP) & (queries < num_queries)
    there = used[:, None] & (dims < HEAD_DIM)[None, :]
    tokens = (begin + queries).to(tl.int64)
    q = tl.load(q_ptr + tokens[:, None] * q_stride + heads[:, None] * q_head_stride + dims[None, :], there, other=0.0)

    context = tl.load(lengths_ptr + sequence).to(tl.int32) - num_queries
    first_position = context + first_query
    stop = context + tl.minimum(first_query + QUERIES, num_queries)
    head_offset = kv_head * HEAD_DIM
    table_ptr = tables_ptr + sequence.to(tl.int64) * table_stride
    read = tl.zeros([ROWS, DIMS], dtype=tl.float32)
    peak, total = tl.full([ROWS], FLOOR, dtype=tl.float32), tl.zeros([ROWS], dtype=tl.float32)
    if WINDOW is None:
        # The tiles that every query sees need no mask; they are nearly all of a long context.
        start = tl.maximum(first_position + 1, 0) // TILE * TILE
        read, peak, total = read_range(
            q, read, peak, total, context + queries, 0, start, table_ptr, keys_ptr + head_offset,
            values_ptr + head_offset, block_stride, scale, False, SOFTCAP, None, HEAD_DIM, KV_HEADS, BLOCK_SIZE, TILE,
        )  # fmt: skip
    else:
        start = tl.maximum(first_position - WINDOW + 1, 0)
    read, peak, total = read_range(
        q, read, peak, total, context + queries, start, stop, table_ptr, keys_ptr + head_offset,
        values_ptr + head_offset, block_stride, scale, True, SOFTCAP, WINDOW, HEAD_DIM, KV_HEADS, BLOCK_SIZE, TILE,
    )  # fmt: skip
    factor, divisor = with_sinks(peak, total, sinks_ptr, heads, used)
    read = read * (factor / divisor)[:, None]
    offsets = (tokens * (KV_HEADS * GROUP))[:, None] * HEAD_DIM + heads[:, None] * HEAD_DIM + dims[None, :]
    tl.store(out_ptr + offsets, read.to(out_ptr.dtype.element_ty), mask=there)


@triton.jit
def _write_kernel(
    keys_ptr, values_ptr, new_keys_ptr, new_values_ptr, slots_ptr,
    block_stride, key_stride, key_head_stride, value_stride, value_head_stride,
    HEAD_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr, SIZE: tl.constexpr, PIECE: tl.constexpr,
):  # fmt: skip
    """Program (token, piece): PIECE of the SIZE entries that a token has in all its key heads."""
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + token).to(tl.int64)
    if slot < 0:
        return
    entries = tl.program_id(1) * PIECE + tl.arange(0, PIECE)
    heads, dims = entries // HEAD_DIM, entries % HEAD_DIM
    there = entries < SIZE
    offsets = slot // BLOCK_SIZE * block_stride + slot % BLOCK_SIZE * SIZE + entries
    keys = tl.load(new_keys_ptr + token * key_stride + heads * key_head_stride + dims, mask=there)
    values = tl.load(new_values_ptr + token * value_stride + heads * value_head_stride + dims, mask=there)
    tl.store(keys_ptr + offsets, keys.to(keys_ptr.dtype.element_ty), mask=there)
    tl.store(values_ptr + offsets, values.to(values_ptr.dtype.element_ty), mask=there)


@cache
def _num_processors(device: torch.device) -> int:
    """Streaming multiprocessors; without a GPU, where the interpreter only has to be right, an H100's."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132


def _num_splits(programs: int, positions: int, num_processors: int) -> int:
    """Into how many parts at most the positions of a sequence are divided, `programs` being there without that."""
    filling = -(-PROGRAMS_PER_PROCESSOR * num_processors // programs)
    wanted = max(filling, -(-positions // LONG_SPLIT))
    return max(1, min(wanted, positions // MIN_SPLIT.value, MAX_SPLITS.value))


def _tile(dims: int, dtype: torch.dtype) -> int:
    """Keys read together: 16 KiB of them, of which the pipeline holds one or two tiles, and as many of values."""
    return min(128, max(16, TILE_BYTES // (dims * dtype.itemsize)))


def _base_two_scale(scores: ScoreSpec, head_dim: int) -> float:
    """The factor on q.k before the soft cap, or of the scores to the base of two where there is none."""
    scale = head_dim**-0.5 if scores.scale is None else scores.scale
    return scale * LOG2E if scores.softcap is None else scale / scores.softcap


def _checked(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """q with its heads' entries next to each other. Raises ValueError where the shapes or strides do not fit."""
    if q.dim() != 3 or keys.dim() != 4 or q.shape[2] != keys.shape[3] or q.shape[1] % keys.shape[2]:
        raise ValueError(f"queries {tuple(q.shape)} do not fit to cached keys {tuple(keys.shape)}")
    _check_cache(keys, values)
    return q if q.stride(2) == 1 else q.contiguous()


def _check_cache(keys: Tensor, values: Tensor) -> None:
    if keys.shape != values.shape or keys.stride() != values.stride() or keys.dtype != values.dtype:
        raise ValueError("cached keys and values differ in shape, layout or dtype")
    if not keys[0].is_contiguous():
        raise ValueError("a cached block is not contiguous")


def attend_decode(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    block_tables: Tensor,
    lengths: Tensor,
    *,
    scores: ScoreSpec,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attention of one new token per sequence over what each has written.

    Shapes: b sequences, m blocks each at most.

    Args:
        q: (b, heads, head_dim), rotated. keys, values: (num_blocks, block_size, kv_heads, head_dim).
        block_tables: (b, m) int32 on the device; entries beyond a length are not read.
        lengths: (b,) int32 on the device, positions written, the new token's own included; 0 = padding row.
        sinks: (heads,), a logit of each head that takes weight and gives nothing.
    Returns:
        (b, heads, head_dim) in q's dtype; padding rows are zero.
    Raises:
        ValueError: shapes disagree, or a block is not contiguous.
    Source: arXiv:2307.08691; the splits: Flash-Decoding (Dao et al., 2023); sinks: arXiv:2309.17453.
    """
    q = _checked(q, keys, values)
    (batch, num_heads, head_dim), (_, block_size, kv_heads, _) = q.shape, keys.shape
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    group, dims = num_heads // kv_heads, max(16, triton.next_power_of_2(head_dim))
    positions = min(block_tables.shape[1] * block_size, scores.window or block_tables.shape[1] * block_size)
    splits = _num_splits(batch * kv_heads, positions, _num_processors(q.device))
    parts = (batch, num_heads, splits) if splits > 1 else (0,)
    read = torch.empty((*parts, head_dim), dtype=torch.float32, device=q.device)
    peak, total = (torch.empty(parts, dtype=torch.float32, device=q.device) for _ in range(2))
    shape = {"WINDOW": scores.window, "HEAD_DIM": head_dim, "DIMS": dims, "TILE": _tile(dims, q.dtype)}
    _decode_kernel[(kv_heads, splits, batch)](
        out, read, peak, total, q, keys, values, block_tables, lengths, sinks,
        q.stride(0), q.stride(1), block_tables.stride(0), keys.stride(0), _base_two_scale(scores, head_dim),
        WHOLE=splits == 1, SOFTCAP=scores.softcap, GROUP=group, KV_HEADS=kv_heads, BLOCK_SIZE=block_size,
        ROWS=max(16, triton.next_power_of_2(group)), **shape, num_warps=4, num_stages=3,
    )  # fmt: skip
    if splits > 1:
        _combine_kernel[(num_heads, batch)](out, read, peak, total, lengths, sinks, splits, **shape, num_warps=4)
    return out


def attend_prefill(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    block_tables: Tensor,
    query_start: Tensor,
    lengths: Tensor,
    *,
    max_query: int,
    scores: ScoreSpec,
    sinks: Tensor | None = None,
) -> Tensor:
    """Causal attention of a mixed batch's new tokens over what their sequences have written, themselves included.

    A sequence's positions are not divided: decodes over long contexts are quicker in `attend_decode`.

    Args:
        q: (t, heads, head_dim), rotated; sequence i has the rows query_start[i] .. query_start[i + 1] - 1.
        query_start: (b + 1,) int32 on the device. max_query: the most rows of a sequence.
        lengths: (b,) int32 on the device, positions written, the new tokens' own included.
        The others as in `attend_decode`.
    Returns:
        (t, heads, head_dim) in q's dtype; rows of no sequence are zero.
    Raises:
        ValueError: shapes disagree, or a block is not contiguous.
    Source: arXiv:2307.08691, Algorithm 1.
    """
    q = _checked(q, keys, values)
    (num_tokens, num_heads, head_dim), (_, block_size, kv_heads, _) = q.shape, keys.shape
    out = torch.zeros(q.shape, dtype=q.dtype, device=q.device)
    group, dims = num_heads // kv_heads, max(16, triton.next_power_of_2(head_dim))
    rows, num_warps = _prefill_rows(max_query, group, dims, q.dtype)
    queries, num_sequences = rows // group, len(lengths)
    _prefill_kernel[(num_tokens // queries + num_sequences, kv_heads)](
        out, q, keys, values, block_tables, query_start, lengths, sinks,
        q.stride(0), q.stride(1), block_tables.stride(0), keys.stride(0), num_sequences,
        _base_two_scale(scores, head_dim), SOFTCAP=scores.softcap, WINDOW=scores.window, GROUP=group,
        KV_HEADS=kv_heads, HEAD_DIM=head_dim, BLOCK_SIZE=block_size, QUERIES=queries, ROWS=rows, DIMS=dims,
        TILE=_tile(dims, q.dtype), num_warps=num_warps, num_stages=3,
    )  # fmt: skip
    return out


def _prefill_rows(max_query: int, group: int, dims: int, dtype: torch.dtype) -> tuple[int, int]:
    """Rows of queries that a program holds, and its warps: no more than there are, and than registers hold.

    A Hopper's tensor cores want two groups of four warps with 64 rows each. Float32 goes without them, and with more
    rows or fewer warps its operands spill from the registers.
    """
    most = 16 if dtype.itemsize > 2 else 128 if dims <= 256 else 32
    rows = next((size for size in (16, 32, 64) if max_query * group <= size), 128)
    rows = max(min(rows, most), triton.next_power_of_2(group))
    return rows, 8 if rows >= 128 or dtype.itemsize > 2 else 4


def write_kv(keys: Tensor, values: Tensor, new_keys: Tensor, new_values: Tensor, slot_mapping: Tensor) -> None:
    """Store new keys and values (t, kv_heads, head_dim) at their slots; rows mapped to -1 are dropped.

    Args:
        keys, values: (num_blocks, block_size, kv_heads, head_dim), written in place.
        slot_mapping: (t,) on the device, block * block_size + offset, distinct or -1.
    Raises:
        ValueError: shapes disagree, or a block is not contiguous.
    """
    _check_cache(keys, values)
    (_, block_size, kv_heads, head_dim), num_tokens = keys.shape, len(slot_mapping)
    if new_keys.shape != (num_tokens, kv_heads, head_dim) or new_values.shape != new_keys.shape:
        raise ValueError(f"new keys {tuple(new_keys.shape)} do not fit to cached keys {tuple(keys.shape)}")
    new_keys, new_values = (new if new.stride(2) == 1 else new.contiguous() for new in (new_keys, new_values))
    size = kv_heads * head_dim
    piece = min(1024, triton.next_power_of_2(size))
    _write_kernel[(num_tokens, triton.cdiv(size, piece))](
        keys, values, new_keys, new_values, slot_mapping, keys.stride(0), *new_keys.stride()[:2],
        *new_values.stride()[:2], HEAD_DIM=head_dim, BLOCK_SIZE=block_size, SIZE=size, PIECE=piece, num_warps=4,
    )  # fmt: skip
