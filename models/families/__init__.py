"""The families that can be served: for each `architectures` name, its config mapping and its tensor names."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.config import ModelConfig
from models.errors import ModelError, UnsupportedModelError
from models.families import llama, mamba2


@dataclass(frozen=True, slots=True)
class Family:
    """How one architecture's published checkpoints map to ours.

    read_config: the parsed config.json -> ModelConfig. tensor_name: our parameter name -> the checkpoint's.
    """

    read_config: Callable[[Mapping[str, Any]], ModelConfig]
    tensor_name: Callable[[str], str]


FAMILIES: dict[str, Family] = {
    "LlamaForCausalLM": Family(llama.read_config, llama.tensor_name),
    "Mamba2ForCausalLM": Family(mamba2.read_config, mamba2.tensor_name),
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
    if not isinstance(architectures, list) or len(architectures) != 1:
        raise ModelError(f"{path}: `architectures` must name exactly one class, got {architectures!r}")
    try:
        return family_of(architectures[0]).read_config(raw)
    except KeyError as error:
        raise ModelError(f"{path}: field {error} is missing") from error
    except (TypeError, ValueError) as error:
        raise ModelError(f"{path}: {error}") from error
