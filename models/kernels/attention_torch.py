"""Paged attention in plain torch: correct on every device, and the reference for faster backends."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from models.batch import ForwardBatch
from models.cache import KVCache
from models.config import ScoreSpec
from models.layers import soft_cap

PLAIN = ScoreSpec()
MAX_SCORES = 1 << 25  # what is held of them at once where they are written out
GATHERED_BYTES = 16 << 20  # of keys and values at a time, which a processor's cache then still holds when they are read
SHORT = 256  # positions up to which one call for all costs less than a call for each length


def write_kv(cache: KVCache, keys: Tensor, values: Tensor, slot_mapping: Tensor) -> None:
    """Store new keys and values (t, kv_heads, head_dim) at their slots; rows mapped to -1 are dropped."""
    written = slot_mapping >= 0
    if not bool(written.all()):
        slot_mapping, keys, values = slot_mapping[written], keys[written], values[written]
    if cache.keys.is_contiguous():
        for pool, new in ((cache.keys, keys), (cache.values, values)):
            pool.flatten(0, 1).index_copy_(0, slot_mapping, new.to(pool.dtype))
        return
    # Flattened, a pool whose blocks lie apart would be a copy, and what is written to it lost.
    where = slot_mapping // cache.keys.shape[1], slot_mapping % cache.keys.shape[1]
    for pool, new in ((cache.keys, keys), (cache.values, values)):
        pool.index_put_(where, new.to(pool.dtype))


def _attend(
    q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, *, scores: ScoreSpec, sinks: Tensor | None
) -> Tensor:
    """softmax(cap(scale * q.k)) v, causal where mask is None.

    Shapes: b sequences, n queries, t keys; t = n where mask is None.

    Args:
        q: (b, heads, n, head_dim). keys, values: (b, kv_heads, t, head_dim).
        mask: bool, (n, t) or (b, 1, n, t), True where a query may look; at least one in each row.
        sinks: (heads,), a logit of each head that takes weight and gives nothing.
    Returns:
        (b, heads, n, head_dim) in q's dtype.
    """
    if scores.softcap is None and sinks is None:
        return F.scaled_dot_product_attention(
            q,
            keys,
            values,
            attn_mask=mask,
            is_causal=mask is None,
            scale=scores.scale,
            enable_gqa=q.shape[1] != keys.shape[1],
        )
    if mask is None:
        mask = torch.ones(q.shape[2], keys.shape[2], dtype=torch.bool, device=q.device).tril()
    step = max(1, MAX_SCORES // (q.shape[0] * q.shape[1] * keys.shape[2]))
    parts = zip(q.split(step, 2), mask.split(step, -2), strict=True)
    runs = [_attend_run(queries, keys, values, rows, scores=scores, sinks=sinks) for queries, rows in parts]
    return runs[0] if len(runs) == 1 else torch.cat(runs, 2)


def _attend_run(
    q: Tensor, keys: Tensor, values: Tensor, mask: Tensor, *, scores: ScoreSpec, sinks: Tensor | None
) -> Tensor:
    """`_attend` written out, for so few queries that their scores fit into memory."""
    scale = q.shape[-1] ** -0.5 if scores.scale is None else scores.scale
    num_queries, num_kv_heads = q.shape[2], keys.shape[1]
    # The queries that share a key head become rows of one product, so that no key is copied.
    rows = q.unflatten(1, (num_kv_heads, -1)).flatten(2, 3)
    products = (rows @ keys.transpose(-1, -2)).float().unflatten(2, (-1, num_queries))  # b kv g n t
    logits = products.flatten(1, 2) * scale
    if scores.softcap is not None:
        logits = soft_cap(logits, scores.softcap)
    logits = logits.masked_fill(~mask, -torch.inf)
    if sinks is None:
        weights = logits.softmax(-1)
    else:
        column = sinks.float().view(-1, 1, 1).expand(*logits.shape[:-1], 1)
        weights = torch.cat((logits, column), -1).softmax(-1)[..., :-1]
    weights = weights.to(q.dtype)
    out = weights.unflatten(1, (num_kv_heads, -1)).flatten(2, 3) @ values
    return out.unflatten(2, (-1, num_queries)).flatten(1, 2)


def _causal_mask(
    first_query: int, num_queries: int, first_key: int, window: int | None, device: torch.device
) -> Tensor:
    """(num_queries, keys from first_key to the last query) bool, True where a query may look."""
    stop = first_query + num_queries
    columns = torch.arange(first_key, stop, device=device)
    rows = torch.arange(first_query, stop, device=device).unsqueeze(-1)
    mask = columns <= rows
    return mask if window is None else mask & (columns > rows - window)


def attend_dense(
    q: Tensor, keys: Tensor, values: Tensor, *, scores: ScoreSpec = PLAIN, sinks: Tensor | None = None
) -> Tensor:
    """Causal attention of whole sequences without a cache.

    Shapes: q (b, l, heads, head_dim), keys and values (b, l, kv_heads, head_dim) -> (b, l, heads, head_dim); sinks
    (heads,).
    """
    length, window = q.shape[1], scores.window
    mask = None if window is None or window >= length else _causal_mask(0, length, 0, window, q.device)
    q, keys, values = (tensor.transpose(1, 2) for tensor in (q, keys, values))
    return _attend(q, keys, values, mask, scores=scores, sinks=sinks).transpose(1, 2)


def attend(
    q: Tensor,
    cache: KVCache,
    batch: ForwardBatch,
    *,
    scores: ScoreSpec,
    sinks: Tensor | None,
    decode: Callable[..., Tensor] | None = None,
    prefill: Callable[..., Tensor] | None = None,
) -> Tensor:
    """Causal attention of a mixed batch's new tokens over what their sequences have written, themselves included.

    Shapes: q (t, heads, head_dim), rotated -> the same. decode, prefill: what computes in the place of
    `attend_decode` and `attend_prefill`.
    """
    singles, decode, prefill = batch.singles, decode or attend_decode, prefill or attend_prefill
    if singles.rows is None:
        return decode(q, cache, batch.block_tables, batch.written, scores=scores, sinks=sinks)
    if len(batch.num_new) == 1:
        context_len = int(batch.context_lens[0])
        return prefill(q, cache, batch.block_tables[0], context_len, scores=scores, sinks=sinks)
    out = torch.empty_like(q)
    if singles.count:
        tables, lengths = batch.block_tables[singles.sequences], batch.written[singles.on_cpu]
        out[singles.rows] = decode(q[singles.rows], cache, tables, lengths, scores=scores, sinks=sinks)
    for i in batch.runs:
        start, stop = int(batch.query_start[i]), int(batch.query_start[i + 1])
        table, context_len = batch.block_tables[i], int(batch.context_lens[i])
        out[start:stop] = prefill(q[start:stop], cache, table, context_len, scores=scores, sinks=sinks)
    return out


def attend_prefill(
    q: Tensor,
    cache: KVCache,
    block_table: Tensor,
    context_len: int,
    *,
    scores: ScoreSpec = PLAIN,
    sinks: Tensor | None = None,
) -> Tensor:
    """Causal attention of one sequence's new tokens over everything it has written, themselves included.

    Args:
        q: (n, heads, head_dim), rotated; the tokens at positions context_len .. context_len + n - 1.
        block_table: (m,) int64, covering at least context_len + n positions.
        sinks: (heads,), a logit of each head that takes weight and gives nothing.
    Returns:
        (n, heads, head_dim) in q's dtype.
    """
    block_size, total, window = cache.keys.shape[1], context_len + q.shape[0], scores.window
    if window is not None and window >= total:
        window = None
    # Blocks that lie wholly before the first query's window are not read.
    first_block = 0 if window is None else max(0, context_len + 1 - window) // block_size
    first_key = first_block * block_size
    blocks = block_table[first_block : -(-total // block_size)]
    keys, values = (_gather(pool, blocks)[: total - first_key].to(q.dtype) for pool in (cache.keys, cache.values))
    mask = None
    if context_len or window is not None:
        mask = _causal_mask(context_len, q.shape[0], first_key, window, q.device)
    q, keys, values = (tensor.transpose(0, 1).unsqueeze(0) for tensor in (q, keys, values))
    return _attend(q, keys, values, mask, scores=scores, sinks=sinks).squeeze(0).transpose(0, 1)


def attend_decode(
    q: Tensor,
    cache: KVCache,
    block_tables: Tensor,
    lengths: Tensor,
    *,
    scores: ScoreSpec = PLAIN,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attention of one new token per sequence, sequences of similar length at once.

    Args:
        q: (b, heads, head_dim), rotated. block_tables: (b, m) int64, -1 = padding.
        lengths: (b,) int64 on the CPU, positions written, the new token's own included.
        sinks: (heads,), a logit of each head that takes weight and gives nothing.
    Returns:
        (b, heads, head_dim) in q's dtype.
    """
    attended = lengths if scores.window is None else lengths.clamp(max=scores.window)
    groups = group_by_length(attended.tolist())
    if len(groups) == 1:
        return _attend_decode_padded(q, cache, block_tables, lengths, scores=scores, sinks=sinks)
    out = torch.empty_like(q)
    for group in groups:
        rows = torch.tensor(group)
        there = rows.to(q.device)
        tables = block_tables[there]
        out[there] = _attend_decode_padded(q[there], cache, tables, lengths[rows], scores=scores, sinks=sinks)
    return out


def group_by_length(lengths: Sequence[int]) -> list[list[int]]:
    """Indices of the lengths, together where padding to the longest at most doubles the work or the work is small."""
    groups: dict[int, list[int]] = {}
    for index, length in enumerate(lengths):
        groups.setdefault(((length - 1) // SHORT).bit_length(), []).append(index)
    return list(groups.values())


def _attend_decode_padded(
    q: Tensor, cache: KVCache, block_tables: Tensor, lengths: Tensor, *, scores: ScoreSpec, sinks: Tensor | None
) -> Tensor:
    """`attend_decode` in one call, every sequence padded to the longest."""
    block_size = cache.keys.shape[1]
    if scores.window is None:
        tables = block_tables[:, : -(-int(lengths.max()) // block_size)]
        mask = torch.arange(tables.shape[1] * block_size, device=q.device) < lengths.to(q.device).unsqueeze(-1)
    else:
        tables, mask = _window_blocks(block_tables, lengths, block_size, scores.window)
    tables, dtype = tables.clamp(min=0), q.dtype
    on_cpu = q.device.type == "cpu"
    # A processor takes one query at a time in short numbers two to four times longer than in float32.
    wide = q.float() if on_cpu else q
    row_bytes = 2 * mask.shape[1] * cache.keys[0, 0].numel() * wide.itemsize
    rows = max(1, GATHERED_BYTES // row_bytes) if on_cpu else len(q)
    outs = [
        _attend_gathered(queries, blocks, there, cache, scores=scores, sinks=sinks)
        for queries, blocks, there in zip(wide.split(rows), tables.split(rows), mask.split(rows), strict=True)
    ]
    return (outs[0] if len(outs) == 1 else torch.cat(outs)).to(dtype)


def _attend_gathered(
    q: Tensor, tables: Tensor, mask: Tensor, cache: KVCache, *, scores: ScoreSpec, sinks: Tensor | None
) -> Tensor:
    """q (b, heads, head_dim) over all positions of its blocks, tables (b, m), that mask (b, m * block_size) has."""
    keys, values = (_gather(pool, tables.flatten()).unflatten(0, mask.shape) for pool in (cache.keys, cache.values))
    if not cache.keys.is_contiguous():
        # Where blocks share their bytes with states, what no sequence has written may be NaN, which times 0 is NaN.
        keys, values = (gathered.masked_fill_(~mask[..., None, None], 0) for gathered in (keys, values))
    keys, values = (gathered.to(q.dtype).transpose(1, 2) for gathered in (keys, values))
    return _attend(q.unsqueeze(2), keys, values, mask[:, None, None, :], scores=scores, sinks=sinks).squeeze(2)


def _gather(pool: Tensor, blocks: Tensor) -> Tensor:
    """The positions of these blocks, one after the other: pool (n, block_size, ...), blocks (m,) int64."""
    return pool.index_select(0, blocks).flatten(0, 1)  # copies whole blocks, where indexing goes entry by entry


def _window_blocks(block_tables: Tensor, lengths: Tensor, block_size: int, window: int) -> tuple[Tensor, Tensor]:
    """The part of each table that holds the last `window` positions, (b, w), and which of its positions those are.

    Returns:
        (b, w) int64 blocks; (b, w * block_size) bool, True for positions inside the window and the sequence.
    """
    device = block_tables.device
    starts = (lengths - window).clamp(min=0)
    first_blocks = starts // block_size
    num_blocks = int((-(-lengths // block_size) - first_blocks).max())
    starts, lengths, first_blocks = (tensor.to(device).unsqueeze(-1) for tensor in (starts, lengths, first_blocks))
    columns = first_blocks + torch.arange(num_blocks, device=device)
    positions = first_blocks * block_size + torch.arange(num_blocks * block_size, device=device)
    tables = block_tables.gather(1, columns.clamp(max=block_tables.shape[1] - 1))
    return tables, (positions >= starts) & (positions < lengths)
