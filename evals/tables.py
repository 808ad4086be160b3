"""Tables of plain records in SQLite: a column for each field, lists as JSON, one row for each key."""

import dataclasses
import json
import sqlite3
from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar, get_type_hints

R = TypeVar("R")
_LISTS = (tuple[str, ...], tuple[float, ...])


def add_columns(database: sqlite3.Connection, table: str, columns: Mapping[str, str]) -> None:
    """Add those that are not there; what follows a column's name is its declaration."""
    present = {row[1] for row in database.execute(f"PRAGMA table_info({table})")}
    for column, declaration in columns.items():
        if column not in present:
            database.execute(f"ALTER TABLE {table} ADD COLUMN {column}{declaration}")


class RecordTable(Generic[R]):
    """One table of one class of records. All statements run on the database of whoever owns it."""

    def __init__(self, database: sqlite3.Connection, name: str, record: type[R], key: tuple[str, ...]) -> None:
        hints = get_type_hints(record)
        self._database, self.name, self._record, self._key = database, name, record, key
        self.columns = tuple(hints)
        self._lists = frozenset(column for column in hints if hints[column] in _LISTS)
        self._truths = frozenset(column for column in hints if hints[column] is bool)

    def create(self) -> None:
        """Make it, if it is not there; columns that it lacks get the defaults of their fields."""
        columns, key = ", ".join(self.columns), ", ".join(self._key)
        self._database.execute(f"CREATE TABLE IF NOT EXISTS {self.name} ({columns}, PRIMARY KEY ({key}))")
        add_columns(self._database, self.name, {column: self._default(column) for column in self.columns})

    def _default(self, column: str) -> str:
        fields = dataclasses.fields(self._record)  # type: ignore[arg-type]
        [field] = [field for field in fields if field.name == column]
        if field.default in (None, dataclasses.MISSING):
            return ""
        return f" DEFAULT {field.default!r}"

    def put(self, record: R) -> None:
        """In place of one of the same key."""
        values = [self._stored(column, getattr(record, column)) for column in self.columns]
        names, marks = ", ".join(self.columns), ", ".join("?" for _ in values)
        self._database.execute(f"INSERT OR REPLACE INTO {self.name} ({names}) VALUES ({marks})", values)

    def _stored(self, column: str, value: Any) -> Any:
        return json.dumps(value) if column in self._lists else value

    def rows(self) -> Iterator[R]:
        """All records, in the order of their keys."""
        names, order = ", ".join(self.columns), ", ".join(self._key)
        for values in self._database.execute(f"SELECT {names} FROM {self.name} ORDER BY {order}"):
            content = dict(zip(self.columns, values, strict=True))
            for column in self._lists:
                content[column] = tuple(json.loads(content[column]))
            for column in self._truths:  # SQLite has none
                content[column] = bool(content[column])
            yield self._record(**content)

    def keys(self, *, where: str = "TRUE") -> Iterator[tuple[Any, ...]]:
        yield from self._database.execute(f"SELECT {', '.join(self._key)} FROM {self.name} WHERE {where}")
