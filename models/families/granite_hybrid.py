"""Granite 4: Mamba-2 in most layers and attention in some; in every layer an MLP, beside a mixture of them or alone."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from models.config import ExpertsSpec, LayerSpec, MLPSpec, ModelConfig, RopeSpec, ScoreSpec
from models.families.fields import positive, require, size
from models.families.hybrid import layer_kinds, read_mamba2, tensor_names
from models.families.rope import read_rope
from models.families.transformer import head_dim_of, read_attention, read_experts, read_model


def read_config(raw: Mapping[str, Any]) -> ModelConfig:
    require(raw, "position_embedding_type", (None, "rope", "nope"))
    head_dim = head_dim_of(raw)
    rope = read_rope(raw, head_dim)
    rotated: RopeSpec | None = rope.spec if raw.get("position_embedding_type") == "rope" else None
    scale = positive(raw.get("attention_multiplier", 1.0), "attention_multiplier")
    attention = read_attention(raw, head_dim=head_dim, rope=rotated, grouped=False, scores=ScoreSpec(scale=scale))
    mamba, mlp = read_mamba2(raw), _read_mlp(raw)
    attends = layer_kinds(raw, ("layer_types", "layers_block_type"), lambda _: False)
    return read_model(
        raw,
        "GraniteMoeHybridForCausalLM",
        [LayerSpec(attention if here else mamba, mlp) for here in attends],
        # Without rotation nothing in the model bounds the context, but it was trained up to so many positions.
        max_positions=rope.max_positions,
        embedding_scale=positive(raw.get("embedding_multiplier", 1.0), "embedding_multiplier"),
        residual_scale=positive(raw.get("residual_multiplier", 1.0), "residual_multiplier"),
        logit_scale=1.0 / positive(raw.get("logits_scaling", 1.0), "logits_scaling"),
    )


def _read_mlp(raw: Mapping[str, Any]) -> MLPSpec | ExpertsSpec:
    """A mixture whose shared MLP every token reads, or that MLP alone where there are no experts."""
    require(raw, "hidden_act", ("silu", "swish"))
    shared = MLPSpec(size(raw, "shared_intermediate_size"))
    if raw.get("num_local_experts", raw.get("num_experts")) == 0:
        return shared
    experts = read_experts(raw, intermediate_size=size(raw, "intermediate_size"), renormalise=True)
    return replace(experts, shared=shared)


_MIXTURE = {
    "experts.gate_proj": "block_sparse_moe.input_linear.weight",
    "experts.up_proj": "block_sparse_moe.input_linear.weight",
    "experts.down_proj": "block_sparse_moe.output_linear.weight",
    "router.weight": "block_sparse_moe.router.layer.weight",
}


def _mlp_name(leaf: str) -> str:
    """Gate and up projections share one tensor, of the shared MLP as of the experts."""
    if leaf in _MIXTURE:
        return _MIXTURE[leaf]
    fused = re.sub(r"(gate|up)_proj", "input_linear", leaf.removeprefix("shared.")).replace(
        "down_proj", "output_linear"
    )
    return f"shared_mlp.{fused}"


tensor_name = tensor_names({"mixer_norm.": "input_layernorm.", "mlp_norm.": "post_attention_layernorm."}, _mlp_name)
