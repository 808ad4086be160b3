"""From safetensors files to a decoder's parameters: every tensor accounted for, none missing, extra or misshapen.

All headers are compared with the model before the first parameter is allocated, so that no file, whatever it claims,
makes a model in part or asks for memory that its own size does not warrant.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from models.config import ModelConfig
from models.decoder import Decoder
from models.errors import WeightsError
from models.families import family_of
from models.families.family import Family, Layout
from models.shards import Header, ShardReader, read_headers, row_runs, shard_files

DTYPES = ("F64", "F32", "F16", "BF16")
LARGEST_ELEMENT_BYTES = 8
HEAD = "head.weight"


@dataclass(slots=True)
class Target:
    """What one tensor of the checkpoint fills: a parameter, or the rows of several, one behind the other.

    parts: the parameters' names, each with the number of the expert whose matrix it is, or None. sizes: rows of each.
    dim: where they are counted, behind the experts where the tensor holds those of all. transposed: whether the file
    has the last two dimensions the other way round.
    """

    shape: list[int]
    dim: int
    transposed: bool
    parts: list[tuple[str, int | None]] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)

    @property
    def stored_shape(self) -> list[int]:
        """The shape in the file."""
        return [*self.shape[:-2], self.shape[-1], self.shape[-2]] if self.transposed else self.shape

    def runs(self, ordered: bool) -> Iterable[slice | None]:
        """Along the first dimension, as what is read at once; None for all, where rows are dealt out or reordered."""
        if self.dim == 0 and (ordered or len(self.parts) > 1):
            return (None,)
        return row_runs(self.shape[0], LARGEST_ELEMENT_BYTES * math.prod(self.shape[1:]))


def _targets(decoder: Decoder, layout: Layout) -> dict[str, Target]:
    """What each tensor fills that a checkpoint of this layout must have."""
    targets: dict[str, Target] = {}
    for parameter_name, parameter in decoder.named_parameters():
        name = layout.tensor_name(parameter_name)
        separate = "{expert}" in name
        experts: Iterable[int | None] = range(len(parameter)) if separate else (None,)
        dim = 1 if ".experts." in parameter_name and not separate else 0
        for expert in experts:
            shape = list(parameter.shape if expert is None else parameter.shape[1:])
            full_name = name if expert is None else name.format(expert=expert)
            empty = Target([*shape[:dim], 0, *shape[dim + 1 :]], dim, full_name.endswith(layout.transposed))
            target = targets.setdefault(full_name, empty)
            target.shape[dim] += shape[dim]
            target.parts.append((parameter_name, expert))
            target.sizes.append(shape[dim])
    return targets


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A decoder's weights in files whose headers fit it.

    files: where each tensor is. head: where a second copy of tied embeddings is, as file and name, if anywhere.
    """

    config: ModelConfig
    layout: Layout
    targets: dict[str, Target]
    files: dict[str, Path]
    head: tuple[Path, str] | None

    def fill(self, decoder: Decoder) -> None:
        """Copy every tensor into the parameters that it is for, in their dtype and on their device.

        Raises:
            WeightsError: a file cannot be read any more.
        """
        parameters = {name: parameter.data for name, parameter in decoder.named_parameters()}
        reader = ShardReader()
        for name, file in self.files.items():
            target = self.targets[name]
            order = self.layout.row_order(name, self.config)
            for run in target.runs(order is not None):
                _copy(reader.read(file, name, run), target, run, order, parameters)

    def head_differs(self) -> bool:
        """Whether the files hold a head of its own for embeddings that config.json calls tied.

        It says so of some models by mistake or by default, and the head that was trained is the one in the files.
        """
        if self.head is None:
            return False
        head_file, head = self.head
        name = self.layout.tensor_name("embedding.weight")
        target, readers = self.targets[name], (ShardReader(), ShardReader())
        for run in target.runs(False):
            embedded, own = readers[0].read(self.files[name], name, run), readers[1].read(head_file, head, run)
            if not torch.equal(embedded.float(), own.float()):
                return True
        return False


def _copy(
    tensor: Tensor, target: Target, run: slice | None, order: Sequence[int] | None, parameters: dict[str, Tensor]
) -> None:
    """Deal a run of a tensor's rows out to the parameters that it is for."""
    if target.transposed:
        tensor = tensor.transpose(-1, -2)
    if order is not None:
        tensor = tensor.index_select(target.dim, torch.tensor(order))
    for (part, expert), piece in zip(target.parts, tensor.split(_sizes(target, tensor), target.dim), strict=True):
        parameter = parameters[part] if expert is None else parameters[part][expert]
        (parameter if run is None else parameter[run]).copy_(piece)


def _sizes(target: Target, tensor: Tensor) -> list[int]:
    """Rows of each part in what was read, which of a single part may be a run."""
    return target.sizes if len(target.sizes) > 1 else [tensor.shape[target.dim]]


def read_checkpoint(directory: Path, decoder: Decoder) -> Checkpoint:
    """Compare all headers with a decoder, which may be on the meta device.

    Raises:
        WeightsError: which tensor of which file is missing, extra, there twice or of the wrong shape or dtype, or
            which file cannot be read.
    """
    config = decoder.config
    family = family_of(config.architecture)
    headers = {file: read_headers(file) for file in shard_files(directory)}
    layout, targets = _best_layout(decoder, family, headers)
    # Checkpoints with tied embeddings may hold the head as a second copy.
    heads = {layout.tensor_name(HEAD) for layout in family.layouts} if config.tie_embeddings else set()
    files: dict[str, Path] = {}
    head: tuple[Path, str] | None = None
    for file, tensors in headers.items():
        for name, header in tensors.items():
            if name.startswith(family.ignored):
                continue
            if name in heads:
                head = (file, name)
                _check(file, name, header, targets[layout.tensor_name("embedding.weight")])
                continue
            if name not in targets:
                raise WeightsError(f"{file}: tensor {name!r} belongs to no parameter of the model")
            _check(file, name, header, targets[name])
            if name in files:
                raise WeightsError(f"{file}: tensor {name!r} is in {files[name].name} too")
            files[name] = file
    missing = sorted(set(targets) - set(files))
    if missing:
        raise WeightsError(f"{directory}: tensors are missing: {', '.join(missing[:5])} ({len(missing)} in all)")
    return Checkpoint(config, layout, targets, files, head)


def _best_layout(
    decoder: Decoder, family: Family, headers: dict[Path, dict[str, Header]]
) -> tuple[Layout, dict[str, Target]]:
    """The layout, and what its tensors fill, of which most tensors are there by name and shape."""
    shapes = {name: list(header.shape) for tensors in headers.values() for name, header in tensors.items()}

    def num_fitting(targets: dict[str, Target]) -> int:
        return sum(shapes.get(name) == target.stored_shape for name, target in targets.items())

    candidates = [(layout, _targets(decoder, layout)) for layout in family.layouts]
    return max(candidates, key=lambda candidate: num_fitting(candidate[1]))


def _check(file: Path, name: str, header: Header, target: Target) -> None:
    """Raises: WeightsError."""
    if list(header.shape) != target.stored_shape:
        raise WeightsError(f"{file}: tensor {name!r} has shape {list(header.shape)}, not {target.stored_shape}")
    if header.dtype not in DTYPES:
        raise WeightsError(f"{file}: tensor {name!r} has dtype {header.dtype}; supported: {', '.join(DTYPES)}")
