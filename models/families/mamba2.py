"""Mamba-2: a Mamba-2 mixer in every layer and no MLP."""

from collections.abc import Mapping
from typing import Any

from models.config import LayerSpec, Mamba2Spec, ModelConfig
from models.families.fields import eos_token_ids, num_layers, number, require, size


def read_config(raw: Mapping[str, Any]) -> ModelConfig:
    require(raw, "hidden_act", ("silu",))
    require(raw, "rms_norm", (True,))
    low, high = raw.get("time_step_limit") or (0.0, float("inf"))
    eps = float(raw["layer_norm_epsilon"])
    mixer = Mamba2Spec(
        num_heads=size(raw, "num_heads"),
        head_dim=size(raw, "head_dim"),
        state_size=size(raw, "state_size"),
        num_groups=size(raw, "n_groups"),
        conv_kernel=size(raw, "conv_kernel"),
        conv_bias=bool(raw.get("use_conv_bias", True)),
        proj_bias=bool(raw.get("use_bias", False)),
        out_bias=bool(raw.get("use_bias", False)),
        chunk_size=size(raw, "chunk_size"),
        norm_eps=eps,
        time_step_limit=(number(low), number(high)),
    )
    if mixer.inner_size != size(raw, "expand") * size(raw, "hidden_size"):
        raise ValueError(
            f"num_heads * head_dim = {mixer.inner_size} must equal expand * hidden_size = "
            f"{size(raw, 'expand') * size(raw, 'hidden_size')}"
        )
    return ModelConfig(
        architecture="Mamba2ForCausalLM",
        hidden_size=size(raw, "hidden_size"),
        vocab_size=size(raw, "vocab_size"),
        layers=(LayerSpec(mixer, None),) * num_layers(raw),
        norm_eps=eps,
        tie_embeddings=bool(raw.get("tie_word_embeddings", False)),
        max_positions=None,
        eos_token_ids=eos_token_ids(raw),
        residual_in_float32=bool(raw.get("residual_in_fp32", True)),
    )


def tensor_name(parameter: str) -> str:
    """`layers.3.mixer_norm.weight` -> `backbone.layers.3.norm.weight`."""
    if parameter.startswith("head."):
        return f"lm_{parameter}"
    renamed = parameter.replace("mixer_norm.", "norm.").replace("mixer.conv_", "mixer.conv1d.")
    if renamed.startswith("embedding."):
        return f"backbone.embeddings.{renamed.removeprefix('embedding.')}"
    return f"backbone.norm_f.{renamed.removeprefix('norm.')}" if renamed.startswith("norm.") else f"backbone.{renamed}"
