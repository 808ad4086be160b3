"""What is kept on disk of a corpus' indexes, by the hash of its content; what is torn or foreign is made anew."""

import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from evals.records import Document

log = logging.getLogger(__name__)
VERSION = 2
Index = TypeVar("Index")


def default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fathom" / "indexes"


class IndexFiles:
    """Owns the directories of one corpus' indexes; without a place for them nothing is kept."""

    def __init__(self, directory: Path | None, documents: Sequence[Document]) -> None:
        self._directory = directory
        self._digest = "" if directory is None else digest_of(documents)

    def load_or_build(
        self, name: str, build: Callable[[], Index], save: Callable[[Index, Path], None], load: Callable[[Path], Index]
    ) -> Index:
        """The index from its directory, or built and put there; where it cannot be put it is built every time."""
        if self._directory is None:
            return build()
        key = hashlib.sha256(f"{VERSION} {name} {self._digest}".encode()).hexdigest()[:32]
        place = self._directory / key
        if place.is_dir():
            try:
                return load(place)
            except (OSError, ValueError, KeyError, EOFError) as error:
                log.warning("the index in %s cannot be read and is built anew: %s", place, error)
                shutil.rmtree(place, ignore_errors=True)
        index = build()
        self._put(index, place, save)
        return index

    def _put(self, index: Index, place: Path, save: Callable[[Index, Path], None]) -> None:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            draft = Path(tempfile.mkdtemp(dir=place.parent, prefix=".draft-"))
            try:
                save(index, draft)
                os.replace(draft, place)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
        except OSError as error:
            if not place.is_dir():  # else another run was faster
                log.warning("the index cannot be kept in %s: %s", place, error)


def digest_of(documents: Sequence[Document]) -> str:
    digest = hashlib.sha256()
    for document in documents:
        for part in (document.id, document.title, document.text):
            content = part.encode()
            digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()
