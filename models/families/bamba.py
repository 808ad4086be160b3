"""Bamba: Mamba-2 in most layers and attention, rotated in half of each head, in some; a gated MLP in every layer."""

from collections.abc import Mapping
from typing import Any

from models.config import LayerSpec, ModelConfig
from models.families.fields import num_layers, require
from models.families.hybrid import read_mamba2, tensor_names
from models.families.rope import read_rope
from models.families.transformer import head_dim_of, read_attention, read_mlp, read_model

ROTATED_SHARE = 0.5


def read_config(raw: Mapping[str, Any]) -> ModelConfig:
    require(raw, "partial_rotary_factor", (ROTATED_SHARE,))
    head_dim = head_dim_of(raw)
    rope = read_rope(raw, head_dim, partial=True, default_share=ROTATED_SHARE)
    attention = read_attention(raw, head_dim=head_dim, rope=rope.spec)
    mamba, mlp = read_mamba2(raw), read_mlp(raw)
    attends = set(raw.get("attn_layer_indices") or ())
    layers = [LayerSpec(attention if index in attends else mamba, mlp) for index in range(num_layers(raw))]
    return read_model(raw, "BambaForCausalLM", layers, max_positions=rope.max_positions)


tensor_name = tensor_names(
    {"mixer_norm.": "input_layernorm.", "mlp_norm.": "pre_ff_layernorm.", "norm.": "model.final_layernorm."},
    lambda leaf: f"feed_forward.{leaf}",
)
