"""The only memory of a run: one SQLite file, one row per sample, written the moment the sample is there."""

import json
import sqlite3
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NamedTuple, Self

from evals.config import ConfigError
from evals.records import SampleRow

FILE_NAME = "samples.sqlite"
VERSION = 1
_COLUMNS = tuple(field.name for field in fields(SampleRow))
_LISTS = frozenset(name for name in _COLUMNS if SampleRow.__annotations__[name] in (tuple[str, ...], tuple[float, ...]))
_KEY = ("model", "dataset", "permission", "budget", "question_id")


class SampleKey(NamedTuple):
    """What tells one sample of a store from every other."""

    model: str
    dataset: str
    permission: str
    budget: int
    question_id: str


class Store:
    """Owns the file. A row is safe once `put` returns, whatever happens to the process afterwards."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.path = directory / FILE_NAME
        self._database = sqlite3.connect(self.path)
        try:
            self._database.execute("PRAGMA journal_mode = WAL")
            self._check_version()
        except sqlite3.DatabaseError as error:
            self._database.close()
            raise ConfigError(f"--out: {self.path} is not a store of samples: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def _check_version(self) -> None:
        [version] = self._database.execute("PRAGMA user_version").fetchone()
        if version not in (0, VERSION):
            raise ConfigError(f"--out: {self.path} was written by another version of Fathom (format {version})")
        with self._database:
            columns = ", ".join(_COLUMNS)
            self._database.execute(f"CREATE TABLE IF NOT EXISTS samples ({columns}, PRIMARY KEY ({', '.join(_KEY)}))")
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS runs (model, dataset, fingerprint, PRIMARY KEY (model, dataset))"
            )
            self._database.execute(f"PRAGMA user_version = {VERSION}")

    def check_run(self, model: str, dataset: str, fingerprint: dict[str, str]) -> None:
        """Take note of what decides the samples of a run, or compare it with the note that is there.

        Raises:
            ConfigError: the store holds samples of this model and dataset that were asked otherwise.
        """
        row = self._database.execute(
            "SELECT fingerprint FROM runs WHERE model = ? AND dataset = ?", (model, dataset)
        ).fetchone()
        if row is None:
            with self._database:
                self._database.execute("INSERT INTO runs VALUES (?, ?, ?)", (model, dataset, json.dumps(fingerprint)))
            return
        noted: dict[str, str] = json.loads(row[0])
        for name in noted.keys() | fingerprint.keys():
            if noted.get(name) != fingerprint.get(name):
                raise ConfigError(
                    f"--out {self.path.parent} holds samples of {model} on {dataset} with another setting: "
                    f"{name} was {noted.get(name)}, now it is {fingerprint.get(name)}. Use another directory."
                )

    def put(self, row: SampleRow) -> None:
        """Keep a sample, in place of one of the same key."""
        values = [
            json.dumps(value) if name in _LISTS else value for name, value in zip(_COLUMNS, _values(row), strict=True)
        ]
        marks = ", ".join("?" for _ in _COLUMNS)
        with self._database:
            self._database.execute(f"INSERT OR REPLACE INTO samples VALUES ({marks})", values)

    def done_keys(self) -> set[SampleKey]:
        """Samples that need not be asked again; those that failed are not among them."""
        query = f"SELECT {', '.join(_KEY)} FROM samples WHERE error IS NULL"
        return {SampleKey(*row) for row in self._database.execute(query)}

    def rows(self) -> Iterator[SampleRow]:
        """All samples, in the order of their keys."""
        for values in self._database.execute(f"SELECT * FROM samples ORDER BY {', '.join(_KEY)}"):
            yield _row(dict(zip(_COLUMNS, values, strict=True)))


def _values(row: SampleRow) -> list[Any]:
    content = asdict(row)
    return [content[name] for name in _COLUMNS]


def _row(content: dict[str, Any]) -> SampleRow:
    for name in _LISTS:
        content[name] = tuple(json.loads(content[name]))
    # SQLite has no truth values.
    content["gold_in_context"] = bool(content["gold_in_context"])
    return SampleRow(**content)
