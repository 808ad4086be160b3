"""Which documents belong to a question, best first."""

from pathlib import Path

from evals.config import ConfigError
from evals.records import Document
from evals.retrieval.bm25 import Bm25
from evals.retrieval.dense import DEFAULT_MODEL, Dense
from evals.retrieval.index_files import IndexFiles
from evals.retrieval.ranking import Fused, Retriever, Shuffled

METHODS = ("bm25", "dense", "hybrid", "random")


def open_retriever(
    method: str,
    documents: tuple[Document, ...],
    *,
    model: str = DEFAULT_MODEL,
    seed: int = 0,
    cache: Path | None = None,
) -> Retriever:
    """The retriever of that name; what takes long to build is read from the cache if it is there.

    Raises:
        ConfigError: there is no such method, or no such model.
    """
    if method not in METHODS:
        raise ConfigError(f"--retriever must be one of {', '.join(METHODS)}, got {method!r}")
    if not documents:
        raise ValueError("a retriever needs at least one document")
    if method == "random":
        return Retriever(documents, Shuffled(len(documents), seed))
    files = IndexFiles(cache, documents)
    if method == "bm25":
        return Retriever(documents, Bm25(documents, files))
    dense = Dense(documents, model, files)
    return Retriever(documents, dense if method == "dense" else Fused([Bm25(documents, files), dense]))
