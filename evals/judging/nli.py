"""A local model of natural language inference as a judge: whether a document entails what an answer claims.

It judges support by the documents, not truth: a right answer that no document gives is "hallucinated" here, with
"baseless" as its detail. Any sequence classification model in the Hugging Face format will do; which of its outputs
is which is read from its configuration. The packages are an extra (`fathom[nli]`), imported only where it is asked for.
"""

import asyncio
import hashlib
import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evals.config import ConfigError
from evals.judging.cases import Case, Opinion
from evals.records import Document
from evals.scoring.abstention import claim_of

LABELS = ("entailment", "neutral", "contradiction")
# These models read 512 tokens, hypothesis included; what is longer they would cut without a word.
MAX_PREMISE_WORDS, OVERLAP_WORDS = 200, 50
BATCH = 32


class NliJudge:
    """The model of one directory.

    Raises:
        ConfigError: the packages or the model are not there, or it is no model of inference.
    """

    reads_documents = True

    def __init__(self, directory: Path) -> None:
        if not (directory / "config.json").is_file():
            raise ConfigError(f"--nli {directory} is no model's directory: it has no config.json")
        self._model = _open(directory)
        self._places = label_places(self._model.config.id2label, directory)
        self.name = f"nli:{directory.resolve().name}:{_digest(directory)}"

    async def opinion(self, case: Case) -> Opinion:
        claim = claim_of(case.answer, case.permission)
        if claim is None:
            return Opinion("abstained")
        hypothesis = as_statement(case.question, claim)
        named = [(document.id, piece) for document in case.documents for piece in premises(document)]
        found = await asyncio.to_thread(self._probabilities, [(piece, hypothesis) for _, piece in named])
        return opinion_of(found, [name for name, _ in named], hypothesis)

    def _probabilities(self, pairs: list[tuple[str, str]]) -> NDArray[np.float64]:
        """(pairs, labels) in the order of LABELS."""
        found = self._model.predict(pairs, batch_size=BATCH, apply_softmax=True, show_progress_bar=False)
        return np.asarray(found, np.float64)[:, self._places]


def label_places(id2label: Mapping[Any, str], directory: Path) -> list[int]:
    """Where each of LABELS is among the model's outputs.

    Raises:
        ConfigError: one of them is missing.
    """
    places = {str(label).casefold(): int(place) for place, label in id2label.items()}
    missing = [label for label in LABELS if label not in places]
    if missing:
        raise ConfigError(
            f"--nli {directory} is no model of inference: its config.json names the labels {', '.join(places)}, "
            f"and not {', '.join(missing)}"
        )
    return [places[label] for label in LABELS]


def as_statement(question: str, claim: str) -> str:
    return f'The answer to "{question.strip()}" is: {claim.strip()}'


def premises(document: Document) -> list[str]:
    """The document in pieces that overlap, each with its title."""
    words = document.text.split()
    step = MAX_PREMISE_WORDS - OVERLAP_WORDS
    starts = range(0, max(1, len(words) - OVERLAP_WORDS), step)
    pieces = (" ".join(words[start : start + MAX_PREMISE_WORDS]) for start in starts)
    return [f"{document.title}. {piece}" if document.title else piece for piece in pieces]


def opinion_of(probabilities: NDArray[np.float64], names: Sequence[str], hypothesis: str) -> Opinion:
    """Entailed by any document: supported. Else contradicted by one, or without any base: hallucinated.

    The score is the best probability of entailment.
    """
    likeliest = probabilities.argmax(axis=1)
    label, name = "baseless", None
    for place, found in ((LABELS.index("contradiction"), "contradicted"), (LABELS.index("entailment"), "supported")):
        if (likeliest == place).any():
            surest = np.where(likeliest == place, probabilities[:, place], -1.0).argmax()
            label, name = found, names[int(surest)]
    detail = json.dumps({"label": label, "document": name, "hypothesis": hypothesis}, ensure_ascii=False)
    return Opinion("correct" if label == "supported" else "hallucinated", float(probabilities[:, 0].max()), detail)


def _open(directory: Path) -> Any:
    try:
        package = importlib.import_module("sentence_transformers")
    except ImportError as error:
        raise ConfigError("--nli needs sentence-transformers: install fathom[nli]") from error
    try:
        return package.CrossEncoder(str(directory), local_files_only=True)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--nli {directory} cannot be loaded: {error}") from error


def _digest(directory: Path) -> str:
    """Of the weights and all that reads them."""
    found = hashlib.sha256()
    for file in sorted(file for file in directory.iterdir() if file.is_file()):
        found.update(file.name.encode())
        with file.open("rb") as content:
            found.update(hashlib.file_digest(content, "sha256").digest())
    return found.hexdigest()[:8]
