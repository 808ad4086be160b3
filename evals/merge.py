"""Several stores into one: shards of a run, or runs of several models on the same questions.

Knows tables by their columns and keys alone: what other parts of Fathom keep in a store is taken over as it is.
"""

import contextlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evals.config import ConfigError
from evals.fingerprint import ADDRESS, OWN
from evals.store import FILE_NAME, Store

Row = tuple[Any, ...]
# Runs are merged by themselves; readings of /metrics are on the clock of the machine that read them, which is its own.
NOT_TAKEN = frozenset({"runs", "scrapes"})


@dataclass(frozen=True, slots=True)
class Merged:
    """Rows of one source by table: taken over, and there already."""

    source: Path
    added: Mapping[str, int]
    known: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class _Table:
    name: str
    columns: tuple[str, ...]
    key: tuple[str, ...]

    def key_of(self, row: Row) -> Row:
        return tuple(row[self.columns.index(column)] for column in self.key)

    def is_failure(self, row: Row) -> bool:
        return "error" in self.columns and row[self.columns.index("error")] is not None


def merge_stores(out: Path, sources: Sequence[Path], *, same_weights: bool = False) -> list[Merged]:
    """Put everything of the sources into the store of `out`, which may hold something already: all of it or nothing.

    A sample that failed in one store and was answered in another is the answered one.

    Args:
        same_weights: the caller knows that endpoints at several addresses serve the same weights.
    Raises:
        ConfigError: a source is no store, was asked by other settings, or holds another answer to the same sample.
    """
    for source in sources:
        if not (source / FILE_NAME).is_file():
            raise ConfigError(f"{source} has no {FILE_NAME}; it is not the --out of a run")
        if source.resolve() == out.resolve():
            raise ConfigError(f"{source} is both the store to merge into and one to merge")
        with Store(source):  # of an earlier format it is brought to this one
            pass
    with Store(out):
        pass
    try:
        with contextlib.closing(sqlite3.connect(out / FILE_NAME)) as database, database:
            database.execute("BEGIN IMMEDIATE")
            merged = [_take_over(database, source, same_weights=same_weights) for source in sources]
            _check_temperatures(database)
            return merged
    except sqlite3.Error as error:
        raise ConfigError(f"{out / FILE_NAME} cannot be written: {error}") from error


def _check_temperatures(database: sqlite3.Connection) -> None:
    """Raises:
    ConfigError: draws on one dataset are of several temperatures; together they would be neither's.
    """
    query = "SELECT dataset, MIN(temperature), MAX(temperature) FROM draws WHERE error IS NULL GROUP BY dataset"
    for dataset, low, high in database.execute(query):
        if low != high:
            raise ConfigError(f"draws on {dataset} are of --temperature {low:g} in one store and {high:g} in another")


def _take_over(database: sqlite3.Connection, source: Path, *, same_weights: bool) -> Merged:
    added: dict[str, int] = {}
    known: dict[str, int] = {}
    with contextlib.closing(sqlite3.connect(source / FILE_NAME)) as other:
        _merge_runs(database, other, source, same_weights=same_weights)
        for table in _tables(other):
            if table.name in NOT_TAKEN:
                continue
            _ensure(database, other, table)
            rows = other.execute(f"SELECT {', '.join(table.columns)} FROM {table.name}")
            added[table.name], known[table.name] = _merge_rows(database, table, rows, source)
    return Merged(source, added, known)


def _tables(database: sqlite3.Connection) -> Iterator[_Table]:
    names = database.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
    for (name,) in names.fetchall():
        info = database.execute(f"PRAGMA table_info({name})").fetchall()
        key = sorted((place, column) for _, column, _, _, _, place in info if place)
        yield _Table(name, tuple(row[1] for row in info), tuple(column for _, column in key))


def _ensure(database: sqlite3.Connection, other: sqlite3.Connection, table: _Table) -> None:
    """Raises:
    ConfigError: the two stores have the table with other columns.
    """
    present = next((one for one in _tables(database) if one.name == table.name), None)
    if present is None:
        query = "SELECT sql FROM sqlite_master WHERE type = 'table' AND name = ?"
        database.execute(other.execute(query, (table.name,)).fetchone()[0])
    elif set(present.columns) != set(table.columns) or present.key != table.key:
        raise ConfigError(f"the stores have tables {table.name} of other columns: they are of other versions of Fathom")


def _merge_rows(database: sqlite3.Connection, table: _Table, rows: Iterable[Row], source: Path) -> tuple[int, int]:
    """How many were added or set right, and how many were there."""
    names, marks = ", ".join(table.columns), ", ".join("?" for _ in table.columns)
    where = " AND ".join(f"{column} IS ?" for column in table.key or table.columns)
    added = known = 0
    for row in rows:
        key = table.key_of(row) if table.key else row
        present = database.execute(f"SELECT {names} FROM {table.name} WHERE {where}", key).fetchone()
        if present is not None and not _replaces(table, row, present, source):
            known += 1
            continue
        database.execute(f"INSERT OR REPLACE INTO {table.name} ({names}) VALUES ({marks})", row)
        added += 1
    return added, known


def _replaces(table: _Table, row: Row, present: Row, source: Path) -> bool:
    """Whether a row takes the place of one with the same key.

    Raises:
        ConfigError: both stand for something, and not for the same.
    """
    if row == present or table.is_failure(row):
        return False
    if table.is_failure(present):
        return True
    differing = [name for name, new, old in zip(table.columns, row, present, strict=True) if new != old]
    key = ", ".join(f"{name} {value}" for name, value in zip(table.key, table.key_of(row), strict=True))
    raise ConfigError(f"{source}: its {table.name} have another row for {key}: {', '.join(differing)} differ")


def _merge_runs(database: sqlite3.Connection, other: sqlite3.Connection, source: Path, *, same_weights: bool) -> None:
    query = "SELECT model, dataset, fingerprint, changes, manifest FROM runs"
    present = {(row[0], row[1]): row for row in database.execute(query)}
    for model, dataset, fingerprint, changes, manifest in other.execute(query).fetchall():
        for (known_model, known_dataset), row in present.items():
            if known_dataset == dataset:
                ignored = set() if known_model == model else set(OWN)
                ignored |= set(ADDRESS) if same_weights else set()
                _check_settings(source, f"{model} on {dataset}", json.loads(fingerprint), json.loads(row[2]), ignored)
        known = present.get((model, dataset))
        if known is not None:
            fingerprint = known[2]
            changes = json.dumps(list(dict.fromkeys(json.loads(known[3]) + json.loads(changes))))
            manifest = _merge_manifests(known[4], manifest)
        database.execute(
            "INSERT OR REPLACE INTO runs (model, dataset, fingerprint, changes, manifest) VALUES (?, ?, ?, ?, ?)",
            (model, dataset, fingerprint, changes, manifest),
        )


def _check_settings(
    source: Path, whose: str, ours: Mapping[str, str], theirs: Mapping[str, str], ignored: set[str]
) -> None:
    differences = [
        f"{name} is {ours.get(name, 'not given')}, elsewhere {theirs.get(name, 'not given')}"
        for name in {**ours, **theirs}
        if name not in ignored and ours.get(name) != theirs.get(name)
    ]
    if differences:
        raise ConfigError(f"{source}: {whose} was asked by another setting: {'; '.join(differences)}")


def _merge_manifests(first: str | None, second: str | None) -> str | None:
    """All sessions of both, each once, the earliest first."""
    if first is None or second is None:
        return first or second
    sessions = json.loads(first)["sessions"]
    sessions += [session for session in json.loads(second)["sessions"] if session not in sessions]
    sessions.sort(key=lambda session: session["started"])
    return json.dumps({**json.loads(first), "sessions": sessions})
