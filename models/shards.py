"""The safetensors files of a checkpoint: which there are, what their headers say, and reading them piece by piece."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from models.errors import WeightsError
from models.weight_files import INDEX, SUFFIX, weight_names

# A file's pages stay resident while it is open: it is closed and opened again after so many bytes of it.
RESIDENT_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of one of its tensors; dtype as safetensors calls it (`BF16`)."""

    shape: tuple[int, ...]
    dtype: str


def shard_files(directory: Path) -> list[Path]:
    """The files that hold a checkpoint's weights.

    Raises:
        WeightsError: none there, the index cannot be read, or it names absent files.
    """
    names = weight_names(directory, {file.name for file in directory.glob("*")})
    index = directory / INDEX
    if not names and not index.exists():
        raise WeightsError(f"{directory} has no *{SUFFIX} file (other formats are not read)")
    files = [directory / name for name in names]
    absent = [str(name) for name, file in zip(names, files, strict=True) if not _is_inside(directory, file)]
    if absent or not files:
        raise WeightsError(f"{index} names files that are not there: {', '.join(absent) or 'none at all'}")
    return files


def _is_inside(directory: Path, file: Path) -> bool:
    try:
        return file.parent == directory and file.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


def read_headers(file: Path) -> dict[str, Header]:
    """Every tensor of a file, by name. Raises: WeightsError."""
    with _open(file) as shard:
        entries = ((name, shard.get_slice(name)) for name in shard.keys())  # noqa: SIM118 - the handle is no mapping
        return {name: Header(tuple(entry.get_shape()), str(entry.get_dtype())) for name, entry in entries}


def _open(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{file} cannot be read as safetensors: {error}") from error


class ShardReader:
    """Reads tensors of one file after the other, of which never much more than RESIDENT_BYTES are in memory."""

    def __init__(self) -> None:
        self._file: Path | None = None
        self._shard: Any = None
        self._resident = 0

    def read(self, file: Path, name: str, rows: slice | None = None) -> Tensor:
        """A tensor of a file, or those of its rows. It keeps the file's pages: let go of it before the next.

        Raises:
            WeightsError: the file cannot be read any more.
        """
        if file != self._file or self._resident > RESIDENT_BYTES:
            self._shard = None  # before it is opened again: it keeps the old pages
            self._file, self._shard, self._resident = file, _open(file), 0
        try:
            tensor: Tensor = self._shard.get_tensor(name) if rows is None else self._shard.get_slice(name)[rows]
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"{file} cannot be read as safetensors: {error}") from error
        self._resident += tensor.nbytes
        return tensor


def row_runs(num_rows: int, row_bytes: int) -> Iterator[slice]:
    """Runs of rows, of about RESIDENT_BYTES each, one after the other."""
    step = max(1, RESIDENT_BYTES // max(1, row_bytes))
    for start in range(0, num_rows, step):
        yield slice(start, min(start + step, num_rows))
