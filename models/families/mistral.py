"""Mistral and Ministral: Llama's layers over a sliding window, in all layers or (Ministral) in those that say so."""

from collections.abc import Mapping, Sequence
from typing import Any

from models.config import LayerSpec, ModelConfig
from models.families.fields import num_layers, require
from models.families.rope import read_rope
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


def read_mistral(raw: Mapping[str, Any]) -> ModelConfig:
    """Llama's layers, all of them over a sliding window where there is one."""
    windows = [read_window(raw, DEFAULT_WINDOW)] * num_layers(raw)
    return _read_config(raw, "MistralForCausalLM", windows)


def read_ministral(raw: Mapping[str, Any]) -> ModelConfig:
    """Llama's layers, some over a sliding window and some full."""
    window = read_window(raw, DEFAULT_WINDOW)
    windows = read_windows(raw, window, lambda _: window is not None)
    return _read_config(raw, "MinistralForCausalLM", windows)


def _read_config(raw: Mapping[str, Any], architecture: str, windows: Sequence[int | None]) -> ModelConfig:
    require(raw, "attention_bias", (False,))
    require(raw, "mlp_bias", (False,))
    head_dim = head_dim_of(raw)
    rope, mlp = read_rope(raw, head_dim), read_mlp(raw)
    layers = [
        LayerSpec(read_attention(raw, head_dim=head_dim, rope=rope.spec, scores=scores), mlp)
        for scores in scores_of(windows)
    ]
    return read_model(raw, architecture, layers, max_positions=rope.max_positions)
