"""Gemma 2 and 3 (text): four norms a layer, layers with a window between full ones, scaled embeddings, soft caps."""

from collections.abc import Mapping
from typing import Any, Literal

from models.config import LayerSpec, MLPSpec, ModelConfig, RopeSpec
from models.families.fields import positive, require, size
from models.families.rope import read_rope
from models.families.transformer import (
    BOTH_NORMS,
    head_dim_of,
    read_attention,
    read_model,
    read_windows,
    scores_of,
    tensor_names,
)

DEFAULT_HEAD_DIM, DEFAULT_WINDOW, DEFAULT_QUERY_SCALAR = 256, 4096, 256
DEFAULT_PATTERN = 6  # Gemma 3: every sixth layer is full
GLOBAL_THETA, LOCAL_THETA = 1_000_000.0, 10_000.0


def read_gemma2(raw: Mapping[str, Any]) -> ModelConfig:
    """Norms before and after mixer and MLP, every second layer over a window, scores and logits soft-capped."""
    head_dim = head_dim_of(raw, DEFAULT_HEAD_DIM)
    rope = read_rope(raw, head_dim)
    windows = _windows(raw, pattern=2)
    return _read_config(
        raw,
        "Gemma2ForCausalLM",
        windows,
        [rope.spec] * len(windows),
        max_positions=rope.max_positions,
        score_softcap=_softcap(raw, "attn_logit_softcapping", 50.0),
        logit_softcap=_softcap(raw, "final_logit_softcapping", 30.0),
    )


def read_gemma3(raw: Mapping[str, Any]) -> ModelConfig:
    """Gemma 2 with queries and keys normalised instead of capped; one full layer in six, with a rope of its own."""
    require(raw, "attn_logit_softcapping", (None,))
    head_dim = head_dim_of(raw, DEFAULT_HEAD_DIM)
    windows = _windows(raw, pattern=size(raw, "sliding_window_pattern", DEFAULT_PATTERN))
    everywhere, local = _rope_fields(raw)
    full = read_rope(raw, head_dim, theta=GLOBAL_THETA, fields=everywhere)
    sliding = read_rope(raw, head_dim, fields=local)
    return _read_config(
        raw,
        "Gemma3ForCausalLM",
        windows,
        [full.spec if window is None else sliding.spec for window in windows],
        max_positions=min(full.max_positions, sliding.max_positions),
        qk_norm="head",
        logit_softcap=_softcap(raw, "final_logit_softcapping", None),
    )


def _rope_fields(raw: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Rotary fields of the full layers and of those with a window; an older `rope_scaling` is for the full ones."""
    parameters = raw.get("rope_parameters") or {}
    full = {**(parameters.get("full_attention") or {}), **(raw.get("rope_scaling") or {})}
    local = dict(parameters.get("sliding_attention") or {})
    if unknown := sorted(set(parameters) - {"full_attention", "sliding_attention"}):
        raise ValueError(f"rope_parameters: {unknown} are no types of layers")
    local.setdefault("rope_theta", raw.get("rope_local_base_freq") or LOCAL_THETA)
    return full, local


def _softcap(raw: Mapping[str, Any], field: str, default: float | None) -> float | None:
    """A soft cap; null means none, absent the default."""
    value = raw.get(field, default)
    return None if value is None else positive(value, field)


def _windows(raw: Mapping[str, Any], *, pattern: int) -> list[int | None]:
    window = raw.get("sliding_window", DEFAULT_WINDOW)
    return read_windows(raw, window, lambda number: (number + 1) % pattern != 0)


def _read_config(
    raw: Mapping[str, Any],
    architecture: str,
    windows: list[int | None],
    ropes: list[RopeSpec],
    *,
    max_positions: int,
    logit_softcap: float | None,
    score_softcap: float | None = None,
    qk_norm: Literal["head"] | None = None,
) -> ModelConfig:
    require(raw, "hidden_activation", ("gelu_pytorch_tanh",))
    require(raw, "use_bidirectional_attention", (None, False))
    mlp = MLPSpec(size(raw, "intermediate_size"), activation="gelu_tanh")
    scale = positive(raw.get("query_pre_attn_scalar", DEFAULT_QUERY_SCALAR), "query_pre_attn_scalar") ** -0.5
    head_dim = head_dim_of(raw, DEFAULT_HEAD_DIM)
    layers = [
        LayerSpec(read_attention(raw, head_dim=head_dim, rope=rope, scores=scores, qk_norm=qk_norm), mlp, norms="both")
        for rope, scores in zip(ropes, scores_of(windows, scale=scale, softcap=score_softcap), strict=True)
    ]
    return read_model(
        raw,
        architecture,
        layers,
        max_positions=max_positions,
        tied=True,
        norm_unit_offset=True,
        embedding_scale=size(raw, "hidden_size") ** 0.5,
        logit_softcap=logit_softcap,
    )


tensor_name = tensor_names(BOTH_NORMS)
