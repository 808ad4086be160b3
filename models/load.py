"""From a checkpoint directory to a decoder: every tensor accounted for, none missing, extra or misshapen."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from models.config import ModelConfig
from models.decoder import Decoder
from models.errors import ModelError, WeightsError
from models.families import family_of, read_config


def shard_files(directory: Path) -> list[Path]:
    """The checkpoint's safetensors files, by its index where there is one.

    Raises:
        WeightsError: none there, the index cannot be read, or it names absent files.
    """
    index = directory / "model.safetensors.index.json"
    if not index.exists():
        files = sorted(directory.glob("*.safetensors"))
        if not files:
            raise WeightsError(f"{directory} has no *.safetensors file (other formats are not read)")
        return files
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{index} is not a shard index: {error!r}") from error
    files = [directory / name for name in names]
    absent = [file.name for file in files if file.parent != directory or not file.is_file()]
    if absent:
        raise WeightsError(f"{index} names files that are not there: {', '.join(absent)}")
    return files


def _tensors(files: list[Path]) -> Iterator[tuple[str, Path, Tensor]]:
    for file in files:
        try:
            with safe_open(file, framework="pt") as shard:
                for name in shard.keys():  # noqa: SIM118 - the handle is not a mapping
                    yield name, file, shard.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"{file} cannot be read as safetensors: {error}") from error


def _named_parts(name: str, parameter: Tensor) -> Iterable[tuple[str, Tensor]]:
    """A parameter under its name in the checkpoint, or its rows where each expert has a tensor of its own."""
    if "{expert}" not in name:
        return [(name, parameter)]
    return [(name.format(expert=expert), rows) for expert, rows in enumerate(parameter)]


def _fill(decoder: Decoder, config: ModelConfig, files: list[Path]) -> None:
    """Copy every tensor of the files into its parameter, or its rows into the several that share it."""
    family = family_of(config.architecture)
    rename = family.tensor_name
    wanted: dict[str, list[Tensor]] = {}
    for parameter_name, parameter in decoder.named_parameters():
        for name, part in _named_parts(rename(parameter_name), parameter.data):
            wanted.setdefault(name, []).append(part)
    # Checkpoints with tied embeddings may hold the head as a second copy.
    optional = {rename("head.weight")} if config.tie_embeddings else set()
    seen: set[str] = set()
    for name, file, tensor in _tensors(files):
        if name in optional or name.startswith(family.ignored):
            continue
        if name not in wanted:
            raise WeightsError(f"{file}: tensor {name!r} belongs to no parameter of {config.architecture}")
        first = wanted[name][0]
        # Rows are shared; of matrices that lie one behind the other, the rows of each.
        dim = max(0, first.dim() - 2)
        sizes = [target.shape[dim] for target in wanted[name]]
        shape = [*first.shape[:dim], sum(sizes), *first.shape[dim + 1 :]]
        if list(tensor.shape) != shape:
            raise WeightsError(f"{file}: tensor {name!r} has shape {list(tensor.shape)}, not {shape}")
        order = family.row_order(name, config)
        if order is not None:
            tensor = tensor[torch.tensor(order)]
        for target, rows in zip(wanted[name], tensor.split(sizes, dim), strict=True):
            target.copy_(rows)
        seen.add(name)
    missing = sorted(set(wanted) - seen)
    if missing:
        raise WeightsError(f"{files[0].parent}: tensors are missing: {', '.join(missing[:5])} ({len(missing)} in all)")


def load_decoder(directory: Path, *, dtype: torch.dtype, device: torch.device) -> Decoder:
    """Read a checkpoint directory into a decoder, ready for inference.

    Raises:
        ModelError: its subclasses say what is wrong with the config or which tensor of which file is.
    """
    config = read_config(directory)
    files = shard_files(directory)
    with torch.device("meta"):
        decoder = Decoder(config)
    decoder = decoder.to(dtype).to_empty(device=device)
    _fill(decoder, config, files)
    return decoder.eval().requires_grad_(False)


def read_eos_token_ids(directory: Path, config: ModelConfig) -> tuple[int, ...]:
    """End-of-sequence ids: generation_config.json's where it names any, else config.json's."""
    path = directory / "generation_config.json"
    if not path.exists():
        return config.eos_token_ids
    try:
        value = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"{path} cannot be read as a JSON object: {error}") from error
    if value is None:
        return config.eos_token_ids
    return tuple(int(token) for token in value) if isinstance(value, list) else (int(value),)
