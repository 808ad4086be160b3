"""FlashAttention behind the interface: the package flash-attn, and the kernels that torch brings itself."""

import importlib
from typing import Any

from torch import Tensor

from models.batch import ForwardBatch
from models.cache import KVCache
from models.config import ScoreSpec
from models.kernels.interface import Attend, AttentionKernels
from models.kernels.triton_backend import write_kv


def flash_window(scores: ScoreSpec) -> tuple[int, int]:
    """Positions to the left and right that a query sees beside its own, -1 = all: a window counts the query itself."""
    return (-1 if scores.window is None else scores.window - 1, 0)


def flash_attn_attend(flash_attn: Any) -> Attend:
    """By the functions of the package flash-attn (2.8 and newer)."""

    def attend(q: Tensor, cache: KVCache, batch: ForwardBatch, *, scores: ScoreSpec, sinks: Tensor | None) -> Tensor:
        assert sinks is None
        sizes = batch.on_device
        shared = {
            "softmax_scale": scores.scale,
            "causal": True,
            "window_size": flash_window(scores),
            "softcap": scores.softcap or 0.0,
            "block_table": sizes.block_tables.clamp(min=0),
        }
        if batch.singles.rows is None:
            # This one divides long contexts among the processors.
            read: Tensor = flash_attn.flash_attn_with_kvcache(
                q.unsqueeze(1), cache.keys, cache.values, cache_seqlens=sizes.lengths, **shared
            )
            return read.squeeze(1)
        out: Tensor = flash_attn.flash_attn_varlen_func(
            q,
            cache.keys,
            cache.values,
            cu_seqlens_q=sizes.query_start,
            cu_seqlens_k=cumulative(sizes.lengths),
            max_seqlen_q=sizes.max_query,
            max_seqlen_k=sizes.max_length,
            **shared,
        )
        return out

    return attend


def cumulative(lengths: Tensor) -> Tensor:
    """(b,) -> (b + 1,) int32, beginning with 0."""
    starts = lengths.new_zeros(len(lengths) + 1)
    starts[1:] = lengths.cumsum(0)
    return starts


def varlen_attend(varlen: Any) -> Attend:
    """By torch.nn.attention.varlen (torch 2.13 and newer)."""

    def attend(q: Tensor, cache: KVCache, batch: ForwardBatch, *, scores: ScoreSpec, sinks: Tensor | None) -> Tensor:
        assert sinks is None
        assert scores.softcap is None
        sizes = batch.on_device
        out: Tensor = varlen.varlen_attn(
            q,
            cache.keys,
            cache.values,
            sizes.query_start,
            None,
            sizes.max_query,
            sizes.block_tables.shape[1] * cache.keys.shape[1],
            scale=scores.scale,
            window_size=flash_window(scores),
            enable_gqa=True,
            seqused_k=sizes.lengths,
            block_table=sizes.block_tables.clamp(min=0),
        )
        return out

    return attend


def flash_attn_kernels() -> AttentionKernels:
    return AttentionKernels(write_kv, flash_attn_attend(importlib.import_module("flash_attn")))


def varlen_kernels() -> AttentionKernels:
    return AttentionKernels(write_kv, varlen_attend(importlib.import_module("torch.nn.attention.varlen")))
