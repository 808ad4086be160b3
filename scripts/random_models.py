"""Checkpoints of random weights: for what does not hang on what is said."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    FalconH1Config,
    FalconH1ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
    PreTrainedModel,
)

from models.embedded import PREFIX, embedded_directory

KINDS = ("transformer", "mamba", "hybrid")


@dataclass(frozen=True, slots=True)
class Sizes:
    """What models of every kind are made of; a recurrence is twice as wide as the model."""

    vocab: int
    width: int
    inner: int
    layers: int
    positions: int
    recurrent_heads: int
    state: int
    chunk: int = 256
    heads: int = 4
    key_heads: int = 2


def random_model(kind: str, sizes: Sizes) -> PreTrainedModel:
    """A model of a kind, the same at every call; the hybrid has attention and Mamba-2 side by side."""
    torch.manual_seed(KINDS.index(kind))
    model = {"transformer": _transformer, "mamba": _mamba, "hybrid": _hybrid}[kind](sizes)
    for parameter in model.parameters():
        if parameter.dim() >= 2:
            # Wider than the default, so that the likeliest token is likeliest by far and hangs on the context.
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return model


def write_random_model(kind: str, directory: Path) -> Path:
    """Write a checkpoint of about the embedded models' size, which every backend of attention takes."""
    embedded = embedded_directory(PREFIX + "transformer")
    vocab_size = json.loads((embedded / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    sizes = Sizes(vocab_size, width=256, inner=512, layers=4, positions=1 << 20, recurrent_heads=8, state=64)
    random_model(kind, sizes).save_pretrained(directory)
    for path in embedded.glob("tokenizer*.json"):
        shutil.copy(path, directory)
    return directory


def _with_attention(sizes: Sizes) -> dict[str, Any]:
    """What the configurations of models with attention say alike."""
    return {
        "vocab_size": sizes.vocab,
        "hidden_size": sizes.width,
        "intermediate_size": sizes.inner,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.key_heads,
        "max_position_embeddings": sizes.positions,
    }


def _transformer(sizes: Sizes) -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**_with_attention(sizes)))


def _mamba(sizes: Sizes) -> PreTrainedModel:
    return Mamba2ForCausalLM(
        Mamba2Config(
            vocab_size=sizes.vocab,
            hidden_size=sizes.width,
            expand=2,
            num_heads=sizes.recurrent_heads,
            head_dim=2 * sizes.width // sizes.recurrent_heads,
            state_size=sizes.state,
            n_groups=1,
            chunk_size=sizes.chunk,
            num_hidden_layers=sizes.layers,
        )
    )


def _hybrid(sizes: Sizes) -> PreTrainedModel:
    return FalconH1ForCausalLM(
        FalconH1Config(
            **_with_attention(sizes),
            mamba_d_ssm=2 * sizes.width,
            mamba_n_heads=sizes.recurrent_heads,
            mamba_d_state=sizes.state,
            mamba_chunk_size=sizes.chunk,
        )
    )
