"""BM25 over title and text."""

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from evals.records import Document
from evals.retrieval.index_files import IndexFiles
from evals.retrieval.postings import build_postings
from evals.retrieval.ranking import Scores, text_of

K1, B = 1.2, 0.75
STOPWORDS = "en"
NUMBA = "numba"


def _import_bm25s() -> ModuleType:
    """Without numba, which it imports where that is installed: 57 MiB for a part of it that nothing here calls."""
    if NUMBA in sys.modules:
        return importlib.import_module("bm25s")
    sys.modules[NUMBA] = None  # type: ignore[assignment]  # so that importing it fails
    try:
        return importlib.import_module("bm25s")
    finally:
        del sys.modules[NUMBA]


bm25s = _import_bm25s()


class Bm25:
    """An index over one corpus. Documents that share no word with the question have a score of 0.

    Source: bm25s' "lucene" variant, arXiv:2407.03618.
    """

    name = f"bm25s lucene k1={K1} b={B} title+text"

    def __init__(self, documents: Sequence[Document], files: IndexFiles) -> None:
        self._num_documents = len(documents)
        self._index = files.load_or_build(self.name, lambda: _build(documents), _save, _load)

    def scores(self, question: str) -> Scores:
        [words] = bm25s.tokenize([question], stopwords=STOPWORDS, return_ids=False, show_progress=False)
        known = [word for word in words if word in self._index.vocab_dict]
        if not known:
            return np.zeros(self._num_documents, np.float32)
        return np.asarray(self._index.get_scores(known), np.float32)


def _build(documents: Sequence[Document]) -> Any:
    """One text after the other: a second list of them, or of their words, would take as much as the passages."""
    tokenizer = bm25s.tokenization.Tokenizer(stopwords=STOPWORDS)
    postings = build_postings(tokenizer.streaming_tokenize(map(text_of, documents)), k1=K1, b=B)
    index = bm25s.BM25(k1=K1, b=B, method="lucene")
    index.scores = {
        "data": postings.scores,
        "indices": postings.documents,
        "indptr": postings.starts,
        "num_docs": len(documents),
    }
    index.vocab_dict = tokenizer.get_vocab_dict()
    index.nonoccurrence_array = None
    return index


def _save(index: Any, directory: Path) -> None:
    index.save(str(directory), show_progress=False)


def _load(directory: Path) -> Any:
    return bm25s.BM25.load(str(directory), mmap=True)
