"""Mamba and FalconMamba: a Mamba-1 mixer in every layer and no MLP."""

from collections.abc import Mapping
from typing import Any

from models.config import LayerSpec, Mamba1Spec, ModelConfig
from models.families.fields import eos_token_ids, num_layers, positive, require, size

STEPS_PER_RANK = 16  # "auto": one dimension of the step for so many of the hidden state


def read_mamba(raw: Mapping[str, Any]) -> ModelConfig:
    """A Mamba-1 mixer in every layer and no MLP."""
    return _read_config(raw, "MambaForCausalLM")


def read_falcon_mamba(raw: Mapping[str, Any]) -> ModelConfig:
    """Mamba with the step, B and C normalised inside the mixer."""
    return _read_config(raw, "FalconMambaForCausalLM", positive(raw.get("mixer_rms_eps", 1e-6), "mixer_rms_eps"))


def step_rank(raw: Mapping[str, Any], field: str, hidden_size: int) -> int:
    """`time_step_rank`, which may be "auto"."""
    return -(-hidden_size // STEPS_PER_RANK) if raw.get(field, "auto") == "auto" else size(raw, field)


def _read_config(raw: Mapping[str, Any], architecture: str, inner_norm_eps: float | None = None) -> ModelConfig:
    require(raw, "hidden_act", ("silu",))
    hidden_size = size(raw, "hidden_size")
    mixer = Mamba1Spec(
        inner_size=size(raw, "intermediate_size", size(raw, "expand", 2) * hidden_size),
        state_size=size(raw, "state_size"),
        step_rank=step_rank(raw, "time_step_rank", hidden_size),
        conv_kernel=size(raw, "conv_kernel"),
        conv_bias=bool(raw.get("use_conv_bias", True)),
        proj_bias=bool(raw.get("use_bias", False)),
        inner_norm_eps=inner_norm_eps,
    )
    return ModelConfig(
        architecture=architecture,
        hidden_size=hidden_size,
        vocab_size=size(raw, "vocab_size"),
        layers=(LayerSpec(mixer, None),) * num_layers(raw),
        norm_eps=positive(raw["layer_norm_epsilon"], "layer_norm_epsilon"),
        tie_embeddings=bool(raw.get("tie_word_embeddings", True)),
        max_positions=None,
        eos_token_ids=eos_token_ids(raw),
        residual_in_float32=bool(raw.get("residual_in_fp32", True)),
    )
