"""Mistral, Ministral and Ministral 3: Llama's layers, all or some over a sliding window, with queries that may grow."""

from collections.abc import Mapping, Sequence
from typing import Any

from models.config import GrowthSpec, LayerSpec, ModelConfig
from models.families.fields import num_layers, require, size
from models.families.rope import Rope, read_rope
from models.families.transformer import (
    head_dim_of,
    read_attention,
    read_mlp,
    read_model,
    read_window,
    read_windows,
    scores_of,
)

DEFAULT_WINDOW = 4096  # of a config.json without `sliding_window`; null means none
MINISTRAL3_HEAD_DIM = 128
DEFAULT_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 1_000_000.0,
    "factor": 16.0,
    "original_max_position_embeddings": 16_384,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}


def read_mistral(raw: Mapping[str, Any]) -> ModelConfig:
    """Llama's layers, all of them over a sliding window where there is one."""
    windows = [read_window(raw, DEFAULT_WINDOW)] * num_layers(raw)
    head_dim = head_dim_of(raw)
    return _read_config(raw, "MistralForCausalLM", windows, head_dim=head_dim, rope=read_rope(raw, head_dim))


def read_ministral(raw: Mapping[str, Any]) -> ModelConfig:
    """Llama's layers, some over a sliding window and some full."""
    window = read_window(raw, DEFAULT_WINDOW)
    windows = read_windows(raw, window, lambda _: window is not None)
    head_dim = head_dim_of(raw)
    return _read_config(raw, "MinistralForCausalLM", windows, head_dim=head_dim, rope=read_rope(raw, head_dim))


def read_ministral3(raw: Mapping[str, Any]) -> ModelConfig:
    """Llama's layers, over a sliding window where there is one, with queries that grow with their position."""
    windows = [read_window(raw)] * num_layers(raw)
    fields = dict(raw.get("rope_parameters") or DEFAULT_ROPE)
    growth = GrowthSpec(float(fields.pop("llama_4_scaling_beta")), size(fields, "original_max_position_embeddings"))
    fields.pop("max_position_embeddings", None)  # a copy of the one outside
    head_dim = head_dim_of(raw, None if "head_dim" in raw else MINISTRAL3_HEAD_DIM)
    rope = read_rope(raw, head_dim, fields=fields)
    return _read_config(raw, "Ministral3ForCausalLM", windows, head_dim=head_dim, rope=rope, growth=growth)


def _read_config(
    raw: Mapping[str, Any],
    architecture: str,
    windows: Sequence[int | None],
    *,
    head_dim: int,
    rope: Rope,
    **options: Any,
) -> ModelConfig:
    require(raw, "attention_bias", (False,))
    require(raw, "mlp_bias", (False,))
    mlp = read_mlp(raw)
    layers = [
        LayerSpec(read_attention(raw, head_dim=head_dim, rope=rope.spec, scores=scores, **options), mlp)
        for scores in scores_of(windows)
    ]
    return read_model(raw, architecture, layers, max_positions=rope.max_positions)
