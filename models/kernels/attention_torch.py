"""Paged attention in plain torch: correct on every device, and the reference for faster backends."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from models.cache import KVCache

SHORT = 256  # positions up to which one call for all costs less than a call for each length


def write_kv(cache: KVCache, keys: Tensor, values: Tensor, slot_mapping: Tensor) -> None:
    """Store new keys and values (t, kv_heads, head_dim) at their slots; rows mapped to -1 are dropped."""
    written = slot_mapping >= 0
    if not bool(written.all()):
        slot_mapping, keys, values = slot_mapping[written], keys[written], values[written]
    cache.keys.flatten(0, 1).index_copy_(0, slot_mapping, keys.to(cache.keys.dtype))
    cache.values.flatten(0, 1).index_copy_(0, slot_mapping, values.to(cache.values.dtype))


def attend_prefill(q: Tensor, cache: KVCache, block_table: Tensor, context_len: int) -> Tensor:
    """Causal attention of one sequence's new tokens over everything it has written, themselves included.

    Args:
        q: (n, heads, head_dim), rotated; the tokens at positions context_len .. context_len + n - 1.
        block_table: (m,) int64, covering at least context_len + n positions.
    Returns:
        (n, heads, head_dim) in q's dtype.
    """
    num_new = q.shape[0]
    total = context_len + num_new
    num_blocks = -(-total // cache.keys.shape[1])
    keys = cache.keys[block_table[:num_blocks]].flatten(0, 1)[:total].to(q.dtype)
    values = cache.values[block_table[:num_blocks]].flatten(0, 1)[:total].to(q.dtype)
    mask = None
    if context_len:
        columns = torch.arange(total, device=q.device)
        rows = torch.arange(context_len, total, device=q.device)
        mask = columns <= rows.unsqueeze(-1)
    out = F.scaled_dot_product_attention(
        q.transpose(0, 1).unsqueeze(0),
        keys.transpose(0, 1).unsqueeze(0),
        values.transpose(0, 1).unsqueeze(0),
        attn_mask=mask,
        is_causal=mask is None,
        enable_gqa=q.shape[1] != keys.shape[1],
    )
    return out.squeeze(0).transpose(0, 1)


def attend_decode(q: Tensor, cache: KVCache, block_tables: Tensor, lengths: Tensor) -> Tensor:
    """Attention of one new token per sequence, sequences of similar length at once.

    Args:
        q: (b, heads, head_dim), rotated. block_tables: (b, m) int64, -1 = padding.
        lengths: (b,) int64 on the CPU, positions to attend to, the new token's own included.
    Returns:
        (b, heads, head_dim) in q's dtype.
    """
    groups = group_by_length(lengths.tolist())
    if len(groups) == 1:
        return _attend_decode_padded(q, cache, block_tables, lengths)
    out = torch.empty_like(q)
    for group in groups:
        rows = torch.tensor(group)
        there = rows.to(q.device)
        out[there] = _attend_decode_padded(q[there], cache, block_tables[there], lengths[rows])
    return out


def group_by_length(lengths: Sequence[int]) -> list[list[int]]:
    """Indices of the lengths, together where padding to the longest at most doubles the work or the work is small."""
    groups: dict[int, list[int]] = {}
    for index, length in enumerate(lengths):
        groups.setdefault(((length - 1) // SHORT).bit_length(), []).append(index)
    return list(groups.values())


def _attend_decode_padded(q: Tensor, cache: KVCache, block_tables: Tensor, lengths: Tensor) -> Tensor:
    """`attend_decode` in one call, every sequence padded to the longest."""
    block_size = cache.keys.shape[1]
    num_blocks = -(-int(lengths.max()) // block_size)
    tables = block_tables[:, :num_blocks].clamp(min=0)
    keys = cache.keys[tables].flatten(1, 2).to(q.dtype)
    values = cache.values[tables].flatten(1, 2).to(q.dtype)
    mask = torch.arange(keys.shape[1], device=q.device) < lengths.to(q.device).unsqueeze(-1)
    out = F.scaled_dot_product_attention(
        q.unsqueeze(2),
        keys.transpose(1, 2),
        values.transpose(1, 2),
        attn_mask=mask[:, None, None, :],
        enable_gqa=q.shape[1] != keys.shape[2],
    )
    return out.squeeze(2)
