"""Nemotron-H: every layer is one thing alone: Mamba-2, attention without positions, an MLP, or a mixture of them."""

import re
from collections.abc import Mapping
from typing import Any

from models.config import (
    AttentionSpec,
    ExpertsSpec,
    LayerSpec,
    Mamba2Spec,
    MLPSpec,
    ModelConfig,
    RouterSpec,
)
from models.families.fields import MAX_LAYERS, eos_token_ids, positive, require, size
from models.families.transformer import MAX_EXPERTS, read_attention

_KINDS = {
    "M": "mamba",
    "mamba": "mamba",
    "linear_attention": "mamba",
    "*": "attention",
    "attention": "attention",
    "full_attention": "attention",
    "-": "mlp",
    "mlp": "mlp",
    "E": "moe",
    "moe": "moe",
}


def read_config(raw: Mapping[str, Any]) -> ModelConfig:
    require(raw, "mlp_hidden_act", ("relu2",))
    require(raw, "mamba_hidden_act", ("silu",))
    require(raw, "sliding_window", (None,))
    eps = positive(raw.get("layer_norm_epsilon", 1e-5), "layer_norm_epsilon")
    kinds = _read_kinds(raw)
    layers = {"mamba": LayerSpec(_read_mamba(raw, eps), None), "attention": LayerSpec(_read_attention(raw), None)}
    if "mlp" in kinds:
        layers["mlp"] = LayerSpec(None, _read_mlp(raw, size(raw, "intermediate_size")))
    if "moe" in kinds:
        layers["moe"] = LayerSpec(None, _read_experts(raw))
    return ModelConfig(
        architecture="NemotronHForCausalLM",
        hidden_size=size(raw, "hidden_size"),
        vocab_size=size(raw, "vocab_size"),
        layers=tuple(layers[kind] for kind in kinds),
        norm_eps=eps,
        tie_embeddings=bool(raw.get("tie_word_embeddings", False)),
        max_positions=size(raw, "max_position_embeddings", 4096),
        eos_token_ids=eos_token_ids(raw),
        residual_in_float32=bool(raw.get("residual_in_fp32", False)),
    )


def _read_kinds(raw: Mapping[str, Any]) -> list[str]:
    """What each layer is: a list of words, or the older pattern of letters."""
    given = raw.get("layers_block_type") or raw.get("layer_types") or raw.get("hybrid_override_pattern")
    if not isinstance(given, list | str) or not 0 < len(given) <= MAX_LAYERS:
        raise ValueError(f"layers_block_type must say what each layer is, not {given!r}")
    if wrong := sorted({str(kind) for kind in given} - set(_KINDS)):
        raise ValueError(f"layers_block_type: {', '.join(wrong)}: none of {', '.join(_KINDS)}")
    return [_KINDS[kind] for kind in given]


def _read_attention(raw: Mapping[str, Any]) -> AttentionSpec:
    require(raw, "attention_bias", (False,))
    return read_attention(raw, head_dim=size(raw, "head_dim", 128), rope=None)


def _read_mamba(raw: Mapping[str, Any], eps: float) -> Mamba2Spec:
    def either(today: str, older: str, default: int) -> int:
        return size(raw, older, size(raw, today, default))

    bias = bool(raw.get("use_bias", False))
    return Mamba2Spec(
        num_heads=size(raw, "mamba_num_heads"),
        head_dim=size(raw, "mamba_head_dim"),
        state_size=size(raw, "ssm_state_size", 128),
        num_groups=either("n_groups", "mamba_n_groups", 8),
        conv_kernel=either("conv_kernel", "mamba_d_conv", 4),
        conv_bias=bool(raw.get("mamba_conv_bias", raw.get("use_conv_bias", True))),
        proj_bias=bias,
        out_bias=bias,
        chunk_size=either("chunk_size", "mamba_chunk_size", 128),
        norm_eps=eps,
        # The reference bounds the step from below alone, whatever `time_step_limit` says.
        time_step_limit=(float(raw.get("mamba_dt_min", raw.get("time_step_min", 0.001))), float("inf")),
    )


def _read_mlp(raw: Mapping[str, Any], intermediate_size: int) -> MLPSpec:
    return MLPSpec(intermediate_size, bias=bool(raw.get("mlp_bias", False)), activation="relu2", gated=False)


def _read_experts(raw: Mapping[str, Any]) -> ExpertsSpec:
    num_experts, top_k = size(raw, "n_routed_experts"), size(raw, "num_experts_per_tok")
    groups = (size(raw, "n_group", 1), size(raw, "topk_group", 1))
    if num_experts > MAX_EXPERTS:
        raise ValueError(f"n_routed_experts = {num_experts} is more than {MAX_EXPERTS}")
    if num_experts % groups[0] or num_experts // groups[0] < 2 or groups[1] > groups[0]:
        raise ValueError(f"n_group, topk_group = {groups} do not fit n_routed_experts = {num_experts}")
    if top_k > num_experts // groups[0] * groups[1]:
        raise ValueError(f"num_experts_per_tok = {top_k} is more than there are to choose from")
    router = RouterSpec(
        num_experts,
        top_k,
        renormalise=bool(raw.get("norm_topk_prob", True)),
        scoring="sigmoid",
        selection_bias=True,
        groups=groups,
        scale=positive(raw.get("routed_scaling_factor", 1.0), "routed_scaling_factor"),
    )
    require(raw, "n_shared_experts", (1,))
    latent = raw.get("moe_latent_size")
    return ExpertsSpec(
        router,
        _read_mlp(raw, size(raw, "moe_intermediate_size")),
        shared=_read_mlp(raw, size(raw, "moe_shared_expert_intermediate_size")),
        latent_size=None if latent is None else size(raw, "moe_latent_size"),
    )


_MIXTURE = {
    "router.weight": "gate.weight",
    "router.selection_bias": "gate.e_score_correction_bias",
    "shared.": "shared_experts.",
    "enter.": "fc1_latent_proj.",
    "leave.": "fc2_latent_proj.",
}


def tensor_name(parameter: str) -> str:
    """`layers.3.mlp.up_proj.weight` -> `backbone.layers.3.mixer.up_proj.weight`, whatever the layer is."""
    if parameter.startswith("head."):
        return f"lm_{parameter}"
    if parameter.startswith("embedding."):
        return f"backbone.embeddings.{parameter.removeprefix('embedding.')}"
    if parameter.startswith("norm."):
        return f"backbone.norm_f.{parameter.removeprefix('norm.')}"
    layer, part, leaf = re.fullmatch(r"(layers\.\d+\.)(\w+)\.(.*)", parameter).groups()  # type: ignore[union-attr]
    if part.endswith("_norm"):
        return f"backbone.{layer}norm.{leaf}"
    for ours, theirs in _MIXTURE.items():
        if leaf.startswith(ours):
            leaf = theirs + leaf.removeprefix(ours)
            break
    leaf = re.sub(r"^experts\.(.*)$", r"experts.{expert}.\1.weight", leaf)
    return f"backbone.{layer}mixer.{leaf.replace('conv_', 'conv1d.')}"
