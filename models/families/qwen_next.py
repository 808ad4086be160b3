"""Qwen3-Next and Qwen3.5 (text): three Gated DeltaNet layers to one of gated attention; MLPs or mixtures of them."""

import re
from collections.abc import Mapping
from typing import Any

from models.config import AttentionSpec, DeltaNetSpec, ExpertsSpec, LayerSpec, MLPSpec, ModelConfig
from models.families.fields import num_layers, positive, require, size
from models.families.hybrid import layer_kinds, tensor_names
from models.families.rope import read_rope
from models.families.transformer import expert_names, head_dim_of, read_attention, read_experts, read_mlp, read_model

HEAD_DIM, ROTATED_SHARE, ATTENTION_INTERVAL = 256, 0.25, 4
# Positions of images in a text model's rotary fields: without images they all are the token's own.
_IMAGE_FIELDS = frozenset({"mrope_section", "mrope_interleaved"})


def read_qwen3_next(raw: Mapping[str, Any]) -> ModelConfig:
    """Gated DeltaNet layers with gated attention between them, and a mixture of MLPs with a shared one."""
    dense, step = set(raw.get("mlp_only_layers") or ()), size(raw, "decoder_sparse_step", 1)
    experts = _read_experts(raw, renormalise=bool(raw.get("norm_topk_prob", True)))
    mlps = [read_mlp(raw) if index in dense or (index + 1) % step else experts for index in range(num_layers(raw))]
    return _read_config(raw, "Qwen3NextForCausalLM", mlps)


def read_qwen3_5(raw: Mapping[str, Any]) -> ModelConfig:
    """Qwen3-Next's layers with an MLP in each."""
    return _read_config(raw, "Qwen3_5ForCausalLM", [read_mlp(raw)] * num_layers(raw))


def read_qwen3_5_moe(raw: Mapping[str, Any]) -> ModelConfig:
    """Qwen3-Next's layers with a mixture of MLPs and a shared one in each."""
    return _read_config(raw, "Qwen3_5MoeForCausalLM", [_read_experts(raw, renormalise=True)] * num_layers(raw))


def _read_experts(raw: Mapping[str, Any], *, renormalise: bool) -> ExpertsSpec:
    return read_experts(
        raw,
        intermediate_size=size(raw, "moe_intermediate_size"),
        renormalise=renormalise,
        shared=MLPSpec(size(raw, "shared_expert_intermediate_size")),
        shared_gate=True,
    )


def _read_config(raw: Mapping[str, Any], architecture: str, mlps: list[MLPSpec | ExpertsSpec]) -> ModelConfig:
    require(raw, "mlp_bias", (False,))
    head_dim = head_dim_of(raw, HEAD_DIM)
    fields = {key: value for key, value in (raw.get("rope_parameters") or {}).items() if key not in _IMAGE_FIELDS}
    fields = dict(raw.get("rope_scaling") or fields)
    rope = read_rope(raw, head_dim, partial=True, default_share=ROTATED_SHARE, fields=fields)
    attention = read_attention(raw, head_dim=head_dim, rope=rope.spec, qk_norm="head", output_gate=True)
    delta = _read_delta(raw)
    interval = size(raw, "full_attention_interval", ATTENTION_INTERVAL)
    attends = layer_kinds(raw, ("layer_types",), lambda index: (index + 1) % interval == 0)
    layers = [LayerSpec(attention if here else delta, mlp) for here, mlp in zip(attends, mlps, strict=True)]
    return read_model(raw, architecture, layers, max_positions=rope.max_positions, norm_unit_offset=True)


def _read_delta(raw: Mapping[str, Any]) -> DeltaNetSpec:
    key_heads, value_heads = size(raw, "linear_num_key_heads", 16), size(raw, "linear_num_value_heads", 32)
    if value_heads % key_heads:
        raise ValueError(f"linear_num_value_heads = {value_heads} is no multiple of linear_num_key_heads = {key_heads}")
    return DeltaNetSpec(
        num_key_heads=key_heads,
        num_value_heads=value_heads,
        key_head_dim=size(raw, "linear_key_head_dim", 128),
        value_head_dim=size(raw, "linear_value_head_dim", 128),
        conv_kernel=size(raw, "linear_conv_kernel_dim", 4),
        norm_eps=positive(raw["rms_norm_eps"], "rms_norm_eps"),
    )


def _mlp_name(leaf: str) -> str:
    leaf = expert_names(leaf).replace("shared_gate.", "shared_expert_gate.")
    return f"mlp.{re.sub('^shared[.]', 'shared_expert.', leaf)}"


_separate = tensor_names(
    {"mixer_norm.": "input_layernorm.", "mlp_norm.": "post_attention_layernorm."}, _mlp_name, recurrent="linear_attn"
)


def qwen3_5_name(parameter: str) -> str:
    """As in Llama's layout; the gate of attention is a part of its query projection."""
    return _separate(parameter).replace("self_attn.gate_proj.", "self_attn.q_proj.")


def qwen3_next_name(parameter: str) -> str:
    """As Qwen3.5's, but what reads a layer's input comes in two tensors instead of four."""
    name = re.sub(r"\.in_proj_(qkv|z)\.", ".in_proj_qkvz.", qwen3_5_name(parameter))
    return re.sub(r"\.in_proj_[ba]\.", ".in_proj_ba.", name)


def row_order(name: str, config: ModelConfig) -> list[int] | None:
    """The rows of a tensor that holds several projections head by head, in the order projection by projection."""
    found = re.search(r"\.layers\.(\d+)\.(?:self_attn|linear_attn)\.(q_proj|in_proj_qkvz|in_proj_ba)\.", name)
    if found is None:
        return None
    spec = config.layers[int(found[1])].mixer
    if isinstance(spec, AttentionSpec):
        return _by_projection(spec.num_heads, (spec.head_dim, spec.head_dim))
    assert isinstance(spec, DeltaNetSpec)
    share = spec.num_value_heads // spec.num_key_heads
    if found[2] == "in_proj_ba":
        return _by_projection(spec.num_key_heads, (share, share))
    values = share * spec.value_head_dim
    return _by_projection(spec.num_key_heads, (spec.key_head_dim, spec.key_head_dim, values, values))


def _by_projection(num_heads: int, widths: tuple[int, ...]) -> list[int]:
    """Rows that lie head by head, each with a part of every projection, in the order of the projections."""
    order, start, stride = [], 0, sum(widths)
    for width in widths:
        order += [head * stride + start + row for head in range(num_heads) for row in range(width)]
        start += width
    return order
