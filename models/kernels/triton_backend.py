"""Our own Triton kernels behind the interface. Imported only where the rule takes them: triton may not be there."""

from torch import Tensor

from models.batch import ForwardBatch
from models.cache import KVCache
from models.config import ScoreSpec
from models.kernels import attention_triton
from models.kernels.interface import AttentionKernels
from models.kernels.recurrent_triton import conv_step as conv_step
from models.kernels.recurrent_triton import delta_step as delta_step
from models.kernels.recurrent_triton import selective_scan as selective_scan
from models.kernels.recurrent_triton import selective_step as selective_step
from models.kernels.recurrent_triton import ssd_step as ssd_step


def write_kv(cache: KVCache, keys: Tensor, values: Tensor, slot_mapping: Tensor) -> None:
    attention_triton.write_kv(cache.keys, cache.values, keys, values, slot_mapping)


def attend(q: Tensor, cache: KVCache, batch: ForwardBatch, *, scores: ScoreSpec, sinks: Tensor | None) -> Tensor:
    """Decodes by the kernel that divides long contexts, all else by the one for runs of queries."""
    sizes, singles = batch.on_device, batch.singles
    pool = (cache.keys, cache.values)
    if singles.rows is None:
        return attention_triton.attend_decode(q, *pool, sizes.block_tables, sizes.lengths, scores=scores, sinks=sinks)
    out = attention_triton.attend_prefill(
        q,
        *pool,
        sizes.block_tables,
        sizes.query_start,
        sizes.lengths,
        max_query=sizes.max_query,
        scores=scores,
        sinks=sinks,
    )
    if singles.count:
        tables, lengths = sizes.block_tables[singles.sequences], sizes.lengths[singles.sequences]
        out[singles.rows] = attention_triton.attend_decode(
            q[singles.rows], *pool, tables, lengths, scores=scores, sinks=sinks
        )
    return out


ATTENTION = AttentionKernels(write_kv, attend)
