"""Rotary positions from config.json, in today's style (`rope_parameters`) and the older one (`rope_scaling`)."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from models.config import LinearScaling, Llama3Scaling, LongRopeScaling, RopeScaling, RopeSpec, YarnScaling
from models.errors import UnsupportedModelError
from models.families.fields import positive, size

_COMMON = frozenset({"rope_type", "type", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings"})


@dataclass(frozen=True, slots=True)
class RopeType:
    """One value of `rope_type`.

    summary: what it does, for the page of models. fields: what else it may set. read: the fields and the number of
    trained positions -> the scaling.
    """

    summary: str
    fields: frozenset[str]
    read: Callable[[Mapping[str, Any], int], RopeScaling | None]


def _plain(fields: Mapping[str, Any], original: int) -> None:
    del fields, original


def _linear(fields: Mapping[str, Any], original: int) -> LinearScaling:
    del original
    return LinearScaling(positive(fields["factor"], "factor"))


def _llama3(fields: Mapping[str, Any], original: int) -> Llama3Scaling:
    low, high = float(fields["low_freq_factor"]), float(fields["high_freq_factor"])
    if not low < high:
        raise ValueError(f"rope: low_freq_factor = {low} must be less than high_freq_factor = {high}")
    return Llama3Scaling(positive(fields["factor"], "factor"), low, high, original)


def _yarn(fields: Mapping[str, Any], original: int) -> YarnScaling:
    factor = positive(fields["factor"], "factor")

    def growth(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    attention_factor = fields.get("attention_factor")
    if attention_factor is None:
        numerator, denominator = fields.get("mscale"), fields.get("mscale_all_dim")
        attention_factor = growth(numerator) / growth(denominator) if numerator and denominator else growth(1.0)
    return YarnScaling(
        factor=factor,
        original_positions=original,
        attention_factor=float(attention_factor),
        beta_fast=positive(fields.get("beta_fast") or 32.0, "beta_fast"),
        beta_slow=positive(fields.get("beta_slow") or 1.0, "beta_slow"),
        truncate=bool(fields.get("truncate", True)),
    )


def _longrope(fields: Mapping[str, Any], original: int) -> LongRopeScaling:
    factor, attention_factor = positive(fields["factor"], "factor"), fields.get("attention_factor")
    if attention_factor is None:
        attention_factor = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    return LongRopeScaling(
        tuple(positive(value, "short_factor") for value in fields["short_factor"]), float(attention_factor)
    )


ROPE_TYPES: dict[str, RopeType] = {
    "default": RopeType("plain rotary positions", frozenset(), _plain),
    "linear": RopeType("all frequencies divided by one factor", frozenset({"factor"}), _linear),
    "dynamic": RopeType(
        "plain up to `max_position_embeddings`, and no sequence is let beyond: there its frequencies would change "
        "under the keys that are cached",
        frozenset({"factor"}),
        _plain,
    ),
    "llama3": RopeType(
        "low frequencies divided, high ones kept (Llama 3.1)",
        frozenset({"factor", "low_freq_factor", "high_freq_factor"}),
        _llama3,
    ),
    "yarn": RopeType(
        "a ramp over the dimensions, scores sharpened; up to `factor` times the original positions",
        frozenset({"factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"}),
        _yarn,
    ),
    "longrope": RopeType(
        "a factor for each frequency (Phi-3); the short ones, up to `original_max_position_embeddings`, and no "
        "sequence is let beyond: the long ones would change what is cached",
        frozenset({"factor", "attention_factor", "short_factor", "long_factor"}),
        _longrope,
    ),
}


@dataclass(frozen=True, slots=True)
class Rope:
    """A rotary spec, and the most positions for which it is right."""

    spec: RopeSpec
    max_positions: int


def read_rope(
    raw: Mapping[str, Any],
    head_dim: int,
    *,
    theta: float = 10_000.0,
    partial: bool = False,
    default_share: float = 1.0,
    fields: Mapping[str, Any] | None = None,
) -> Rope:
    """Rotary positions of a config.json; `theta` where it names none.

    Args:
        partial: whether the family has heads that are rotated in part; default_share: by how much, where config.json
            does not say it. fields: instead of `rope_parameters`, for a
            family whose layers differ.
    Raises:
        UnsupportedModelError: the type, a field of it, or a partial rotation is not implemented; the message names it.
        KeyError: the type needs a field that is missing.
    """
    if fields is None:
        fields = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    kind = _kind(fields)
    longest = size(raw, "max_position_embeddings")
    original = size(raw, "original_max_position_embeddings", size(fields, "original_max_position_embeddings", longest))
    if kind in ("yarn", "longrope") and fields.get("factor") is None:
        fields = {**fields, "factor": longest / original}
    base = positive(fields.get("rope_theta") or raw.get("rope_theta") or theta, "rope_theta")
    if base <= 1.0:
        raise ValueError(f"rope_theta = {base} must be greater than 1")
    spec = RopeSpec(
        base,
        _rotary_dim(raw, fields, head_dim, default_share if partial else None),
        ROPE_TYPES[kind].read(fields, original),
    )
    if isinstance(spec.scaling, YarnScaling):
        return Rope(spec, max(longest, int(spec.scaling.factor * original)))
    if isinstance(spec.scaling, LongRopeScaling):
        if len(spec.scaling.factors) != spec.rotary_dim // 2:
            raise ValueError(f"rope: short_factor has {len(spec.scaling.factors)} numbers, not {spec.rotary_dim // 2}")
        return Rope(spec, original)
    return Rope(spec, longest)


def _kind(fields: Mapping[str, Any]) -> str:
    """The `rope_type`, all of whose fields are known."""
    kind = fields.get("rope_type", fields.get("type", "default"))
    if kind not in ROPE_TYPES:
        raise UnsupportedModelError(
            f"config.json: rope type {kind!r} is not supported; supported: {', '.join(ROPE_TYPES)}"
        )
    if unknown := sorted(set(fields) - _COMMON - ROPE_TYPES[kind].fields):
        raise UnsupportedModelError(f"config.json: rope type {kind!r} with {', '.join(unknown)} is not supported")
    return str(kind)


def _rotary_dim(raw: Mapping[str, Any], fields: Mapping[str, Any], head_dim: int, default_share: float | None) -> int:
    """How many entries of each head are rotated; all, in a family without a default share."""
    share = float(fields.get("partial_rotary_factor") or raw.get("partial_rotary_factor") or default_share or 1.0)
    if not 0.0 < share <= 1.0:
        raise ValueError(f"partial_rotary_factor = {share} is not between 0 and 1")
    if share != 1.0 and default_share is None:
        raise UnsupportedModelError(f"config.json: partial_rotary_factor = {share} is not supported; supported: 1.0")
    rotary_dim = int(head_dim * share)
    if rotary_dim % 2 or rotary_dim == 0:
        raise ValueError(f"rope: {rotary_dim} entries of each head are rotated, which must be an even number")
    return rotary_dim
