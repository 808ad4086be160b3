"""Which documents belong to a question, best first."""

from pathlib import Path

from evals.config import NO_RERANKER, ConfigError, RerankSettings
from evals.records import Document
from evals.retrieval.bm25 import Bm25
from evals.retrieval.cross_encoder import CrossEncoder
from evals.retrieval.dense import DEFAULT_MODEL, Dense
from evals.retrieval.index_files import IndexFiles
from evals.retrieval.model_files import find_model
from evals.retrieval.ranking import Fused, Retriever, Scorer, Shuffled
from evals.retrieval.rerank_endpoint import RerankEndpoint
from evals.retrieval.reranking import Reranker, Reranking

METHODS = ("bm25", "dense", "hybrid", "random")


def open_retriever(
    method: str,
    documents: tuple[Document, ...],
    *,
    model: str = DEFAULT_MODEL,
    seed: int = 0,
    cache: Path | None = None,
    rerank: RerankSettings | None = None,
) -> Retriever:
    """The retriever of that name; what takes long to build is read from the cache if it is there.

    Raises:
        ConfigError: there is no such method, or no such model.
    """
    if method not in METHODS:
        raise ConfigError(f"--retriever must be one of {', '.join(METHODS)}, got {method!r}")
    if not documents:
        raise ValueError("a retriever needs at least one document")
    return Retriever(documents, _scorer(method, documents, model, seed, cache), _reranking(rerank))


def _scorer(method: str, documents: tuple[Document, ...], model: str, seed: int, cache: Path | None) -> Scorer:
    if method == "random":
        return Shuffled(len(documents), seed)
    files = IndexFiles(cache, documents)
    if method == "bm25":
        return Bm25(documents, files)
    dense = Dense(documents, find_model("--retriever-model", model), files)
    return dense if method == "dense" else Fused([Bm25(documents, files), dense])


def _reranking(settings: RerankSettings | None) -> Reranking | None:
    if settings is None or settings.reranker == NO_RERANKER:
        return None
    reranker: Reranker
    if settings.is_endpoint:
        reranker = RerankEndpoint(settings.reranker, settings.model, settings.api_key)
    else:
        reranker = CrossEncoder(find_model("--reranker", settings.reranker))
    return Reranking(reranker, settings.depth)
