"""Small checkpoints of random weights, with the embedded models' tokenizer: for what does not hang on what is said."""

import json
import shutil
from pathlib import Path

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
MAX_POSITIONS = 1 << 20


def write_random_model(kind: str, directory: Path) -> Path:
    """Write a checkpoint of about the embedded models' size; the hybrid has attention and Mamba-2 side by side.

    Sizes are such that every backend of attention takes them.
    """
    embedded = embedded_directory(PREFIX + "transformer")
    vocab_size = json.loads((embedded / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    torch.manual_seed(KINDS.index(kind))
    model = {"transformer": _transformer, "mamba": _mamba, "hybrid": _hybrid}[kind](vocab_size)
    for parameter in model.parameters():
        if parameter.dim() >= 2:
            # Wider than the default, so that the likeliest token is likeliest by far.
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    model.save_pretrained(directory)
    for path in embedded.glob("tokenizer*.json"):
        shutil.copy(path, directory)
    return directory


def _transformer(vocab_size: int) -> PreTrainedModel:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=256,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=MAX_POSITIONS,
        )
    )


def _mamba(vocab_size: int) -> PreTrainedModel:
    return Mamba2ForCausalLM(
        Mamba2Config(
            vocab_size=vocab_size,
            hidden_size=256,
            expand=2,
            num_heads=8,
            head_dim=64,
            state_size=64,
            n_groups=1,
            num_hidden_layers=4,
        )
    )


def _hybrid(vocab_size: int) -> PreTrainedModel:
    return FalconH1ForCausalLM(
        FalconH1Config(
            vocab_size=vocab_size,
            hidden_size=256,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=MAX_POSITIONS,
            mamba_d_ssm=512,
            mamba_n_heads=8,
            mamba_d_state=64,
        )
    )
