"""Tiny random checkpoints of every kind: what they say does not matter, only that it is always the same."""

from pathlib import Path

from scripts.random_models import KINDS, Sizes, random_model

__all__ = ["KINDS", "MAX_POSITIONS", "VOCAB_SIZE", "write_tiny_model"]

VOCAB_SIZE = 97
MAX_POSITIONS = 4096


def write_tiny_model(kind: str, directory: Path) -> Path:
    """Write a checkpoint without a tokenizer; returns its directory."""
    sizes = Sizes(
        VOCAB_SIZE, width=32, inner=48, layers=2, positions=MAX_POSITIONS, recurrent_heads=4, state=8, chunk=16
    )
    random_model(kind, sizes).save_pretrained(directory)
    return directory
