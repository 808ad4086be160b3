"""Qwen2 (biases on queries, keys and values), Qwen3 (queries and keys normalised) and Qwen3-MoE."""

from collections.abc import Mapping
from typing import Any

from models.config import LayerSpec, ModelConfig, ScoreSpec
from models.families.fields import num_layers, require, size
from models.families.rope import read_rope
from models.families.transformer import (
    head_dim_of,
    read_attention,
    read_experts,
    read_mlp,
    read_model,
    read_window,
    read_windows,
    scores_of,
)

QWEN3_HEAD_DIM = 128
DEFAULT_WINDOW, DEFAULT_FULL_LAYERS = 4096, 28


def read_qwen2(raw: Mapping[str, Any]) -> ModelConfig:
    """Llama's layers with biases on queries, keys and values; a window in late layers where wanted."""
    return _read_config(raw, "Qwen2ForCausalLM", head_dim_of(raw), qkv_bias=True)


def read_qwen3(raw: Mapping[str, Any]) -> ModelConfig:
    """Llama's layers with queries and keys normalised head by head; a window in late layers where wanted."""
    return _read_config(raw, "Qwen3ForCausalLM", head_dim_of(raw, QWEN3_HEAD_DIM), qk_norm="head")


def read_qwen3_moe(raw: Mapping[str, Any]) -> ModelConfig:
    """Qwen3's attention, over a window in all layers where wanted, and a mixture of MLPs in all layers or some."""
    head_dim = head_dim_of(raw)
    rope, count = read_rope(raw, head_dim), num_layers(raw)
    window = read_window(raw, DEFAULT_WINDOW, used=bool(raw.get("use_sliding_window", False)))
    attention = read_attention(raw, head_dim=head_dim, rope=rope.spec, qk_norm="head", scores=ScoreSpec(window=window))
    dense, step = set(raw.get("mlp_only_layers") or ()), size(raw, "decoder_sparse_step", 1)
    experts = read_experts(
        raw,
        intermediate_size=size(raw, "moe_intermediate_size"),
        renormalise=bool(raw.get("norm_topk_prob", False)),
    )
    layers = [
        LayerSpec(attention, read_mlp(raw) if number in dense or (number + 1) % step else experts)
        for number in range(count)
    ]
    return read_model(raw, "Qwen3MoeForCausalLM", layers, max_positions=rope.max_positions)


def _read_config(raw: Mapping[str, Any], architecture: str, head_dim: int, **attention: Any) -> ModelConfig:
    require(raw, "mlp_bias", (False,))
    rope, mlp = read_rope(raw, head_dim), read_mlp(raw)
    window = read_window(raw, DEFAULT_WINDOW, used=bool(raw.get("use_sliding_window", False)))
    num_full = int(raw.get("max_window_layers", DEFAULT_FULL_LAYERS))
    windows = read_windows(raw, window, lambda number: window is not None and number >= num_full)
    layers = [
        LayerSpec(read_attention(raw, head_dim=head_dim, rope=rope.spec, scores=scores, **attention), mlp)
        for scores in scores_of(windows)
    ]
    return read_model(raw, architecture, layers, max_positions=rope.max_positions)
