"""Attention of a decode step by each backend that this machine can run, so that the rule can be held to the clock."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch

from models.batch import ForwardBatch
from models.cache import KVCache
from models.config import AttentionSpec, ModelConfig, simple_mixers
from models.kernels.bind import attention_kernels
from models.kernels.choose import CANDIDATES, LARGE_BLOCK, SMALL_BLOCK, attention_need, choose, preferred_block_size
from models.kernels.environment import Environment
from scripts.gpu_bench import Bench, filled, measure
from scripts.gpu_models import blocks_of, make_batch
from scripts.gpu_report import Row
from scripts.gpu_timing import time_calls
from scripts.gpu_work import attention_bytes


def candidates(spec: AttentionSpec, environment: Environment, dtype: str) -> list[tuple[str, int]]:
    """(backend, block size) of all that do not refuse."""
    return [
        (name, block_size)
        for block_size in (SMALL_BLOCK, LARGE_BLOCK)
        for name, refusal in CANDIDATES["attention"]
        if refusal(environment, attention_need(spec, dtype, block_size)) is None
    ]


def ruled(spec: AttentionSpec, config: ModelConfig, bench: Bench) -> tuple[str, int]:
    """What the rule takes for this model."""
    block_size = preferred_block_size(config.layers, bench.environment, bench.dtype_name)
    need = attention_need(spec, bench.dtype_name, block_size)
    return choose("attention", bench.environment, need).backend, block_size


def attention_inputs(
    spec: AttentionSpec, bench: Bench, batch: int, context: int, block_size: int
) -> tuple[torch.Tensor, KVCache, ForwardBatch]:
    """Random queries, one layer's cache full of random keys and values, and a batch of single tokens."""
    tokens = context + 1
    shape = (batch * blocks_of(tokens, block_size), block_size, spec.num_kv_heads, spec.head_dim)
    keys, values = (torch.empty(shape, dtype=bench.dtype, device=bench.device).normal_() for _ in range(2))
    steps = make_batch(context, 1, batch, tokens=tokens, block_size=block_size, vocab_size=2, device=bench.device)
    q = torch.randn(batch, spec.num_heads, spec.head_dim, dtype=bench.dtype, device=bench.device)
    return q, KVCache(keys, values), steps


def attention_row(row: Row, spec: AttentionSpec, bench: Bench, backend: str, block_size: int) -> Row:
    tokens = blocks_of(row.context + 1, block_size) * block_size
    element_bytes = bench.dtype.itemsize
    if reason := bench.refuses(spec.cache_needs(element_bytes).bytes_per_token * row.batch * tokens):
        return replace(row, note=reason)
    q, cache, batch = attention_inputs(spec, bench, row.batch, row.context, block_size)
    attend = attention_kernels(backend).attend
    sinks = torch.zeros(spec.num_heads, dtype=bench.dtype, device=bench.device) if spec.sinks else None

    def step() -> object:
        return attend(q, cache, batch, scores=spec.scores, sinks=sinks)

    with_python = time_calls(step, bench.device)
    timing = time_calls(step, bench.device, held=True)
    moved = attention_bytes(spec, element_bytes, row.batch, row.context)
    share = moved / timing.median_s / bench.copy_rate
    row = replace(row, seconds_with_python=with_python.median_s, bytes_moved=moved, share=share)
    return filled(row, timing)


def attention_rows(bench: Bench) -> Iterator[Row]:
    """Model by model, for each different attention; what the rule takes comes first in every cell."""
    for name, config in bench.models():
        specs = dict.fromkeys(spec for spec in simple_mixers(config.layers) if isinstance(spec, AttentionSpec))
        for spec in specs:
            chosen = ruled(spec, config, bench)
            others = [
                candidate for candidate in candidates(spec, bench.environment, bench.dtype_name) if candidate != chosen
            ]
            for batch, context in bench.cells():
                for backend, block_size in (chosen, *others):
                    how, is_rule = f"{backend}, blocks of {block_size}", (backend, block_size) == chosen
                    measured = partial(attention_row, spec=spec, bench=bench, backend=backend, block_size=block_size)
                    yield measure(Row("attention", name, how, batch, context, is_rule=is_rule), measured)
