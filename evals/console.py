"""What a command that asks shows: progress, the table of the results, failures, and its exit code."""

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
import uvloop
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from evals.config import ConfigError, EndpointLostError, RunConfig, RunStoppedError
from evals.datasets import load_dataset
from evals.exits import EXIT_CONFIG, EXIT_FAILED_SAMPLES
from evals.manifest import Origin
from evals.output import SUMMARY_FILE, write_outputs
from evals.records import Dataset
from evals.runner import run_evals
from evals.stats.corrected import GraderQuality
from evals.store import FILE_NAME
from evals.summary import summary_table
from evals.tally import RunResult


def run_and_show(console: Console, configs: Sequence[RunConfig], origin: Origin) -> list[RunResult]:
    """Ask everything about a dataset and report it.

    Raises:
        ConfigError: an option cannot be, or asking cannot go on.
    """
    first = configs[0]
    dataset = load_dataset(origin.name, path=origin.data, seed=first.seed, world=origin.world)
    try:
        results = ask_all(console, configs, dataset, origin=origin)
    except RunStoppedError:
        # What was answered is worth its report; where that cannot be written, the first cause is the one to tell.
        with contextlib.suppress(ConfigError):
            show(console, first.out)
        raise
    show(console, first.out)
    return results


def tell_failures(console: Console, failures: Sequence[RunResult]) -> None:
    if failures:
        draws = sum(result.failed_draws for result in failures)
        failed = f"{sum(result.failed for result in failures)} samples" + (f" and {draws} draws" if draws else "")
        console.print(f"[bold red]{failed} failed[/bold red]", end="; ")
        console.print("the same command asks them again")
        console.print(f"the first error: {escape(failures[0].first_error or '')}", soft_wrap=True)
        raise typer.Exit(EXIT_FAILED_SAMPLES)


def progress_bar(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    # Seldom, for it is drawn beside requests that are timed.
    return Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, refresh_per_second=4)


def ask_all(
    console: Console,
    configs: Sequence[RunConfig],
    dataset: Dataset,
    *,
    origin: Origin | None = None,
    earlier: Mapping[str, str] | None = None,
) -> list[RunResult]:
    """Check all configurations, then run one after the other, with a bar for each (see `run_evals`)."""
    with progress_bar(console) as bar:
        tasks: dict[str, TaskID] = {}

        def progress(model: str, done: int, total: int) -> None:
            if model not in tasks:
                tasks[model] = bar.add_task(escape(model), total=total)
            bar.update(tasks[model], completed=done)

        def say(text: str) -> None:
            console.print(escape(text), soft_wrap=True)

        # uvloop: what the loop costs lies between an answer and its stamp, and between two requests.
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(run_evals(configs, dataset, progress, say, origin=origin, earlier=earlier))


def show(
    console: Console,
    out: Path,
    load: Sequence[dict[str, Any]] = (),
    *,
    quality: Mapping[str, GraderQuality] | None = None,
) -> dict[str, Any]:
    """Write the outputs, print the table, and say where to look."""
    summary, html = write_outputs(out, load, quality=quality)
    console.print(summary_table(summary))
    console.print(f"report   {html}\nsummary  {out / SUMMARY_FILE}\nsamples  {out / FILE_NAME}", highlight=False)
    return summary


def refused(console: Console, error: ConfigError) -> typer.Exit:
    console.print(f"[bold red]error[/bold red]: {escape(str(error))}", soft_wrap=True)
    return typer.Exit(EXIT_FAILED_SAMPLES if isinstance(error, EndpointLostError) else EXIT_CONFIG)
