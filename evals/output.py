"""What a run leaves for people and programs: summary.json and report.html beside the store."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from evals.config import ConfigError
from evals.lm.results import read_results
from evals.report.build import write_report
from evals.report.paper import markdown, write_pictures
from evals.retrieval.recall_file import RETRIEVAL_FILE, read_curves
from evals.stats.corrected import GraderQuality
from evals.store import FILE_NAME, Store
from evals.summary import summarise
from evals.whole_files import write_json

SUMMARY_FILE = "summary.json"
LOAD_SCHEMA = "fathom.load/1"


def read_load(file: Path) -> dict[str, Any]:
    """The summary of a load test.

    Raises:
        ConfigError: the file is none.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"--load {file} cannot be read: {error}") from error
    if not isinstance(content, dict) or content.get("schema") != LOAD_SCHEMA:
        raise ConfigError(f"--load {file} is not the summary.json of a load test ({LOAD_SCHEMA})")
    return content


def write_outputs(
    directory: Path, load: Sequence[dict[str, Any]] = (), *, quality: Mapping[str, GraderQuality] | None = None
) -> tuple[dict[str, Any], Path]:
    """Summarise the directory's store; returns the summary and where the report is.

    Args:
        load: summaries of load tests, in place of those that the directory's summary has; none keeps them.
        quality: of the graders, by name; None: what comes with Fathom.
    Raises:
        ConfigError: there is no store, or nothing in it, or the files cannot be written.
    """
    if not (directory / FILE_NAME).is_file():
        raise ConfigError(f"{directory} has no {FILE_NAME}; it is not the --out of a run")
    with Store(directory) as store:
        rows, notes, judgements = list(store.rows()), store.run_notes(), list(store.judgements())
        scrapes = list(store.scrapes())
        draws = list(store.draws())
        manifests = store.manifests()
        documents = {name: store.documents(name) for name in {row.dataset for row in rows}}
    lm = [asdict(result) for result in read_results(directory)]
    if not rows and not lm:
        raise ConfigError(f"{directory / FILE_NAME} holds no samples yet")
    loads = load or _earlier_load(directory / SUMMARY_FILE)
    summary = summarise(rows, loads, notes, lm, judgements=judgements, draws=draws, quality=quality, scrapes=scrapes)
    summary["runs"] = [
        {"model": model, "dataset": dataset, **manifest} for (model, dataset), manifest in sorted(manifests.items())
    ]
    summary["retrieval"] = read_curves(directory / RETRIEVAL_FILE)
    try:
        write_json(directory / SUMMARY_FILE, summary)
        return summary, write_report(directory, rows, summary, documents)
    except OSError as error:
        raise ConfigError(f"--out {directory} cannot be written: {error}") from error


def write_for_paper(summary: dict[str, Any], tables: Path | None, pictures: Path | None) -> list[str]:
    """The tables as Markdown and the charts as PNG, where they are wanted; what was written, a line each.

    Raises:
        ConfigError: it cannot be written.
    """
    lines = []
    try:
        if tables is not None:
            tables.write_text(markdown(summary), encoding="utf-8")
            lines.append(f"tables   {tables}")
        if pictures is not None:
            lines.append(f"charts   {len(write_pictures(pictures, summary))} in {pictures}")
    except OSError as error:
        raise ConfigError(f"--markdown or --png cannot be written: {error}") from error
    return lines


def _earlier_load(file: Path) -> list[dict[str, Any]]:
    """The load tests in a summary that is about to be replaced; none where there is no such summary."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    load = content.get("load") if isinstance(content, dict) else None
    return [run for run in load if isinstance(run, dict)] if isinstance(load, list) else []
