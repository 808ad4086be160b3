"""From a checkpoint directory to a decoder that is ready for inference."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from models.config import ModelConfig
from models.decoder import Decoder
from models.errors import ModelError
from models.families import read_config
from models.families.fields import eos_token_ids
from models.weights import read_checkpoint


class _NoInitialValues(TorchFunctionMode):
    """Leaves parameters as they are allocated: a file fills them. On the meta device, what would fill them with random
    numbers makes torch import a good 150 MB of itself first.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def load_decoder(directory: Path, *, dtype: torch.dtype, device: torch.device) -> Decoder:
    """Read a checkpoint directory into a decoder, ready for inference.

    Raises:
        ModelError: its subclasses say what is wrong with the config or which tensor of which file is.
    """
    decoder = _lay_out(directory, read_config(directory))
    checkpoint = read_checkpoint(directory, decoder)
    if checkpoint.head_differs():
        decoder = _lay_out(directory, replace(decoder.config, tie_embeddings=False))
        checkpoint = read_checkpoint(directory, decoder)
    decoder = decoder.to(dtype).to_empty(device=device)
    checkpoint.fill(decoder)
    return decoder.eval().requires_grad_(False)


def _lay_out(directory: Path, config: ModelConfig) -> Decoder:
    """A decoder without memory. Raises: ModelError, for sizes whose product no tensor can have."""
    try:
        with torch.device("meta"), _NoInitialValues():
            return Decoder(config)
    except (RuntimeError, OverflowError) as error:
        raise ModelError(
            f"{directory / 'config.json'}: no model can have these sizes: {str(error).splitlines()[0]}"
        ) from error


def read_eos_token_ids(directory: Path, config: ModelConfig) -> tuple[int, ...]:
    """End-of-sequence ids: generation_config.json's where it names any, else config.json's.

    Raises:
        ModelError: the former cannot be read.
    """
    path = directory / "generation_config.json"
    if not path.exists():
        return config.eos_token_ids
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return eos_token_ids(content) or config.eos_token_ids
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"{path} cannot be used: {error}") from error
