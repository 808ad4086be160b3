"""A table of a store as one file for other tools: Parquet, CSV or lines of JSON.

Parquet has the records' own types, lists as lists; pyarrow, which writes it, is an extra (`fathom[parquet]`) and
imported only here. CSV has lists as JSON, and an empty cell for what is not known.
"""

import csv
import dataclasses
import importlib
import json
import os
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from evals.config import ConfigError
from evals.records import Draw, Judgement, SampleRow
from evals.store import FILE_NAME, Store

ROWS_AT_ONCE = 4096


@dataclass(frozen=True, slots=True)
class StoredDocument:
    """A document that samples of the dataset were asked with."""

    dataset: str
    id: str
    title: str
    text: str


def _documents(store: Store) -> Iterator[StoredDocument]:
    for dataset in sorted({dataset for _, dataset in store.settings()}):
        for document in store.documents(dataset).values():
            yield StoredDocument(dataset, document.id, document.title, document.text)


@dataclass(frozen=True, slots=True)
class _Source:
    record: type[Any]
    read: Callable[[Store], Iterable[Any]]


TABLES: dict[str, _Source] = {
    "samples": _Source(SampleRow, Store.rows),
    "draws": _Source(Draw, Store.draws),
    "judgements": _Source(Judgement, Store.judgements),
    "documents": _Source(StoredDocument, _documents),
}
Batches = Iterator[list[tuple[Any, ...]]]


def export_table(directory: Path, file: Path, table: str = "samples") -> int:
    """Write a table; its ending says how. Returns how many rows it has.

    Raises:
        ConfigError: there is no store, no such table or ending, or the file cannot be written.
    """
    if not (directory / FILE_NAME).is_file():
        raise ConfigError(f"{directory} has no {FILE_NAME}; it is not the --out of a run")
    if table not in TABLES:
        raise ConfigError(f"--table must be one of {', '.join(TABLES)}, got {table!r}")
    if file.suffix not in WRITERS:
        raise ConfigError(f"--to must end in one of {', '.join(WRITERS)}, got {file.name!r}")
    source, draft = TABLES[table], file.with_name(f".{file.name}.tmp")
    try:
        with Store(directory) as store:
            num_rows = WRITERS[file.suffix](draft, source.record, _batches(source, store))
        # Replaced in one move: a reader never sees half a file.
        os.replace(draft, file)
    except OSError as error:
        raise ConfigError(f"--to {file} cannot be written: {error}") from error
    finally:
        draft.unlink(missing_ok=True)
    return num_rows


def _batches(source: _Source, store: Store) -> Batches:
    names = [field.name for field in dataclasses.fields(source.record)]
    rows = iter(source.read(store))
    while batch := [tuple(getattr(row, name) for name in names) for row in islice(rows, ROWS_AT_ONCE)]:
        yield batch


def _write_parquet(draft: Path, record: type[Any], batches: Batches) -> int:
    try:
        arrow, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise ConfigError("--to a .parquet file needs pyarrow: install fathom[parquet]") from error
    hints = get_type_hints(record)
    schema = arrow.schema([(name, _arrow_type(arrow, hint)) for name, hint in hints.items()])
    num_rows = 0
    with parquet.ParquetWriter(str(draft), schema, compression="zstd") as writer:
        for batch in batches:
            columns = zip(*batch, strict=True)
            arrays = [arrow.array(list(column), kind.type) for column, kind in zip(columns, schema, strict=True)]
            writer.write_table(arrow.Table.from_arrays(arrays, schema=schema))
            num_rows += len(batch)
    return num_rows


def _arrow_type(arrow: Any, hint: Any) -> Any:
    """Raises:
    TypeError: a record has a field of a type that no column is of.
    """
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        [hint] = [part for part in parts if part is not type(None)]
        return _arrow_type(arrow, hint)
    if origin is tuple and parts[1:] == (Ellipsis,):
        return arrow.list_(_arrow_type(arrow, parts[0]))
    if origin is Literal:
        return arrow.string()
    known = {str: arrow.string(), bool: arrow.bool_(), int: arrow.int64(), float: arrow.float64()}
    if hint not in known:
        raise TypeError(f"no column for {hint}")
    return known[hint]


def _write_csv(draft: Path, record: type[Any], batches: Batches) -> int:
    num_rows = 0
    with draft.open("w", encoding="utf-8", newline="") as content:
        writer = csv.writer(content)
        writer.writerow(_names(record))
        for batch in batches:
            writer.writerows([_cell(value) for value in row] for row in batch)
            num_rows += len(batch)
    return num_rows


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, tuple) else value


def _write_jsonl(draft: Path, record: type[Any], batches: Batches) -> int:
    names, num_rows = _names(record), 0
    with draft.open("w", encoding="utf-8") as content:
        for batch in batches:
            for row in batch:
                content.write(json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False) + "\n")
            num_rows += len(batch)
    return num_rows


def _names(record: type[Any]) -> Sequence[str]:
    return [field.name for field in dataclasses.fields(record)]


WRITERS: dict[str, Callable[[Path, type[Any], Batches], int]] = {
    ".parquet": _write_parquet,
    ".csv": _write_csv,
    ".jsonl": _write_jsonl,
}
