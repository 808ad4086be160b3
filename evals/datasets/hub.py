"""Public datasets of the Hugging Face Hub, each by its columns: asked for there, or read from a saved copy.

A copy is a directory of .jsonl, .parquet, .csv or .tsv files with the same columns, or what `datasets` saves by
`save_to_disk`; files whose names begin with the split are taken alone, where there are such. Reaching the Hub, parquet
files and saved datasets need the extra `fathom[hub]`.

Licences, and where the columns are known from: docs/evals-datasets.md.
"""

import csv
import importlib
import importlib.util
import os
import random
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from evals.config import ConfigError
from evals.datasets.files import dataset, lines, reading
from evals.datasets.hub_rows import (
    Converted,
    halueval,
    join_ragtruth,
    popqa,
    ragtruth,
    simpleqa,
    triviaqa,
    triviaqa_with_evidence,
)
from evals.records import Dataset

Row = Mapping[str, Any]
HUB = "https://huggingface.co"
OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
PROBE_TIMEOUT_S = 10.0
SUFFIXES = (".jsonl", ".parquet", ".csv", ".tsv")
SAVED = ("dataset_dict.json", "state.json")  # files by which a saved dataset is known
RAGTRUTH_FILES = ("response.jsonl", "source_info.jsonl")
MAX_FIELD = 1 << 24  # of a .csv file, in characters


@dataclass(frozen=True, slots=True)
class HubSource:
    """Where a dataset is on the Hub, the columns that are read of it, and what makes questions of its rows."""

    repository: str
    config: str | None
    split: str
    columns: tuple[str, ...]
    convert: Callable[[Iterable[Row]], Converted]


SOURCES: Mapping[str, HubSource] = {
    "popqa": HubSource("akariasai/PopQA", None, "test", ("id", "subj", "question", "possible_answers", "s_pop"), popqa),
    "triviaqa": HubSource(
        "mandarjoshi/trivia_qa", "rc.nocontext", "validation", ("question", "question_id", "answer"), triviaqa
    ),
    "triviaqa_evidence": HubSource(
        "mandarjoshi/trivia_qa",
        "rc",
        "validation",
        ("question", "question_id", "answer", "entity_pages", "search_results"),
        triviaqa_with_evidence,
    ),
    "halueval": HubSource(
        "pminervini/HaluEval", "qa", "data", ("knowledge", "question", "right_answer", "hallucinated_answer"), halueval
    ),
    "ragtruth": HubSource(
        "wandb/RAGTruth-processed",
        None,
        "test",
        ("query", "context", "output", "task_type", "quality", "hallucination_labels"),
        ragtruth,
    ),
    "simpleqa": HubSource("basicv8vc/SimpleQA", None, "test", ("problem", "answer", "metadata"), simpleqa),
}


def load_hub(name: str, path: Path | None, seed: int) -> Dataset:
    """The questions of one source in an order drawn from the seed; from the Hub where there is no path.

    Raises:
        ConfigError: the Hub cannot be reached, a package is missing, or rows do not have the expected columns.
    """
    source = SOURCES[name]
    where = Path(source.repository) if path is None else path
    with reading(where, ()):
        rows = _fetched(name, source) if path is None else _saved(name, source, path)
        documents, questions = source.convert(_checked(rows, source, where))
    if not questions:
        raise ConfigError(f"--data {where} has no questions for {name}")
    random.Random(seed).shuffle(questions)
    part = source.repository if path is None else f"{source.repository}, a copy of it"
    return dataset(name, documents, questions, f"{part}, {source.split}, seed {seed}")


def _checked(rows: Iterable[Row], source: HubSource, where: Path) -> Iterator[Row]:
    for row in rows:
        missing = [name for name in source.columns if name not in row]
        if missing:
            raise ConfigError(f"--data {where} lacks the columns {', '.join(missing)}; it has {', '.join(row)}")
        yield row


def _package(name: str) -> Any:
    """Raises:
    ConfigError: it is not installed.
    """
    if importlib.util.find_spec(name) is None:
        raise ConfigError(f"--dataset: {name} is not installed; it comes with: pip install 'fathom[hub]'")
    return importlib.import_module(name)


def _fetched(name: str, source: HubSource) -> Iterable[Row]:
    datasets = _package("datasets")
    # Asked before, once and not for long: the library itself tries for half a minute.
    if not _is_offline():
        _probe(name, source)
    try:
        rows: Iterable[Row] = datasets.load_dataset(source.repository, source.config, split=source.split)
    except (OSError, ValueError, httpx2.HTTPError, datasets.exceptions.DatasetsError) as error:
        raise ConfigError(f"--dataset {name}: {source.repository} cannot be had: {error}. {_way_out(name)}") from error
    return rows


def _is_offline() -> bool:
    """Whether the user says so: then what was fetched before is all there is."""
    return any(os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in OFFLINE)


def _probe(name: str, source: HubSource) -> None:
    """Raises:
    ConfigError: nobody answers at the Hub's address. What is answered, the library will see better.
    """
    address = os.environ.get("HF_ENDPOINT") or HUB
    try:
        with urllib.request.urlopen(f"{address}/api/datasets/{source.repository}", timeout=PROBE_TIMEOUT_S):
            return
    except urllib.error.HTTPError:
        return
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise ConfigError(
            f"--dataset {name}: the Hub cannot be reached at {address}: {reason}. {_way_out(name)}"
        ) from error


def _way_out(name: str) -> str:
    source = SOURCES[name]
    part = "" if source.config is None else f" ({source.config})"
    return (
        f"--data DIRECTORY reads a copy without a network: {source.repository}{part}, split {source.split}, as .jsonl, "
        ".parquet, .csv or .tsv files or as saved by datasets' save_to_disk"
    )


def _saved(name: str, source: HubSource, path: Path) -> Iterable[Row]:
    if not path.is_dir():
        raise ConfigError(f"--data {path} is no directory; {_way_out(name)}")
    if any((path / file).is_file() for file in SAVED):
        return _from_disk(source, path)
    if name == "ragtruth" and all((path / file).is_file() for file in RAGTRUTH_FILES):
        response, info = (lines(path / file) for file in RAGTRUTH_FILES)
        return join_ragtruth(response, info, source.split)
    found = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES and file.is_file())
    named = [file for file in found if file.name.startswith(source.split)]
    if not found:
        raise ConfigError(f"--data {path} lacks files of {', '.join(SUFFIXES)}; {_way_out(name)}")
    return (row for file in named or found for row in _rows(file))


def _from_disk(source: HubSource, path: Path) -> Iterable[Row]:
    datasets = _package("datasets")
    loaded = datasets.load_from_disk(str(path))
    if isinstance(loaded, datasets.DatasetDict):
        if source.split not in loaded:
            raise ConfigError(f"--data {path} lacks the split {source.split}; it has {', '.join(loaded)}")
        loaded = loaded[source.split]
    rows: Iterable[Row] = loaded
    return rows


def _rows(file: Path) -> Iterator[Row]:
    if file.suffix == ".jsonl":
        yield from lines(file)
    elif file.suffix == ".parquet":
        _package("pyarrow")
        for batch in importlib.import_module("pyarrow.parquet").ParquetFile(file).iter_batches():
            yield from batch.to_pylist()
    else:
        csv.field_size_limit(MAX_FIELD)
        with file.open(encoding="utf-8", newline="") as content:
            try:
                yield from csv.DictReader(content, delimiter="\t" if file.suffix == ".tsv" else ",")
            except csv.Error as error:
                raise ConfigError(f"--data {file}: {error}") from error
