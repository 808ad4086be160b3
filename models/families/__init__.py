"""The families that can be served: for each `architectures` name, its config mapping and its tensor names."""

import json
from pathlib import Path

from models.config import ModelConfig
from models.errors import ModelError, UnsupportedModelError
from models.families import (
    bamba,
    falcon_h1,
    gemma,
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
from models.families.fields import ReadFields

FAMILIES: dict[str, Family] = {
    "LlamaForCausalLM": Family("Llama 2, 3, 3.1, 3.2, 3.3 (text)", llama.read_config, (Layout(llama.tensor_name),)),
    "MistralForCausalLM": Family("Mistral 7B, Nemo, Small 3", mistral.read_mistral, (Layout(mistral.tensor_name),)),
    "MinistralForCausalLM": Family("Ministral", mistral.read_ministral, (Layout(mistral.tensor_name),)),
    "Qwen2ForCausalLM": Family("Qwen2, Qwen2.5", qwen.read_qwen2, (Layout(qwen.tensor_name),)),
    "Qwen3ForCausalLM": Family("Qwen3 (dense)", qwen.read_qwen3, (Layout(qwen.tensor_name),)),
    "SmolLM3ForCausalLM": Family("SmolLM3", smollm3.read_config, (Layout(smollm3.tensor_name),)),
    "Olmo2ForCausalLM": Family("OLMo-2", olmo2.read_config, (Layout(olmo2.tensor_name),)),
    "Gemma2ForCausalLM": Family("Gemma 2", gemma.read_gemma2, (Layout(gemma.tensor_name),)),
    "Gemma3ForCausalLM": Family("Gemma 3 (text only: 270M, 1B)", gemma.read_gemma3, (Layout(gemma.tensor_name),)),
    "Phi3ForCausalLM": Family("Phi-3, Phi-3.5-mini, Phi-4-mini, Phi-4", phi3.read_config, (Layout(phi3.tensor_name),)),
    "MixtralForCausalLM": Family("Mixtral 8x7B, 8x22B", mixtral.read_config, (Layout(mixtral.tensor_name),)),
    "Qwen3MoeForCausalLM": Family("Qwen3-30B-A3B, -235B-A22B, Coder", qwen.read_qwen3_moe, (Layout(qwen.tensor_name),)),
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
        (Layout(qwen_next.qwen3_5_name, qwen_next.row_order),),
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
        config = family_of(architectures[0]).read_config(fields)
        fields.refuse_ignored(architectures[0])
    except KeyError as error:
        raise ModelError(f"{path}: field {error} is missing") from error
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise ModelError(f"{path}: {error}") from error
    return config
