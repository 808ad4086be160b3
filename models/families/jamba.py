"""Jamba: Mamba-1 in most layers and attention without positions in some; every second MLP is a mixture."""

import re
from collections.abc import Mapping
from typing import Any

from models.config import LayerSpec, Mamba1Spec, ModelConfig
from models.families.fields import num_layers, positive, size
from models.families.hybrid import tensor_names
from models.families.mamba import step_rank
from models.families.transformer import head_dim_of, read_attention, read_experts, read_mlp, read_model


def read_config(raw: Mapping[str, Any]) -> ModelConfig:
    attention = read_attention(raw, head_dim=head_dim_of(raw), rope=None)
    mamba, mlp = _read_mamba(raw), read_mlp(raw)
    experts = None
    if size(raw, "num_experts", size(raw, "num_local_experts", 16)) > 1:
        experts = read_experts(raw, intermediate_size=mlp.intermediate_size, renormalise=False)
    layers = []
    for index in range(num_layers(raw)):
        attends = _every(raw, "attn_layer", index, period=8, offset=4)
        mixed = experts is not None and _every(raw, "expert_layer", index, period=2, offset=1)
        layers.append(LayerSpec(attention if attends else mamba, experts if mixed else mlp))
    return read_model(raw, "JambaForCausalLM", layers, max_positions=size(raw, "max_position_embeddings", 262_144))


def _every(raw: Mapping[str, Any], what: str, index: int, *, period: int, offset: int) -> bool:
    """Whether a layer is one of those of which there is one in so many, beginning with the one of number `offset`."""
    period, offset = size(raw, f"{what}_period", period), int(raw.get(f"{what}_offset", offset))
    if not 0 <= offset < period:
        raise ValueError(f"{what}_offset = {offset} must be less than {what}_period = {period}")
    return index % period == offset


def _read_mamba(raw: Mapping[str, Any]) -> Mamba1Spec:
    hidden_size = size(raw, "hidden_size")
    return Mamba1Spec(
        inner_size=size(raw, "mamba_expand", 2) * hidden_size,
        state_size=size(raw, "mamba_d_state", 16),
        step_rank=step_rank(raw, "mamba_dt_rank", hidden_size),
        conv_kernel=size(raw, "mamba_d_conv", 4),
        conv_bias=bool(raw.get("mamba_conv_bias", True)),
        proj_bias=bool(raw.get("mamba_proj_bias", False)),
        inner_norm_eps=positive(raw["rms_norm_eps"], "rms_norm_eps"),
        inner_norm_weights=True,
    )


_plain = tensor_names(
    {"mixer_norm.": "input_layernorm.", "mlp_norm.": "pre_ff_layernorm.", "norm.": "model.final_layernorm."},
    lambda leaf: "feed_forward." + re.sub(r"^experts\.(.*)$", r"experts.{expert}.\1.weight", leaf),
)


def tensor_name(parameter: str) -> str:
    """As in Llama's layout; the norms inside of the mixer have names of their own."""
    return re.sub(r"\.(dt|B|C)_norm\.", lambda found: f".{found[1].lower()}_layernorm.", _plain(parameter))
