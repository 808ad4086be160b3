"""Small random models of the classes that put encoders of images before a text model, and all checkpoints by name."""

from collections.abc import Callable
from typing import Any

from reference_models import BUILDERS as TEXT_BUILDERS
from reference_models import DEFAULT, DELTA, MIXTURE, SIZES, YARN, growing
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5MoeConfig,
    Qwen3_5MoeForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

# Encoders of images, as small as their classes let them be: nothing is shown to them.
ENCODER: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
CLIP = {"model_type": "clip_vision_model", **ENCODER}
SIGLIP = {"model_type": "siglip_vision_model", **ENCODER}
PIXTRAL = {"model_type": "pixtral", "head_dim": 8, **ENCODER}
QWEN = {"depth": 1, "hidden_size": 16, "intermediate_size": 20, "num_heads": 2, "out_hidden_size": 72}


def text(model_type: str, **options: Any) -> dict[str, Any]:
    return {"model_type": model_type, **SIZES, "head_dim": 20, **options}


def sections(*sizes: int, **options: Any) -> dict[str, Any]:
    """Rotary fields that divide the frequencies among a token's place in time, height and width."""
    return {"rope_type": "default", "rope_theta": 1234.5, "mrope_section": list(sizes), **options}


def gemma3(**options: Any) -> PreTrainedModel:
    fields = text("gemma3_text", query_pre_attn_scalar=15, sliding_window=9, sliding_window_pattern=3, **options)
    return Gemma3ForConditionalGeneration(Gemma3Config(text_config=fields, vision_config=SIGLIP, mm_tokens_per_image=4))


def mistral3(tied: bool, kind: str = "mistral", **options: Any) -> PreTrainedModel:
    config = Mistral3Config(text_config=text(kind, **options), vision_config=PIXTRAL, tie_word_embeddings=tied)
    return Mistral3ForConditionalGeneration(config)


def qwen2_vl() -> PreTrainedModel:
    fields = {**SIZES, "rope_parameters": sections(2, 2, 2)}
    vision = {"depth": 1, "embed_dim": 16, "hidden_size": 72, "num_heads": 2}
    return Qwen2VLForConditionalGeneration(
        Qwen2VLConfig(text_config=fields, vision_config=vision, tie_word_embeddings=True)
    )


def qwen2_5_vl() -> PreTrainedModel:
    fields = {**SIZES, "rope_parameters": sections(1, 2, 3)}
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=fields, vision_config=QWEN))


def qwen3_vl() -> PreTrainedModel:
    fields = {**SIZES, "head_dim": 20, "rope_parameters": sections(4, 3, 3, mrope_interleaved=True)}
    vision = {**QWEN, "deepstack_visual_indexes": [0]}
    return Qwen3VLForConditionalGeneration(
        Qwen3VLConfig(text_config=fields, vision_config=vision, tie_word_embeddings=True)
    )


def qwen3_vl_moe() -> PreTrainedModel:
    fields = {
        **SIZES,
        "head_dim": 20,
        "num_experts": 7,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 44,
        "mlp_only_layers": [1],
        "rope_parameters": sections(4, 3, 3, mrope_interleaved=True),
    }
    vision = {**QWEN, "deepstack_visual_indexes": [0]}
    return Qwen3VLMoeForConditionalGeneration(Qwen3VLMoeConfig(text_config=fields, vision_config=vision))


def qwen3_5() -> PreTrainedModel:
    fields = {**SIZES, **DELTA, "head_dim": 24}
    return Qwen3_5ForConditionalGeneration(Qwen3_5Config(text_config=fields, vision_config=QWEN))


def qwen3_5_moe() -> PreTrainedModel:
    fields = {**SIZES, **DELTA, **MIXTURE, "head_dim": 24}
    return Qwen3_5MoeForConditionalGeneration(
        Qwen3_5MoeConfig(text_config=fields, vision_config=QWEN, tie_word_embeddings=True)
    )


def idefics3() -> PreTrainedModel:
    fields = text("llama", tie_word_embeddings=True)
    return Idefics3ForConditionalGeneration(
        Idefics3Config(text_config=fields, vision_config=ENCODER, tie_word_embeddings=True)
    )


def internvl(**options: Any) -> PreTrainedModel:
    vision = {**ENCODER, "image_size": [28, 28], "patch_size": [14, 14]}
    return InternVLForConditionalGeneration(
        InternVLConfig(text_config=text("qwen3", **options), vision_config=vision, tie_word_embeddings=False)
    )


WRAPPED: dict[str, Callable[[], PreTrainedModel]] = {
    "wrapped-gemma3": lambda: gemma3(),
    "wrapped-mistral3": lambda: mistral3(False, sliding_window=None, rope_parameters=DEFAULT),
    "wrapped-mistral3-tied": lambda: mistral3(True, sliding_window=11),
    "wrapped-ministral3": lambda: mistral3(False, "ministral3", rope_parameters=growing(), max_position_embeddings=80),
    "wrapped-qwen2-vl": qwen2_vl,
    "wrapped-qwen2-5-vl": qwen2_5_vl,
    "wrapped-qwen3-vl": qwen3_vl,
    "wrapped-qwen3-vl-moe": qwen3_vl_moe,
    "wrapped-qwen3-5": qwen3_5,
    "wrapped-qwen3-5-moe": qwen3_5_moe,
    "wrapped-llava": lambda: LlavaForConditionalGeneration(LlavaConfig(text_config=text("llama"), vision_config=CLIP)),
    "wrapped-llava-next": lambda: LlavaNextForConditionalGeneration(
        LlavaNextConfig(text_config=text("mistral", sliding_window=None), vision_config=CLIP)
    ),
    "wrapped-llava-onevision": lambda: LlavaOnevisionForConditionalGeneration(
        LlavaOnevisionConfig(text_config={"model_type": "qwen2", **SIZES}, vision_config=SIGLIP)
    ),
    "wrapped-internvl": lambda: internvl(rope_parameters=YARN, max_position_embeddings=80),
    "wrapped-idefics3": idefics3,
    "wrapped-smolvlm": lambda: SmolVLMForConditionalGeneration(
        SmolVLMConfig(text_config=text("llama"), vision_config=ENCODER)
    ),
}
BUILDERS: dict[str, Callable[[], PreTrainedModel]] = TEXT_BUILDERS | WRAPPED
