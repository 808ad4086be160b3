"""compare.html: the report of two models' samples together, with how they differ at its head."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from evals.compare import Side
from evals.config import ConfigError
from evals.records import Document
from evals.report.build import write_report
from evals.store import Store
from evals.summary import summarise

PAGE_FILE = "compare.html"


def write_page(directory: Path, a: Side, b: Side, found: Mapping[str, Any]) -> Path:
    """Write the page beside compare.json; returns its path.

    Raises:
        ConfigError: it cannot be written.
    """
    names = (f"{a.model} (a)", f"{b.model} (b)") if a.model == b.model else (a.model, b.model)
    rows = [replace(row, model=name) for side, name in zip((a, b), names, strict=True) for row in side.rows]
    summary = summarise(rows)
    summary["comparison"] = {
        **found,
        **{side: {**found[side], "name": name} for side, name in zip("ab", names, strict=True)},
    }
    try:
        return write_report(directory, rows, summary, _documents(a, b), name=PAGE_FILE)
    except OSError as error:
        raise ConfigError(f"--out {directory} cannot be written: {error}") from error


def _documents(a: Side, b: Side) -> dict[str, dict[str, Document]]:
    found: dict[str, dict[str, Document]] = {}
    for side in (a, b):
        with Store(side.directory) as store:
            for dataset in {row.dataset for row in side.rows}:
                found.setdefault(dataset, {}).update(store.documents(dataset))
    return found
