"""Mixtral: Mistral's attention, and in every layer a mixture of MLPs."""

import re
from collections.abc import Mapping
from typing import Any

from models.config import LayerSpec, ModelConfig
from models.families.fields import num_layers, require, size
from models.families.rope import read_rope
from models.families.transformer import (
    PRE_NORMS,
    head_dim_of,
    read_attention,
    read_experts,
    read_model,
    read_window,
    scores_of,
    tensor_names,
)

DEFAULT_THETA = 1_000_000.0
_MATRICES = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}


def read_config(raw: Mapping[str, Any]) -> ModelConfig:
    require(raw, "attention_bias", (False,))
    head_dim = head_dim_of(raw)
    rope = read_rope(raw, head_dim, theta=DEFAULT_THETA)
    experts = read_experts(raw, intermediate_size=size(raw, "intermediate_size"), renormalise=True)
    layers = [
        LayerSpec(read_attention(raw, head_dim=head_dim, rope=rope.spec, scores=scores), experts)
        for scores in scores_of([read_window(raw)] * num_layers(raw))
    ]
    return read_model(raw, "MixtralForCausalLM", layers, max_positions=rope.max_positions)


_plain = tensor_names(PRE_NORMS)


def tensor_name(parameter: str) -> str:
    """`layers.3.mlp.experts.up_proj` -> `model.layers.3.block_sparse_moe.experts.{expert}.w3.weight`."""
    return re.sub(
        r"(?<=\.)(gate|up|down)_proj\.", lambda found: f"{_MATRICES[found[0][:-1]]}.", _plain(parameter)
    ).replace(".mlp.", ".block_sparse_moe.")
