"""Tiny random checkpoints of every kind: what they say does not matter, only that it is always the same."""

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

VOCAB_SIZE = 97
MAX_POSITIONS = 4096
KINDS = ("transformer", "mamba", "hybrid")


def write_tiny_model(kind: str, directory: Path) -> Path:
    """Write a checkpoint without a tokenizer; returns its directory."""
    torch.manual_seed(KINDS.index(kind))
    model = {"transformer": _transformer, "mamba": _mamba, "hybrid": _hybrid}[kind]()
    for parameter in model.parameters():
        if parameter.dim() >= 2:
            # Wider than the default, so that the likeliest token is likeliest by far and hangs on the context.
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    model.save_pretrained(directory)
    return directory


def _transformer() -> PreTrainedModel:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=MAX_POSITIONS,
        )
    )


def _mamba() -> PreTrainedModel:
    return Mamba2ForCausalLM(
        Mamba2Config(
            vocab_size=VOCAB_SIZE,
            hidden_size=32,
            expand=2,
            num_heads=4,
            head_dim=16,
            state_size=8,
            n_groups=1,
            chunk_size=16,
            num_hidden_layers=2,
        )
    )


def _hybrid() -> PreTrainedModel:
    return FalconH1ForCausalLM(
        FalconH1Config(
            vocab_size=VOCAB_SIZE,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=MAX_POSITIONS,
            mamba_d_ssm=64,
            mamba_n_heads=4,
            mamba_d_state=8,
            mamba_chunk_size=16,
        )
    )
