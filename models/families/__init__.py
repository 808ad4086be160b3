"""The families that can be served: for each `architectures` name, its config mapping and its tensor names."""

import json
from pathlib import Path

from models.config import ModelConfig
from models.errors import ModelError, UnsupportedModelError
from models.families import (
    bamba,
    falcon_h1,
    gemma,
    gpt_oss,
    granite_hybrid,
    jamba,
    llama,
    mamba,
    mamba2,
    mamba_original,
    mistral,
    mixtral,
    nemotron_h,
    olmo2,
    phi3,
    qwen,
    qwen_next,
    smollm3,
    zamba2,
)
from models.families.family import Family, Layout
from models.families.fields import ReadFields, refuse_quantized
from models.families.transformer import llama_tensor_name, with_stacked_experts
from models.families.wrapped import wrap

LLAMA = (Layout(llama_tensor_name),)
TEXT_FAMILIES: dict[str, Family] = {
    "LlamaForCausalLM": Family("Llama 2, 3, 3.1, 3.2, 3.3 (text)", llama.read_config, LLAMA),
    "MistralForCausalLM": Family("Mistral 7B, Nemo, Small 3", mistral.read_mistral, LLAMA),
    "MinistralForCausalLM": Family("Ministral", mistral.read_ministral, LLAMA),
    "Ministral3ForCausalLM": Family("Ministral 3 (text)", mistral.read_ministral3, LLAMA),
    "Qwen2ForCausalLM": Family("Qwen2, Qwen2.5", qwen.read_qwen2, LLAMA),
    "Qwen3ForCausalLM": Family("Qwen3 (dense)", qwen.read_qwen3, LLAMA),
    "SmolLM3ForCausalLM": Family("SmolLM3", smollm3.read_config, LLAMA),
    "Olmo2ForCausalLM": Family("OLMo-2", olmo2.read_config, (Layout(olmo2.tensor_name),)),
    "Gemma2ForCausalLM": Family("Gemma 2", gemma.read_gemma2, (Layout(gemma.tensor_name),)),
    "Gemma3ForCausalLM": Family("Gemma 3 (text only: 270M, 1B)", gemma.read_gemma3, (Layout(gemma.tensor_name),)),
    "Phi3ForCausalLM": Family("Phi-3, Phi-3.5-mini, Phi-4-mini, Phi-4", phi3.read_config, (Layout(phi3.tensor_name),)),
    "MixtralForCausalLM": Family("Mixtral 8x7B, 8x22B", mixtral.read_config, (Layout(mixtral.tensor_name),)),
    "Qwen3MoeForCausalLM": Family(
        "Qwen3-30B-A3B, -235B-A22B, Coder", qwen.read_qwen3_moe, with_stacked_experts(*LLAMA)
    ),
    "GptOssForCausalLM": Family(
        "gpt-oss-20b, -120b (MXFP4 too)", gpt_oss.read_config, gpt_oss.LAYOUTS, quant_methods=("mxfp4",)
    ),
    "BambaForCausalLM": Family("Bamba-9B", bamba.read_config, (Layout(bamba.tensor_name),)),
    "FalconH1ForCausalLM": Family("Falcon-H1 0.5B to 34B", falcon_h1.read_config, (Layout(falcon_h1.tensor_name),)),
    "GraniteMoeHybridForCausalLM": Family(
        "Granite 4.0", granite_hybrid.read_config, (Layout(granite_hybrid.tensor_name),)
    ),
    "JambaForCausalLM": Family("Jamba, Jamba 1.5 to 1.7", jamba.read_config, (Layout(jamba.tensor_name),)),
    "NemotronHForCausalLM": Family(
        "Nemotron-H, Nemotron Nano 2, Nemotron 3 Nano",
        nemotron_h.read_config,
        (Layout(nemotron_h.tensor_name),),
        ignored=("mtp.",),
    ),
    "Qwen3NextForCausalLM": Family(
        "Qwen3-Next-80B-A3B",
        qwen_next.read_qwen3_next,
        (Layout(qwen_next.qwen3_next_name, qwen_next.row_order),),
        ("mtp.",),
    ),
    "Qwen3_5ForCausalLM": Family(
        "Qwen3.5, dense (text)",
        qwen_next.read_qwen3_5,
        (Layout(qwen_next.qwen3_5_name, qwen_next.row_order),),
        ("mtp.",),
    ),
    "Qwen3_5MoeForCausalLM": Family(
        "Qwen3.5, mixtures (text)",
        qwen_next.read_qwen3_5_moe,
        with_stacked_experts(Layout(qwen_next.qwen3_5_name, qwen_next.row_order)),
        ("mtp.",),
    ),
    "Zamba2ForCausalLM": Family("Zamba2 1.2B, 2.7B, 7B", zamba2.read_config, (Layout(zamba2.tensor_name),)),
    "MambaForCausalLM": Family("Mamba, in the layout of transformers", mamba.read_mamba, (Layout(mamba2.tensor_name),)),
    "FalconMambaForCausalLM": Family("Falcon-Mamba-7B", mamba.read_falcon_mamba, (Layout(mamba2.tensor_name),)),
    mamba_original.ARCHITECTURE: Family(
        "Mamba and Mamba-2, in their first layout", mamba_original.read_config, (Layout(mamba_original.tensor_name),)
    ),
    "Mamba2ForCausalLM": Family(
        "Mamba-2, in the layout of transformers", mamba2.read_config, (Layout(mamba2.tensor_name),)
    ),
}


def _wrap(architecture: str, covers: str, texts: dict[str, str], *, tied: bool = False, flat: bool = False) -> Family:
    """texts: `model_type` of the `text_config` -> the text model's architecture."""
    known = {kind: (name, TEXT_FAMILIES[name]) for kind, name in texts.items()}
    return wrap(architecture, covers, known, tied=tied, flat=flat)


LLAMA_TEXT = {"llama": "LlamaForCausalLM"}
MISTRAL_TEXT = {"mistral": "MistralForCausalLM"}
QWEN_TEXT = {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
WRAPPERS: tuple[tuple[str, str, dict[str, str], dict[str, bool]], ...] = (
    ("Gemma3", "Gemma 3 4B, 12B, 27B", {"gemma3_text": "Gemma3ForCausalLM"}, {"tied": True}),
    (
        "Mistral3",
        "Mistral Small 3.1, 3.2, Ministral 3, Devstral Small 2",
        {**MISTRAL_TEXT, "ministral3": "Ministral3ForCausalLM"},
        {"tied": True},
    ),
    ("Qwen2VL", "Qwen2-VL", {"qwen2_vl_text": "Qwen2ForCausalLM"}, {"flat": True}),
    ("Qwen2_5_VL", "Qwen2.5-VL", {"qwen2_5_vl_text": "Qwen2ForCausalLM"}, {"flat": True}),
    ("Qwen3VL", "Qwen3-VL, dense", {"qwen3_vl_text": "Qwen3ForCausalLM"}, {}),
    ("Qwen3VLMoe", "Qwen3-VL-30B-A3B, -235B-A22B", {"qwen3_vl_moe_text": "Qwen3MoeForCausalLM"}, {}),
    ("Qwen3_5", "Qwen3.5, dense", {"qwen3_5_text": "Qwen3_5ForCausalLM"}, {}),
    ("Qwen3_5Moe", "Qwen3.5, mixtures", {"qwen3_5_moe_text": "Qwen3_5MoeForCausalLM"}, {}),
    ("Llava", "LLaVA 1.5, Pixtral 12B", {**LLAMA_TEXT, **MISTRAL_TEXT, **QWEN_TEXT}, {}),
    ("LlavaNext", "LLaVA 1.6 (NeXT)", {**LLAMA_TEXT, **MISTRAL_TEXT, **QWEN_TEXT}, {}),
    ("LlavaOnevision", "LLaVA-OneVision", {"qwen2": "Qwen2ForCausalLM"}, {}),
    ("InternVL", "InternVL3, 3.5 (in the layout of transformers)", {**QWEN_TEXT, **LLAMA_TEXT}, {"tied": True}),
    ("Idefics3", "Idefics3", LLAMA_TEXT, {}),
    ("SmolVLM", "SmolVLM, SmolVLM2", LLAMA_TEXT, {}),
)
FAMILIES: dict[str, Family] = TEXT_FAMILIES | {
    f"{name}ForConditionalGeneration": _wrap(f"{name}ForConditionalGeneration", covers, texts, **options)
    for name, covers, texts, options in WRAPPERS
}


def family_of(architecture: str) -> Family:
    """The family of an architecture name, or an error that lists those supported."""
    if architecture not in FAMILIES:
        raise UnsupportedModelError(
            f"architecture {architecture!r} is not supported; supported: {', '.join(sorted(FAMILIES))}"
        )
    return FAMILIES[architecture]


def read_config(directory: Path) -> ModelConfig:
    """Read a checkpoint directory's config.json.

    Raises:
        ModelError: no such file, not JSON, a field is missing or of the wrong kind.
        UnsupportedModelError: the family, or an option that it sets, is not implemented.
    """
    path = directory / "config.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{directory} is not a checkpoint directory: it has no config.json") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}") from error
    architectures = raw.get("architectures") if isinstance(raw, dict) else None
    if isinstance(raw, dict) and mamba_original.is_original(raw):
        architectures = [mamba_original.ARCHITECTURE]
    if not isinstance(architectures, list) or len(architectures) != 1:
        raise ModelError(f"{path}: `architectures` must name exactly one class, got {architectures!r}")
    try:
        fields = ReadFields(raw)
        family = family_of(architectures[0])
        refuse_quantized(fields, family.quant_methods)
        config = family.read_config(fields)
        fields.refuse_ignored(architectures[0])
    except KeyError as error:
        raise ModelError(f"{path}: field {error} is missing") from error
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise ModelError(f"{path}: {error}") from error
    return config
