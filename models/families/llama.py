"""Llama: attention and a gated MLP in every layer."""

import re
from collections.abc import Mapping
from typing import Any

from models.config import AttentionSpec, LayerSpec, MLPSpec, ModelConfig
from models.families.fields import eos_token_ids, require, rope_theta

_RENAMED = {
    "embedding.": "model.embed_tokens.",
    "norm.": "model.norm.",
    "head.": "lm_head.",
    "mixer.": "self_attn.",
    "mixer_norm.": "input_layernorm.",
    "mlp.": "mlp.",
    "mlp_norm.": "post_attention_layernorm.",
}


def read_config(raw: Mapping[str, Any]) -> ModelConfig:
    require(raw, "hidden_act", ("silu", "swish"))
    require(raw, "attention_bias", (False, True))
    require(raw, "mlp_bias", (False, True))
    num_heads = int(raw["num_attention_heads"])
    head_dim = raw.get("head_dim") or int(raw["hidden_size"]) // num_heads
    layer = LayerSpec(
        AttentionSpec(
            num_heads=num_heads,
            num_kv_heads=int(raw.get("num_key_value_heads") or num_heads),
            head_dim=int(head_dim),
            rope_theta=rope_theta(raw),
            bias=bool(raw.get("attention_bias", False)),
        ),
        MLPSpec(int(raw["intermediate_size"]), bias=bool(raw.get("mlp_bias", False))),
    )
    return ModelConfig(
        architecture="LlamaForCausalLM",
        hidden_size=int(raw["hidden_size"]),
        vocab_size=int(raw["vocab_size"]),
        layers=(layer,) * int(raw["num_hidden_layers"]),
        norm_eps=float(raw["rms_norm_eps"]),
        tie_embeddings=bool(raw.get("tie_word_embeddings", False)),
        max_positions=int(raw["max_position_embeddings"]),
        eos_token_ids=eos_token_ids(raw),
    )


def tensor_name(parameter: str) -> str:
    """`layers.3.mixer.q_proj.weight` -> `model.layers.3.self_attn.q_proj.weight`."""
    layer = re.match(r"layers\.\d+\.", parameter)
    rest = parameter[layer.end() :] if layer else parameter
    part, _, leaf = rest.partition(".")
    return (f"model.{layer.group()}" if layer else "") + _RENAMED[f"{part}."] + leaf
