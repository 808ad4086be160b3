"""retrieval.json: recall curves as one JSON object, for people and for the report."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evals.config import ConfigError, RunConfig
from evals.records import Dataset
from evals.retrieval.ranking import Retriever
from evals.retrieval.recall import DEFAULT_KS, DEFINITIONS, recall_curve
from evals.whole_files import write_json

SCHEMA = "fathom.retrieval/1"
RETRIEVAL_FILE = "retrieval.json"


def note_recall(config: RunConfig, dataset: Dataset, retriever: Retriever) -> None:
    """Put the recall on the questions that a run asks beside its store, one curve for each dataset.

    What stands there already, of the same retriever, corpus and questions, is not measured again.

    Raises:
        ConfigError: the file cannot be written, or a reranker does not do its part.
    """
    file = config.out / RETRIEVAL_FILE
    curves = read_curves(file)
    wanted = {
        "dataset": dataset.name,
        "digest": dataset.digest,
        "retriever": retriever.name,
        "questions": min(config.num_questions, len(dataset.questions)),
    }
    if any(wanted.items() <= _plain(curve).items() for curve in curves):
        return
    curve = recall_curve(dataset, retriever, DEFAULT_KS, config.num_questions).as_json()
    write_curves(file, [*(other for other in curves if other.get("dataset") != dataset.name), curve])


def _plain(curve: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in curve.items() if isinstance(value, str | int)}


def read_curves(file: Path) -> list[dict[str, Any]]:
    """None where there is no such file, or another's."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        return []
    curves = content.get("curves")
    return [curve for curve in curves if isinstance(curve, dict)] if isinstance(curves, list) else []


def write_curves(file: Path, curves: Sequence[dict[str, Any]]) -> None:
    """Raises:
    ConfigError: the file cannot be written.
    """
    content = {"schema": SCHEMA, "curves": list(curves), "definitions": DEFINITIONS}
    try:
        write_json(file, content)
    except OSError as error:
        raise ConfigError(f"--out {file} cannot be written: {error}") from error
