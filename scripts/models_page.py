"""Write docs/models.md: what can be served, as the code has it.

python -m scripts.models_page
"""

import inspect
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from models.cache import KVCache, ParallelCache, StateCache
from models.config import AttentionSpec, CacheNeeds, DeltaNetSpec, Mamba1Spec, Mamba2Spec, ParallelSpec, SharedSpec
from models.families import FAMILIES
from models.families.rope import ROPE_TYPES

PAGE = Path(__file__).resolve().parents[1] / "docs" / "models.md"
ELEMENT_BYTES = 2  # keys and values in bfloat16
MIXERS = {
    "attention": (AttentionSpec, KVCache),
    "Mamba-1": (Mamba1Spec, StateCache),
    "Mamba-2": (Mamba2Spec, StateCache),
    "Gated DeltaNet": (DeltaNetSpec, StateCache),
    "both side by side": (ParallelSpec, ParallelCache),
    "both one after the other": (SharedSpec, ParallelCache),
}
LLAMA_8B: dict[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 131_072,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500_000.0,
    "vocab_size": 128_256,
}
GEMMA_1B: dict[str, Any] = {
    "head_dim": 256,
    "hidden_size": 1152,
    "intermediate_size": 6912,
    "max_position_embeddings": 32_768,
    "num_attention_heads": 4,
    "num_hidden_layers": 26,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-6,
    "sliding_window": 512,
    "vocab_size": 262_144,
}
FALCON_MAMBA_7B: dict[str, Any] = {
    "conv_kernel": 4,
    "hidden_size": 4096,
    "intermediate_size": 8192,
    "layer_norm_epsilon": 1e-5,
    "num_hidden_layers": 64,
    "state_size": 16,
    "vocab_size": 65_024,
}
MAMBA_3B: dict[str, Any] = {
    "chunk_size": 256,
    "conv_kernel": 4,
    "expand": 2,
    "head_dim": 64,
    "hidden_size": 2560,
    "layer_norm_epsilon": 1e-5,
    "n_groups": 1,
    "num_heads": 80,
    "num_hidden_layers": 64,
    "state_size": 128,
    "vocab_size": 50_288,
}
FALCON_H1_7B: dict[str, Any] = {
    "hidden_size": 3072,
    "intermediate_size": 12_288,
    "mamba_d_head": 64,
    "mamba_d_ssm": 3072,
    "mamba_d_state": 256,
    "mamba_n_heads": 48,
    "max_position_embeddings": 262_144,
    "head_dim": 128,
    "num_attention_heads": 12,
    "num_hidden_layers": 44,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": 130_048,
}
QWEN3_NEXT_80B: dict[str, Any] = {
    "hidden_size": 2048,
    "max_position_embeddings": 262_144,
    "moe_intermediate_size": 512,
    "num_attention_heads": 16,
    "num_experts": 512,
    "num_experts_per_tok": 10,
    "num_hidden_layers": 48,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000_000.0,
    "shared_expert_intermediate_size": 512,
    "vocab_size": 151_936,
}
EXAMPLES = {
    "Llama-3.1-8B": ("LlamaForCausalLM", LLAMA_8B),
    "Gemma-3-1B": ("Gemma3ForCausalLM", GEMMA_1B),
    "Falcon-Mamba-7B": ("FalconMambaForCausalLM", FALCON_MAMBA_7B),
    "Mamba-2-2.7B": ("Mamba2ForCausalLM", MAMBA_3B),
    "Falcon-H1-7B": ("FalconH1ForCausalLM", FALCON_H1_7B),
    "Qwen3-Next-80B-A3B": ("Qwen3NextForCausalLM", QWEN3_NEXT_80B),
}
WEIGHTS = """## Weights

In safetensors files, one or several with an index, as float64, float32, float16 or bfloat16. Every tensor is accounted
for: one that is missing, extra, there twice or of another shape is refused by its name, before memory is allocated. A
checkpoint with a `quantization_config` is refused by its `quant_method`, but for gpt-oss in MXFP4, which is unpacked
while it is read: it takes the memory of the format that is asked for.
"""
BEGIN = """# What can be served

Written by `python -m scripts.models_page` from the code; a test fails where the two differ.

A checkpoint's family is the class that `architectures` in its `config.json` names. A family that is not listed is
refused with a message that lists these; so is, by its name, an option that its family does not implement. Random small
checkpoints of every family are compared with `transformers` in `tests/models/test_exactness.py`: float32 logits within
1e-4 however the prompt is cut and whoever shares the batch, and the same 64 greedy tokens.
"""


def first_line(documented: object) -> str:
    return (inspect.getdoc(documented) or "").partition("\n")[0]


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = (head, ("---",) * len(head), *rows)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def family_rows() -> list[tuple[str, str, str]]:
    return [
        (
            f"`{name}`",
            family.covers,
            first_line(family.read_config) or first_line(inspect.getmodule(family.read_config)),
        )
        for name, family in FAMILIES.items()
        if not family.wraps
    ]


def wrapper_rows() -> list[tuple[str, str, str]]:
    return [
        (f"`{name}`", family.covers, ", ".join(f"`{text}`" for text in family.wraps))
        for name, family in FAMILIES.items()
        if family.wraps
    ]


def mixer_rows() -> list[tuple[str, str, str]]:
    return [(name, first_line(spec), first_line(cache)) for name, (spec, cache) in MIXERS.items()]


def needs_rows() -> list[tuple[str, str, str]]:
    rows = []
    for name, (architecture, raw) in EXAMPLES.items():
        needs: CacheNeeds = FAMILIES[architecture].read_config(raw).cache_needs(ELEMENT_BYTES)
        rows.append((name, f"{needs.bytes_per_token:,}", f"{needs.bytes_per_sequence:,}"))
    return rows


def page() -> str:
    """The text of docs/models.md."""
    ropes = [(f"`{name}`", kind.summary) for name, kind in ROPE_TYPES.items()]
    parts = [
        BEGIN,
        "## Families\n\n" + table(("architecture", "published models", "what it is"), family_rows()),
        "## Models that see, served for text only\n\nTheir text model is read, from `text_config` and the tensors that "
        "belong to it; those of the encoders of images are passed over, and a request with images is refused.",
        table(("architecture", "published models", "its text model is read as"), wrapper_rows()),
        WEIGHTS,
        "## Mixers and what they remember\n\n" + table(("mixer", "what it does", "its cache"), mixer_rows()),
        "A layer with a sliding window masks what lies before it, but its blocks are kept: it remembers as much as a "
        "full layer.",
        "Bytes to remember, keys and values in bfloat16, recurrent state in float32 always:",
        table(("model", "for each token", "for each sequence"), needs_rows()),
        "## Rotary positions\n\nIn `rope_parameters`, or in the older `rope_theta` and `rope_scaling`:",
        table(("`rope_type`", "what it does"), ropes),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
