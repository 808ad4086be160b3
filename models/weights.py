"""From safetensors files to a decoder's parameters: every tensor accounted for, none missing, extra or misshapen.

All headers are compared with the model before the first parameter is allocated, so that no file, whatever it claims,
makes a model in part or asks for memory that its own size does not warrant.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from models import mxfp4
from models.config import ModelConfig
from models.decoder import Decoder
from models.errors import WeightsError
from models.families import family_of
from models.families.family import Family, Layout
from models.shards import Header, ShardReader, read_headers, row_runs, shard_files

DTYPES = ("F64", "F32", "F16", "BF16")
LARGEST_ELEMENT_BYTES = 8
HEAD, EMBEDDING = "head.weight", "embedding.weight"


@dataclass(frozen=True, slots=True)
class Stored:
    """What a file must say of a tensor."""

    shape: list[int]
    dtypes: tuple[str, ...] = DTYPES


@dataclass(slots=True)
class Target:
    """What one tensor of the checkpoint fills: a parameter, or the rows of several, one behind the other.

    parts: the parameters' names, each with the number of the expert whose matrix it is, or None. sizes: rows of each.
    dim: where they are counted, behind the experts where the tensor holds those of all. form: how it lies in the files.
    """

    shape: list[int]
    dim: int
    form: Literal["plain", "transposed", "packed"]
    parts: list[tuple[str, int | None]] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)

    def stored(self, name: str) -> dict[str, Stored]:
        """What the files hold of the tensor of that name."""
        if self.form == "packed":
            blocks = [*self.shape[:-1], -(-self.shape[-1] // mxfp4.BLOCK)]
            return {
                f"{name}_blocks": Stored([*blocks, mxfp4.BYTES_PER_BLOCK], ("U8",)),
                f"{name}_scales": Stored(blocks, ("U8",)),
            }
        if self.form == "transposed":
            return {name: Stored([*self.shape[:-2], self.shape[-1], self.shape[-2]])}
        return {name: Stored(self.shape)}

    def runs(self, ordered: bool) -> Iterable[slice | None]:
        """Along the first dimension, as what is read at once; None for all, where rows are dealt out or reordered."""
        if self.dim == 0 and (ordered or len(self.parts) > 1 or self.form != "plain"):
            return (None,)
        return row_runs(self.shape[0], LARGEST_ELEMENT_BYTES * math.prod(self.shape[1:]))


def _form(name: str, layout: Layout) -> Literal["plain", "transposed", "packed"]:
    if name.endswith(layout.packed):
        return "packed"
    return "transposed" if name.endswith(layout.transposed) else "plain"


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
            empty = Target([*shape[:dim], 0, *shape[dim + 1 :]], dim, _form(full_name, layout))
            target = targets.setdefault(full_name, empty)
            target.shape[dim] += shape[dim]
            target.parts.append((parameter_name, expert))
            target.sizes.append(shape[dim])
    return targets


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A decoder's weights in files whose headers fit it.

    files: where each stored tensor is. head: where a second copy of tied embeddings is, as file and name, if anywhere.
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
        readers = (ShardReader(), ShardReader())
        begins = {next(iter(target.stored(name))): name for name, target in self.targets.items()}
        # In the files' own order, so that each is opened once.
        for name in (begins[stored] for stored in self.files if stored in begins):
            target = self.targets[name]
            order = self.layout.row_order(name, self.config)
            device = parameters[target.parts[0][0]].device
            for run in target.runs(order is not None):
                _copy(self._read(readers, name, run, device), target, run, order, parameters)

    def _read(
        self, readers: tuple[ShardReader, ShardReader], name: str, run: slice | None, device: torch.device
    ) -> Tensor:
        """A run of a tensor's rows, as the decoder has them; a packed one is unpacked on the decoder's device."""
        target = self.targets[name]
        stored = [
            reader.read(self.files[part], part, run) for reader, part in zip(readers, target.stored(name), strict=False)
        ]
        if target.form == "packed":
            blocks, scales = (part.to(device) for part in stored)
            return mxfp4.unpack(blocks, scales)[..., : target.shape[-1]]
        return stored[0].transpose(-1, -2) if target.form == "transposed" else stored[0]

    def head_differs(self) -> bool:
        """Whether the files hold a head of its own for embeddings that config.json calls tied.

        It says so of some models by mistake or by default, and the head that was trained is the one in the files.
        """
        if self.head is None:
            return False
        head_file, head = self.head
        name = self.layout.tensor_name(EMBEDDING)
        readers = (ShardReader(), ShardReader())
        for run in self.targets[name].runs(False):
            embedded, own = readers[0].read(self.files[name], name, run), readers[1].read(head_file, head, run)
            if not torch.equal(embedded.float(), own.float()):
                return True
        return False


def _copy(
    tensor: Tensor, target: Target, run: slice | None, order: Sequence[int] | None, parameters: dict[str, Tensor]
) -> None:
    """Deal a run of a tensor's rows out to the parameters that it is for."""
    if order is not None:
        tensor = tensor.index_select(target.dim, torch.tensor(order, device=tensor.device))
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
    wanted = _stored(targets)
    # Checkpoints with tied embeddings may hold the head as a second copy.
    heads = {layout.tensor_name(HEAD) for layout in family.layouts} if config.tie_embeddings else set()
    wanted |= dict.fromkeys(heads, wanted[layout.tensor_name(EMBEDDING)])
    files: dict[str, Path] = {}
    for file, tensors in headers.items():
        for name, header in tensors.items():
            if name.startswith(family.ignored):
                continue
            _check(file, name, header, wanted.get(name))
            if name in files:
                raise WeightsError(f"{file}: tensor {name!r} is in {files[name].name} too")
            files[name] = file
    missing = sorted(set(wanted) - heads - set(files))
    if missing:
        raise WeightsError(f"{directory}: tensors are missing: {', '.join(missing[:5])} ({len(missing)} in all)")
    return Checkpoint(config, layout, targets, files, next(((files[head], head) for head in heads & set(files)), None))


def _stored(targets: dict[str, Target]) -> dict[str, Stored]:
    return {stored: what for name, target in targets.items() for stored, what in target.stored(name).items()}


def _best_layout(
    decoder: Decoder, family: Family, headers: dict[Path, dict[str, Header]]
) -> tuple[Layout, dict[str, Target]]:
    """The layout, and what its tensors fill, of which most tensors are there by name and shape."""
    shapes = {name: list(header.shape) for tensors in headers.values() for name, header in tensors.items()}

    def num_fitting(targets: dict[str, Target]) -> int:
        return sum(shapes.get(name) == stored.shape for name, stored in _stored(targets).items())

    candidates = [(layout, _targets(decoder, layout)) for layout in family.layouts]
    return max(candidates, key=lambda candidate: num_fitting(candidate[1]))


def _check(file: Path, name: str, header: Header, stored: Stored | None) -> None:
    """Raises: WeightsError."""
    if stored is None:
        raise WeightsError(f"{file}: tensor {name!r} belongs to no parameter of the model")
    if list(header.shape) != stored.shape:
        raise WeightsError(f"{file}: tensor {name!r} has shape {list(header.shape)}, not {stored.shape}")
    if header.dtype not in stored.dtypes:
        raise WeightsError(f"{file}: tensor {name!r} has dtype {header.dtype}; supported: {', '.join(stored.dtypes)}")
