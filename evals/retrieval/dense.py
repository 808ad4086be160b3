"""Likeness of meaning: a sentence-transformers model's vectors of passages and question, by their cosine."""

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evals.config import MINILM
from evals.records import Document
from evals.retrieval.index_files import IndexFiles
from evals.retrieval.model_files import ModelFiles
from evals.retrieval.ranking import Scores, text_of

DEFAULT_MODEL = MINILM
VECTORS = "vectors.npy"
BATCH = 64
AT_ONCE = 4096  # passages whose texts and vectors are held beside the index


class Dense:
    """The vectors of one corpus, of length 1.

    What a passage has beyond the model's longest input does not count. A model that wants other words before a question
    than before a passage gets its own.
    """

    def __init__(self, documents: Sequence[Document], model: ModelFiles, files: IndexFiles) -> None:
        self.name = f"dense {model.name} title+text"
        self._model = model.load("SentenceTransformer")
        # One question at a time: each has all cores then, and the tokenizer is told one length to pad to.
        self._lock = threading.Lock()
        self._vectors = files.load_or_build(self.name, lambda: self._build(documents), _save, _load)

    def scores(self, question: str) -> Scores:
        with self._lock:
            [vector] = self._model.encode_query([question], **_settings())
        return np.asarray(self._vectors @ np.asarray(vector, np.float32), np.float32)

    def _build(self, documents: Sequence[Document]) -> NDArray[np.float32]:
        vectors = np.empty((0, 0), np.float32)
        for start in range(0, len(documents), AT_ONCE):
            texts = [text_of(document) for document in documents[start : start + AT_ONCE]]
            block = self._model.encode_document(texts, **_settings())
            if start == 0:
                vectors = np.empty((len(documents), block.shape[1]), np.float32)
            vectors[start : start + len(block)] = block
        return vectors


def _settings() -> dict[str, int | bool]:
    return {"batch_size": BATCH, "normalize_embeddings": True, "convert_to_numpy": True, "show_progress_bar": False}


def _save(vectors: NDArray[np.float32], directory: Path) -> None:
    np.save(directory / VECTORS, vectors)


def _load(directory: Path) -> NDArray[np.float32]:
    vectors: NDArray[np.float32] = np.load(directory / VECTORS, mmap_mode="r")
    return vectors
