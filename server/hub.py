"""Checkpoints of the Hugging Face Hub, by its own client: which files are fetched, and what is said where that fails.

The client's environment variables hold: HF_ENDPOINT, HF_TOKEN, HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE and the like.
Files that are in the cache are not fetched again.
"""

import contextlib
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import httpx2
import psutil
from huggingface_hub import HfApi, constants, get_token, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from models.weight_files import INDEX, SUFFIX, weight_names
from server.config import ConfigError

# Of a repository's top folder. Code is never fetched, nor are pickles, which can hold code.
SMALL_FILES = (".json", ".model", ".tiktoken", ".jinja")
OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".ckpt", ".onnx")
PART = ".incomplete"  # the end of the client's names for files that are on their way
PROGRESS_EVERY_S = 10.0
EXIT_SIGNAL = 128  # shells add a signal's number to it
GB = 1e9
# Whatever the client raises where it cannot give a file: its own errors are HTTPError, OSError or ValueError; what is
# behind it for large files says no more than RuntimeError.
TROUBLE = (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError, RuntimeError)

log = logging.getLogger("fathom.hub")


@dataclass(frozen=True, slots=True)
class HubModel:
    """A repository at a branch, tag or commit."""

    repository: str
    revision: str

    def __str__(self) -> str:
        return f"{self.repository}@{self.revision}"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A repository's files in the cache: the small ones, and where its weights are to lie.

    weights: their file names. sizes: bytes of every file in the repository; None where the Hub was not reached.
    """

    model: HubModel
    directory: Path
    weights: tuple[str, ...]
    sizes: Mapping[str, int] | None

    @property
    def absent(self) -> list[str]:
        """The weights that are not in the cache yet."""
        return [name for name in self.weights if not (self.directory / name).is_file()]


def parse_hub_model(text: str, revision: str | None) -> HubModel | None:
    """What ORG/NAME or ORG/NAME@REVISION means; None for a text of another form.

    Args:
        revision: for the former; None for the branch `main`.
    Raises:
        ConfigError: the revision is empty.
    """
    match = re.fullmatch(r"([A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*)(@.*)?", text, re.ASCII)
    if match is None:
        return None
    if match[2] == "@":
        raise ConfigError("the revision after '@' is empty")
    return HubModel(match[1], match[2][1:] if match[2] else revision or constants.DEFAULT_REVISION)


def open_snapshot(model: HubModel) -> Snapshot:
    """Fetch a repository's small files, and find out which its weights are. Without the Hub the cache must have both.

    Raises:
        ConfigError: the repository, the revision or safetensors are not there, the Hub or a file cannot be reached.
        WeightsError: the index of its weights cannot be read.
    """
    try:
        # The client would wait for ever; a firewall may let nothing through and say nothing.
        timeout_s = constants.HF_HUB_ETAG_TIMEOUT
        info = HfApi().model_info(model.repository, revision=model.revision, files_metadata=True, timeout=timeout_s)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or () if "/" not in file.rfilename}
    except TROUBLE as error:
        return _cached_snapshot(model, error)
    if not any(name.endswith(SUFFIX) for name in sizes):
        others = [name for name in sizes if name.endswith(OTHER_WEIGHTS)]
        raise ConfigError(
            f"{model} at {constants.ENDPOINT} has no *{SUFFIX} file; other formats are not read"
            + (f" ({', '.join(others[:3])})" if others else "")
        )
    directory = _download(model, [name for name in sizes if name.endswith(SMALL_FILES)], model.revision)
    return Snapshot(model, directory, tuple(weight_names(directory, sizes)), sizes)


def fetch_weights(snapshot: Snapshot) -> None:
    """Fetch those of a snapshot's weights that are not in the cache.

    Raises:
        ConfigError: they cannot be fetched.
    """
    model, absent = snapshot.model, snapshot.absent
    if absent and snapshot.sizes is None:
        raise ConfigError(
            f"the Hub is not reached, and {model} is only in part in the cache {constants.HF_HUB_CACHE}: "
            f"{', '.join(absent[:3])} ({len(absent)} in all) is missing"
        )
    if absent and snapshot.sizes is not None:
        size = sum(snapshot.sizes.get(name, 0) for name in absent)
        place = f"from {constants.ENDPOINT} into {constants.HF_HUB_CACHE}"
        log.info("%s: downloading %d files of weights, %.2f GB, %s", model, len(absent), size / GB, place)
        with _progress(snapshot, size), _ended_by_signals():
            # The very commit of the small files, should the branch have moved on.
            _download(model, absent, snapshot.directory.name)
        if snapshot.absent:
            raise ConfigError(
                f"{snapshot.directory / INDEX} names files that {model} does not have: {snapshot.absent[0]}"
            )
    log.info("%s: commit %s", model, snapshot.directory.name)


def _download(model: HubModel, names: Sequence[str], revision: str) -> Path:
    """Files of a repository, in the cache's folder of their commit.

    Raises:
        ConfigError
    """
    try:
        return Path(snapshot_download(model.repository, revision=revision, allow_patterns=list(names)))
    except TROUBLE as error:
        raise ConfigError(_explain(model, error)) from error


def _cached_snapshot(model: HubModel, error: Exception) -> Snapshot:
    """What the cache has where the Hub gave an error instead.

    Raises:
        ConfigError: it has nothing, or the Hub knows better: there is no such revision.
    """
    if isinstance(error, RevisionNotFoundError | HFValidationError):
        raise ConfigError(_explain(model, error)) from error
    config = try_to_load_from_cache(model.repository, "config.json", revision=model.revision)
    if not isinstance(config, str):
        raise ConfigError(_explain(model, error)) from error
    if not isinstance(error, OfflineModeIsEnabled):
        log.warning("%s: the cache is used, for %s", model, _explain(model, error))
    directory = Path(config).parent
    weights = weight_names(directory, [file.name for file in directory.iterdir()])
    return Snapshot(model, directory, tuple(weights), None)


def _explain(model: HubModel, error: Exception) -> str:
    """What went wrong, what was looked for, and where."""
    endpoint, cache = constants.ENDPOINT, constants.HF_HUB_CACHE
    token = "the token that is set does not open it" if _has_token() else "HF_TOKEN is not set"
    match error:
        case HFValidationError():
            return f"no repository of the Hub can be named {model.repository!r}: {_first_line(error)}"
        case GatedRepoError():
            return (
                f"{model.repository} is gated: its terms must be accepted at {endpoint}/{model.repository}, "
                f"and HF_TOKEN be a token of that account ({token})"
            )
        case RevisionNotFoundError():
            return f"{model.repository} at {endpoint} has no branch, tag or commit {model.revision!r}"
        case RepositoryNotFoundError():
            return f"there is no repository {model.repository} at {endpoint}, or it is private ({token})"
        case OfflineModeIsEnabled():
            return f"HF_HUB_OFFLINE is set, and {model} is not in the cache {cache}"
    reason = f"{type(error).__name__}: {_first_line(error)}"
    return f"{model} cannot be fetched from {endpoint} into the cache {cache}: {reason}"


def _has_token() -> bool:
    try:
        return bool(get_token())
    except OSError:  # it may lie where nothing can be read, which is the fault to tell of
        return False


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no more is known")


@contextlib.contextmanager
def _progress(snapshot: Snapshot, size: int) -> Iterator[None]:
    """Where no terminal shows the client's own bars: a line of the log now and then, with the bytes that came."""
    blobs = snapshot.directory.parents[1] / "blobs"
    before, done = _bytes_in(blobs), threading.Event()

    def tell() -> None:
        while not done.wait(PROGRESS_EVERY_S):
            log.info("%s: %.2f of %.2f GB", snapshot.model, (_bytes_in(blobs) - before) / GB, size / GB)

    if not sys.stderr.isatty():
        threading.Thread(target=tell, daemon=True).start()
    try:
        yield
    finally:
        done.set()


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """A signal ends the process at once: the client would first finish all files that it has begun, and after that
    does not go on with parts of files. Those that this process has begun are removed.
    """

    def end(number: int, _: FrameType | None) -> None:
        for file in psutil.Process().open_files():
            if file.path.endswith(PART):
                Path(file.path).unlink(missing_ok=True)
        os._exit(EXIT_SIGNAL + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _bytes_in(folder: Path) -> int:
    total = 0
    for file in folder.glob("*"):
        with contextlib.suppress(OSError):  # it is renamed once it is whole
            total += file.stat().st_size
    return total
