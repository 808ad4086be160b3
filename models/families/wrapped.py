"""Text models inside of classes that put encoders of images before them: read and served for text alone."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from models.config import ModelConfig
from models.errors import UnsupportedModelError
from models.families.family import Family, Layout
from models.families.fields import ReadFields

# How the names of a text model's tensors begin, instead of with `model.` and `lm_head.`.
_PREFIXES = (
    ("language_model.model.", "language_model.lm_head."),
    ("model.language_model.", "lm_head."),
    ("model.text_model.", "lm_head."),
    ("model.", "lm_head."),
)
_OF_IMAGES = ("connector.", "image_newline", "multi_modal_projector.", "vision_model.", "vision_tower.", "visual.")
IGNORED = ("mtp.", *_OF_IMAGES, *(f"model.{part}" for part in _OF_IMAGES))
# Positions of images in rotary fields: without images they all are the token's own.
_IMAGE_FIELDS = frozenset({"mrope_section", "mrope_interleaved"})
# What the reference does whatever config.json says.
_FIXED: dict[str, dict[str, Any]] = {"qwen3_vl_moe_text": {"norm_topk_prob": True}}
# What a `text_config` of so-and-so `model_type` leaves out where it is this.
DEFAULTS: dict[str, dict[str, Any]] = {
    "gemma3_text": {
        "vocab_size": 262_208,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-6,
    },
    "llama": {
        "vocab_size": 32_000,
        "hidden_size": 4096,
        "intermediate_size": 11_008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
    },
    "mistral": {
        "vocab_size": 32_000,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-6,
    },
    "qwen2": {
        "vocab_size": 151_936,
        "hidden_size": 4096,
        "intermediate_size": 22_016,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 32_768,
        "rms_norm_eps": 1e-6,
    },
    "qwen2_vl_text": {"max_window_layers": 80, "rope_theta": 1_000_000.0},
    "qwen2_5_vl_text": {"max_window_layers": 80, "rope_theta": 1_000_000.0},
    "qwen3_vl_text": {"rope_theta": 500_000.0},
    "qwen3_vl_moe_text": {"rope_theta": 500_000.0},
}


def wrap(
    architecture: str, covers: str, texts: Mapping[str, tuple[str, Family]], *, tied: bool = False, flat: bool = False
) -> Family:
    """The family of a class that wraps text models.

    Args:
        texts: the `model_type` of its `text_config` -> that text model's architecture and family; the first is meant
            where it has none. tied: what an absent `tie_word_embeddings` means. flat: whether the text model's fields
            may stand in config.json itself.
    """

    def read_config(raw: Mapping[str, Any]) -> ModelConfig:
        inner = raw if flat and raw.get("text_config") is None else raw["text_config"]
        if not isinstance(inner, Mapping):
            raise ValueError(f"text_config must be an object, not {inner!r}")
        first = next(iter(texts))
        kind = first if inner is raw else inner.get("model_type", first)
        if kind not in texts:
            raise UnsupportedModelError(
                f"config.json: model_type of text_config = {kind!r} is not supported for {architecture}; "
                f"supported: {', '.join(texts)}"
            )
        fields = ReadFields(DEFAULTS.get(kind, {}) | _text_fields(raw, inner, tied) | _FIXED.get(kind, {}))
        config = texts[kind][1].read_config(fields)
        fields.refuse_ignored(architecture)
        return replace(config, architecture=architecture)

    layouts = dict.fromkeys(layout for _, family in texts.values() for layout in family.layouts)
    return Family(
        covers,
        read_config,
        tuple(_wrapped(layout, *prefixes) for layout in layouts for prefixes in _PREFIXES),
        IGNORED,
        tuple(dict.fromkeys(name for name, _ in texts.values())),
    )


def _text_fields(raw: Mapping[str, Any], inner: Mapping[str, Any], tied: bool) -> dict[str, Any]:
    """The text model's fields, with what stands around it counted in."""
    fields = dict(inner)
    for name in ("rope_parameters", "rope_scaling"):
        if isinstance(fields.get(name), Mapping):
            fields[name] = _text_rope(fields[name])
    # Checkpoints say it on either level, and as false where nobody thought of it. A head that the files hold counts
    # more than this.
    outer = raw.get("tie_word_embeddings", tied)
    fields["tie_word_embeddings"] = bool(outer) or bool(inner.get("tie_word_embeddings"))
    if raw.get("eos_token_id") is not None:
        fields["eos_token_id"] = raw["eos_token_id"]
    return fields


def _text_rope(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary fields without what says how images are rotated."""
    text = {name: value for name, value in fields.items() if name not in _IMAGE_FIELDS}
    return {name: "default" if value == "mrope" else value for name, value in text.items()}


def _wrapped(layout: Layout, body: str, head: str) -> Layout:
    def tensor_name(parameter: str) -> str:
        name = re.sub(r"^lm_head\.", head, layout.tensor_name(parameter))
        return re.sub(r"^model\.", body, name)

    return replace(layout, tensor_name=tensor_name)
