"""From safetensors files to a decoder's parameters: every tensor accounted for, none missing, extra or misshapen.

All headers are compared with the model before the first parameter is allocated, so that no file, whatever it claims,
makes a model in part or asks for memory that its own size does not warrant.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from models.config import ModelConfig
from models.decoder import Decoder
from models.errors import WeightsError
from models.families import Family, family_of

INDEX = "model.safetensors.index.json"
DTYPES = ("F64", "F32", "F16", "BF16")
# A file's pages stay resident while it is open: it is closed and opened again after so many bytes of it.
RESIDENT_BYTES = 64 << 20


def shard_files(directory: Path) -> list[Path]:
    """The checkpoint's safetensors files, by its index where there is one.

    Raises:
        WeightsError: none there, the index cannot be read, or it names absent files.
    """
    index = directory / INDEX
    if not index.exists():
        files = sorted(directory.glob("*.safetensors"))
        if not files:
            raise WeightsError(f"{directory} has no *.safetensors file (other formats are not read)")
        return files
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        files = [directory / name for name in names]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{index} is not a shard index: {error!r}") from error
    absent = [str(name) for name, file in zip(names, files, strict=True) if not _is_inside(directory, file)]
    if absent or not files:
        raise WeightsError(f"{index} names files that are not there: {', '.join(absent) or 'none at all'}")
    return files


def _is_inside(directory: Path, file: Path) -> bool:
    try:
        return file.parent == directory and file.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


@dataclass(slots=True)
class Target:
    """What one tensor of the checkpoint fills: a parameter, or the rows of several, one behind the other.

    parts: the parameters' names, each with the number of the expert whose matrix it is, or None. sizes: rows of each.
    dim: where they are counted, the last but one dimension.
    """

    shape: list[int]
    dim: int
    parts: list[tuple[str, int | None]] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)


def _targets(decoder: Decoder, family: Family) -> dict[str, Target]:
    """What each tensor that the checkpoint must have fills."""
    targets: dict[str, Target] = {}
    for parameter_name, parameter in decoder.named_parameters():
        name = family.tensor_name(parameter_name)
        experts: Iterable[int | None] = range(len(parameter)) if "{expert}" in name else (None,)
        for expert in experts:
            shape = list(parameter.shape if expert is None else parameter.shape[1:])
            full_name = name if expert is None else name.format(expert=expert)
            dim = max(0, len(shape) - 2)
            target = targets.setdefault(full_name, Target([*shape[:dim], 0, *shape[dim + 1 :]], dim))
            target.shape[dim] += shape[dim]
            target.parts.append((parameter_name, expert))
            target.sizes.append(shape[dim])
    return targets


def _open(file: Path) -> Any:
    """The file as safetensors. Raises: WeightsError."""
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{file} cannot be read as safetensors: {error}") from error


def _tensor_names(file: Path, targets: dict[str, Target], optional: tuple[str, ...]) -> Iterator[str]:
    """Those of a file's tensors that are wanted; all are what the model asks for, by the file's header.

    Args:
        optional: how the names of tensors begin that are passed over.
    """
    with _open(file) as shard:
        for name in shard.keys():  # noqa: SIM118 - the handle is not a mapping
            if name.startswith(optional):
                continue
            if name not in targets:
                raise WeightsError(f"{file}: tensor {name!r} belongs to no parameter of the model")
            entry = shard.get_slice(name)
            if entry.get_shape() != targets[name].shape:
                raise WeightsError(f"{file}: tensor {name!r} has shape {entry.get_shape()}, not {targets[name].shape}")
            if entry.get_dtype() not in DTYPES:
                raise WeightsError(
                    f"{file}: tensor {name!r} has dtype {entry.get_dtype()}; supported: {', '.join(DTYPES)}"
                )
            yield name


def _tensors(file: Path, names: list[str]) -> Iterator[tuple[str, Tensor]]:
    """Tensors of a file, of which never much more than RESIDENT_BYTES are in memory."""
    shard, resident = None, 0
    for name in names:
        if shard is None or resident > RESIDENT_BYTES:
            shard, resident = _open(file), 0
        try:
            tensor = shard.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"{file} cannot be read as safetensors: {error}") from error
        resident += tensor.nbytes
        yield name, tensor
        del tensor  # before the file is opened again: it keeps the old pages


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A decoder's weights in files whose headers fit it."""

    family: Family
    config: ModelConfig
    targets: dict[str, Target]
    names: dict[Path, list[str]]

    def fill(self, decoder: Decoder) -> None:
        """Copy every tensor into the parameters that it is for, in their dtype and on their device.

        Raises:
            WeightsError: a file cannot be read any more.
        """
        parameters = {name: parameter.data for name, parameter in decoder.named_parameters()}
        for file, names in self.names.items():
            for name, tensor in _tensors(file, names):
                target = self.targets[name]
                order = self.family.row_order(name, self.config)
                rows = tensor if order is None else tensor[torch.tensor(order)]
                for (part, expert), piece in zip(target.parts, rows.split(target.sizes, target.dim), strict=True):
                    parameter = parameters[part] if expert is None else parameters[part][expert]
                    parameter.copy_(piece)


def read_checkpoint(directory: Path, decoder: Decoder) -> Checkpoint:
    """Compare all headers with a decoder, which may be on the meta device.

    Raises:
        WeightsError: which tensor of which file is missing, extra, there twice or of the wrong shape or dtype, or
            which file cannot be read.
    """
    config = decoder.config
    family = family_of(config.architecture)
    targets = _targets(decoder, family)
    # Checkpoints with tied embeddings may hold the head as a second copy.
    optional = (*family.ignored, family.tensor_name("head.weight")) if config.tie_embeddings else family.ignored
    names: dict[Path, list[str]] = {}
    seen: dict[str, Path] = {}
    for file in shard_files(directory):
        names[file] = list(_tensor_names(file, targets, optional))
        for name in names[file]:
            if name in seen:
                raise WeightsError(f"{file}: tensor {name!r} is in {seen[name].name} too")
            seen[name] = file
    missing = sorted(set(targets) - set(seen))
    if missing:
        raise WeightsError(f"{directory}: tensors are missing: {', '.join(missing[:5])} ({len(missing)} in all)")
    return Checkpoint(family, config, targets, names)
