"""The results of lm-eval's tasks: records, and their table in the store of samples."""

import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from evals.config import ConfigError
from evals.store import FILE_NAME, Store


@dataclass(frozen=True, slots=True, kw_only=True)
class LmResult:
    """One figure of one task.

    filter: lm-eval's name of what an answer went through before it was compared. value: None where it is no number.
    stderr: as lm-eval gives it, from independent documents; None where it gives none. n: documents. num_truncated: of
    the task's requests; None where nobody counted tokens. config: what decided it. at: when, in UTC.
    """

    model: str
    task: str
    metric: str
    filter: str
    value: float | None
    stderr: float | None
    n: int
    num_truncated: int | None
    higher_is_better: bool | None
    config: dict[str, Any]
    lm_eval_version: str
    at: str


_COLUMNS = tuple(field.name for field in fields(LmResult))


def prepare_store(directory: Path) -> None:
    """Raises:
    ConfigError: the directory cannot be written, or holds another's store; told before anything is asked.
    """
    with Store(directory):
        pass


def put_results(directory: Path, results: Sequence[LmResult]) -> None:
    """Keep them in a store that is there, in place of what it has of the same models and tasks.

    Raises:
        ConfigError: the store cannot be written.
    """
    rows = [[_stored(value) for value in asdict(result).values()] for result in results]
    try:
        with closing(sqlite3.connect(directory / FILE_NAME)) as database, database:
            key = "PRIMARY KEY (model, task, metric, filter)"
            database.execute(f"CREATE TABLE IF NOT EXISTS lm_results ({', '.join(_COLUMNS)}, {key})")
            pairs = {(result.model, result.task) for result in results}
            database.executemany("DELETE FROM lm_results WHERE model = ? AND task = ?", sorted(pairs))
            database.executemany(f"INSERT INTO lm_results VALUES ({', '.join('?' for _ in _COLUMNS)})", rows)
    except sqlite3.Error as error:
        raise ConfigError(f"--out: {directory / FILE_NAME}: {error}") from error


def read_results(directory: Path) -> list[LmResult]:
    """All, by model and task, each task's in lm-eval's order; none where the store has no such table."""
    path = directory / FILE_NAME
    try:
        with closing(sqlite3.connect(path)) as database:
            known = database.execute("SELECT 1 FROM sqlite_master WHERE name = 'lm_results'").fetchone()
            query = f"SELECT {', '.join(_COLUMNS)} FROM lm_results ORDER BY model, task, rowid"
            rows = database.execute(query).fetchall() if known else []
    except sqlite3.Error as error:
        raise ConfigError(f"--out: {path}: {error}") from error
    return [_result(dict(zip(_COLUMNS, row, strict=True))) for row in rows]


def _stored(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, dict) else value


def _result(content: dict[str, Any]) -> LmResult:
    content["config"] = json.loads(content["config"])
    if content["higher_is_better"] is not None:
        content["higher_is_better"] = bool(content["higher_is_better"])
    return LmResult(**content)
