"""Writing an embedded checkpoint: weights, generation config, and a model card that tells how it came about."""

import json
import platform
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from models.decoder import Decoder
from models.families import family_of


def save_checkpoint(
    decoder: Decoder,
    directory: Path,
    *,
    run: dict[str, Any],
    curve: list[dict[str, float]],
    scores: dict[str, float],
    seconds: float,
) -> None:
    """Write the files beside the config and tokenizer that are already there; each is replaced in one move."""
    rename = family_of(decoder.config.architecture).layouts[0].tensor_name
    tensors = {rename(name): parameter.detach().cpu().contiguous() for name, parameter in decoder.named_parameters()}
    partial = directory / "model.safetensors.partial"
    save_file(tensors, partial, metadata={"format": "pt"})
    partial.replace(directory / "model.safetensors")
    generation = {"eos_token_id": list(decoder.config.eos_token_ids), "pad_token_id": 0}
    (directory / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")
    record = {
        "run": run,
        "seconds": round(seconds, 1),
        "hardware": _hardware(),
        "torch": torch.__version__,
        "scores": scores,
        "curve": curve,
    }
    (directory / "training.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _hardware() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU, {platform.machine()}, {torch.get_num_threads()} threads"
