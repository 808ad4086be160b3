"""Zamba2: Mamba-2 in every layer; before some of them one of a few transformer blocks that they share."""

import re
from collections.abc import Mapping
from typing import Any

from models.config import AttentionSpec, LayerSpec, Mamba2Spec, MLPSpec, ModelConfig, ScoreSpec, SharedSpec
from models.families.fields import num_layers, positive, require, size
from models.families.hybrid import mixer_name, tensor_names
from models.families.rope import read_rope
from models.families.transformer import MAX_HEAD_DIM, read_model

_KINDS = {"mamba": False, "linear_attention": False, "hybrid": True}


def read_config(raw: Mapping[str, Any]) -> ModelConfig:
    require(raw, "hidden_act", ("gelu",))
    require(raw, "use_long_context", (False,))
    require(raw, "tie_word_embeddings", (True,))  # without it the reference unties the shared blocks as well
    mamba, num_blocks = _read_mamba(raw), size(raw, "num_mem_blocks", 1)
    attention, mlp = _read_attention(raw), _read_mlp(raw)
    layers, uses = [], 0
    for shares in _read_kinds(raw):
        if not shares:
            layers.append(LayerSpec(mamba, None))
            continue
        shared = SharedSpec(
            attention,
            mlp,
            mamba,
            block=uses % num_blocks,
            use=uses,
            adapter_rank=size(raw, "adapter_rank", 128),
            attention_adapters=bool(raw.get("use_shared_attention_adapter", False)),
        )
        layers.append(LayerSpec(shared, None, norms="inside"))
        uses += 1
    if raw.get("use_shared_attention_adapter") and attention.num_kv_heads != attention.num_heads:
        raise ValueError("use_shared_attention_adapter: num_key_value_heads must be num_attention_heads")
    longest = size(raw, "max_position_embeddings", 4096)
    return read_model(raw, "Zamba2ForCausalLM", layers, max_positions=longest, tied=True)


def _read_kinds(raw: Mapping[str, Any]) -> list[bool]:
    """Which layers have a shared block before them."""
    field = "layers_block_type" if "layers_block_type" in raw else "layer_types"
    kinds, count = raw[field], num_layers(raw)
    if not isinstance(kinds, list) or len(kinds) != count:
        raise ValueError(f"{field} must name {count} layers, as num_hidden_layers says")
    if wrong := sorted({str(kind) for kind in kinds} - set(_KINDS)):
        raise ValueError(f"{field}: {', '.join(wrong)}: none of {', '.join(_KINDS)}")
    return [_KINDS[kind] for kind in kinds]


def _read_attention(raw: Mapping[str, Any]) -> AttentionSpec:
    """Heads of the hidden state and the embedding side by side, with scores scaled as for half of it."""
    num_heads = size(raw, "num_attention_heads")
    num_kv_heads, head_dim = size(raw, "num_key_value_heads", num_heads), 2 * size(raw, "hidden_size") // num_heads
    if num_heads % num_kv_heads:
        raise ValueError(f"num_attention_heads = {num_heads} is no multiple of num_key_value_heads = {num_kv_heads}")
    if not 0 < head_dim <= MAX_HEAD_DIM:
        raise ValueError(f"heads of {head_dim} entries are not between 1 and {MAX_HEAD_DIM}")
    rope = read_rope(raw, head_dim).spec
    return AttentionSpec(
        num_heads,
        num_kv_heads,
        head_dim,
        rope if raw.get("use_mem_rope", False) else None,
        scores=ScoreSpec(scale=(head_dim / 2) ** -0.5),
    )


def _read_mlp(raw: Mapping[str, Any]) -> MLPSpec:
    inner = size(raw, "intermediate_size", 4 * size(raw, "hidden_size"))
    return MLPSpec(inner, bias=bool(raw.get("add_bias_linear", False)), activation="gelu")


def _read_mamba(raw: Mapping[str, Any]) -> Mamba2Spec:
    inner, num_heads = size(raw, "mamba_expand", 2) * size(raw, "hidden_size"), size(raw, "n_mamba_heads", 8)
    if inner % num_heads:
        raise ValueError(f"mamba_expand * hidden_size = {inner} is no multiple of n_mamba_heads = {num_heads}")
    bias = bool(raw.get("add_bias_linear", False))
    return Mamba2Spec(
        num_heads=num_heads,
        head_dim=inner // num_heads,
        state_size=size(raw, "mamba_d_state", 64),
        num_groups=size(raw, "mamba_ngroups", 1),
        conv_kernel=size(raw, "mamba_d_conv", 4),
        conv_bias=True,
        proj_bias=bias,
        out_bias=bias,
        chunk_size=size(raw, "chunk_size", 256),
        norm_eps=positive(raw["rms_norm_eps"], "rms_norm_eps"),
        # The reference bounds the step from below alone.
        time_step_limit=(float(raw.get("time_step_min", 0.001)), float("inf")),
    )


_plain = tensor_names({"mixer_norm.": "input_layernorm.", "norm.": "model.final_layernorm."})
_SHARED = (
    (r"block\.adapters\.(\d+)\.([qkv])\.", r"shared_transformer.self_attn.linear_\2_adapter_list.\1."),
    (r"block\.adapters\.(\d+)\.gate_up\.", r"shared_transformer.feed_forward.gate_up_proj_adapter_list.\1."),
    (r"block\.norm\.", "shared_transformer.input_layernorm."),
    (r"block\.attention\.", "shared_transformer.self_attn."),
    (r"block\.mlp_norm\.", "shared_transformer.pre_ff_layernorm."),
    (r"block\.mlp\.(?:gate|up)_proj\.", "shared_transformer.feed_forward.gate_up_proj."),
    (r"block\.mlp\.", "shared_transformer.feed_forward."),
    (r"enter_norm\.", "mamba_decoder.input_layernorm."),
    (r"linear\.", "linear."),
)


def tensor_name(parameter: str) -> str:
    """The block's tensors stand in the first layer that uses it; the adapters of all its uses stand there too."""
    found = re.fullmatch(r"(layers\.\d+\.)mixer\.(.*)", parameter)
    if found is None:
        return _plain(parameter)
    layer, leaf = found.groups()
    if leaf.startswith("recurrent."):
        return f"model.{layer}mamba_decoder.{mixer_name(leaf.removeprefix('recurrent.'), 'mamba')}"
    for pattern, name in _SHARED:
        renamed, count = re.subn(f"^{pattern}", name, leaf)
        if count:
            return f"model.{layer}{renamed}"
    return _plain(parameter)
