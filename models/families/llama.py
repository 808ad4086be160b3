"""Llama: attention and a gated MLP in every layer."""

from collections.abc import Mapping
from typing import Any

from models.config import LayerSpec, ModelConfig
from models.families.fields import num_layers
from models.families.rope import read_rope
from models.families.transformer import head_dim_of, read_attention, read_mlp, read_model


def read_config(raw: Mapping[str, Any]) -> ModelConfig:
    head_dim = head_dim_of(raw)
    rope = read_rope(raw, head_dim)
    layer = LayerSpec(read_attention(raw, head_dim=head_dim, rope=rope.spec, grouped=False), read_mlp(raw))
    layers = (layer,) * num_layers(raw)
    return read_model(raw, "LlamaForCausalLM", layers, max_positions=rope.max_positions)
