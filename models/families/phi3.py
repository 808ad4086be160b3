"""Phi-3 and Phi-4-mini: Llama's layers with fused projections, heads rotated in part, a window in all layers."""

import re
from collections.abc import Mapping
from typing import Any

from models.config import LayerSpec, ModelConfig
from models.families.fields import num_layers, require
from models.families.rope import read_rope
from models.families.transformer import (
    PRE_NORMS,
    head_dim_of,
    read_attention,
    read_mlp,
    read_model,
    read_window,
    scores_of,
    tensor_names,
)

_OLD_NAMES = {"su": "longrope", "yarn": "longrope"}  # what early checkpoints call it


def read_config(raw: Mapping[str, Any]) -> ModelConfig:
    require(raw, "attention_bias", (False,))
    require(raw, "mlp_bias", (False,))
    head_dim = head_dim_of(raw)
    fields = dict(raw.get("rope_scaling") or raw.get("rope_parameters") or {})
    kind = str(fields.get("rope_type", fields.get("type", "default")))
    fields["rope_type"] = _OLD_NAMES.get(kind, kind)
    rope, mlp = read_rope(raw, head_dim, partial=True, fields=fields), read_mlp(raw)
    layers = [
        LayerSpec(read_attention(raw, head_dim=head_dim, rope=rope.spec, grouped=False, scores=scores), mlp)
        for scores in scores_of([read_window(raw)] * num_layers(raw))
    ]
    return read_model(raw, "Phi3ForCausalLM", layers, max_positions=rope.max_positions)


_unfused = tensor_names(PRE_NORMS)


def tensor_name(parameter: str) -> str:
    """As Llama's, but queries, keys and values share one tensor, and so do the MLP's gate and up projections."""
    name = re.sub(r"\.[qkv]_proj\.", ".qkv_proj.", _unfused(parameter))
    return re.sub(r"\.(gate|up)_proj\.", ".gate_up_proj.", name)
