"""A reranker that reads question and passage together: a cross-encoder of sentence-transformers."""

import json
import threading
from collections.abc import Sequence

import numpy as np

from evals.config import ConfigError
from evals.records import Document
from evals.retrieval.model_files import ModelFiles
from evals.retrieval.ranking import text_of

BATCH = 32
HEADS = ("ForSequenceClassification", "ForCausalLM")


class CrossEncoder:
    """Owns the model.

    Raises:
        ConfigError: the model cannot be loaded, or gives no one score to a pair.
    """

    def __init__(self, model: ModelFiles) -> None:
        self.name = f"cross-encoder {model.name}"
        _check_head(model)
        self._model = model.load("CrossEncoder")
        if (num_scores := self._model.num_labels) != 1:
            raise ConfigError(f"{model.option} {model.directory} gives {num_scores} scores to a pair, not 1")
        self._lock = threading.Lock()  # see dense.py

    def scores(self, question: str, documents: Sequence[Document]) -> list[float]:
        pairs = [(question, text_of(document)) for document in documents]
        with self._lock:
            scores = self._model.predict(pairs, batch_size=BATCH, show_progress_bar=False)
        found: list[float] = np.asarray(scores, np.float64).tolist()
        return found


def _check_head(model: ModelFiles) -> None:
    """A model that has no such head would get one of random weights, and rank by chance."""
    kind, architectures = "", list[str]()
    try:
        if (model.directory / "modules.json").is_file():
            settings = json.loads((model.directory / "config_sentence_transformers.json").read_text(encoding="utf-8"))
            kind = settings.get("model_type", "SentenceTransformer")
        else:
            settings = json.loads((model.directory / "config.json").read_text(encoding="utf-8"))
            architectures = settings.get("architectures") or []
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"{model.option} {model.directory} cannot be loaded: {error}") from error
    if kind != "CrossEncoder" and not any(str(name).endswith(HEADS) for name in architectures):
        what = kind or ", ".join(map(str, architectures)) or "a model without architectures"
        raise ConfigError(f"{model.option} {model.directory} is no cross-encoder, but {what}")
