"""Falcon-H1: attention and Mamba-2 side by side in every layer, with a factor on nearly everything."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from models.config import LayerSpec, ModelConfig, ParallelSpec, ScoreSpec
from models.families.fields import num_layers, positive, size
from models.families.hybrid import read_mamba2, tensor_names
from models.families.rope import read_rope
from models.families.transformer import head_dim_of, read_attention, read_mlp, read_model


def read_config(raw: Mapping[str, Any]) -> ModelConfig:
    head_dim = head_dim_of(raw)
    rope = read_rope(raw, head_dim)
    # The factor on the keys is one on the scores: rotation does not see it.
    scores = ScoreSpec(scale=head_dim**-0.5 * _factor(raw, "key_multiplier"))
    attention = read_attention(raw, head_dim=head_dim, rope=rope.spec, grouped=False, scores=scores)
    gated_norm = None
    if raw.get("mamba_rms_norm", False):
        gated_norm = "norm_first" if raw.get("mamba_norm_before_gate", True) else "gate_first"
    mamba = read_mamba2(
        raw,
        inner_size=None if raw.get("mamba_d_ssm", 1024) is None else size(raw, "mamba_d_ssm", 1024),
        out_bias=bool(raw.get("projectors_bias", False)),
        gated_norm=gated_norm,
        projection_scales=_factors(raw, "ssm_multipliers", 5),
    )
    scales = ("attention_in_multiplier", "attention_out_multiplier", "ssm_in_multiplier", "ssm_out_multiplier")
    attention_in, attention_out, ssm_in, ssm_out = (_factor(raw, field) for field in scales)
    mixer = ParallelSpec(attention, mamba, (attention_in, attention_out, ssm_in, ssm_out))
    mlp = read_mlp(raw)
    if factors := _factors(raw, "mlp_multipliers", 2):
        mlp = replace(mlp, scales=(factors[0], factors[1]))
    return read_model(
        raw,
        "FalconH1ForCausalLM",
        (LayerSpec(mixer, mlp),) * num_layers(raw),
        max_positions=rope.max_positions,
        embedding_scale=_factor(raw, "embedding_multiplier"),
        logit_scale=_factor(raw, "lm_head_multiplier"),
    )


def _factor(raw: Mapping[str, Any], field: str) -> float:
    value = raw.get(field)
    return 1.0 if value is None else positive(value, field)


def _factors(raw: Mapping[str, Any], field: str, count: int) -> tuple[float, ...] | None:
    """Several factors; none where the field is absent."""
    values = raw.get(field)
    if values is None:
        return None
    if not isinstance(values, list) or len(values) != count:
        raise ValueError(f"{field} must be {count} numbers, not {values!r}")
    return tuple(positive(value, field) for value in values)


tensor_name = tensor_names(
    {"mixer_norm.": "input_layernorm.", "mlp_norm.": "pre_ff_layernorm.", "norm.": "model.final_layernorm."},
    lambda leaf: f"feed_forward.{leaf}",
)
