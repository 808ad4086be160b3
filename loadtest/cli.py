"""fathom load: options in, progress and a table out, and an exit code that a build can act upon."""

import secrets
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from loadtest.config import LoadConfig, LoadError
from loadtest.latency import Slo
from loadtest.report.table import print_summary
from loadtest.run import run_load

EXIT_USAGE, EXIT_NOT_TRUSTWORTHY = 2, 3
app = typer.Typer(no_args_is_help=True, help="Load tests of any OpenAI-compatible endpoint.")


class Arrivals(StrEnum):
    POISSON = "poisson"
    CONSTANT = "constant"


@app.callback()
def load() -> None:
    """Load tests of any OpenAI-compatible endpoint."""


@app.command()
def run(
    *,
    endpoint: Annotated[str, typer.Option(help="Base URL, as http://127.0.0.1:8000")],
    model: Annotated[str, typer.Option(help="Model name in the requests")],
    out: Annotated[Path, typer.Option(help="New directory for summary.json, requests.jsonl and the logs")],
    rate: Annotated[
        float, typer.Option(help="Arrivals per second, whether or not the server keeps up")
    ] = 1.0,
    context: Annotated[int, typer.Option(help="Prompt tokens of each request, chat template included")] = 512,
    output: Annotated[int, typer.Option(help="Output tokens of each request (max_tokens)")] = 64,
    duration: Annotated[float, typer.Option(help="Measured seconds of the schedule")] = 30.0,
    seed: Annotated[int, typer.Option(help="Draws arrivals and prompts")] = 0,
    arrivals: Annotated[Arrivals, typer.Option(help="Arrival process")] = Arrivals.POISSON,
    api_key: Annotated[str | None, typer.Option(envvar="FATHOM_API_KEY", help="Bearer token")] = None,
    ttft_slo: Annotated[float | None, typer.Option(help="Limit of TTFT from schedule, seconds")] = None,
    tpot_slo: Annotated[float | None, typer.Option(help="Limit of TPOT, seconds")] = None,
    e2e_slo: Annotated[float | None, typer.Option(help="Limit end to end from schedule, seconds")] = None,
    warmup: Annotated[float, typer.Option(help="Seconds sent before the measured ones, not counted")] = 0.0,
    max_in_flight: Annotated[int | None, typer.Option(help="Cap of open requests; none by default")] = None,
    stop_timeout: Annotated[
        float, typer.Option(help="Seconds to wait for answers after the schedule")
    ] = 60.0,
    processes: Annotated[
        int, typer.Option(help="Load processes; more than one for more than 100 streams")
    ] = 1,
    salt: Annotated[
        str | None, typer.Option(help="Repeats the very bytes of an earlier run; see its config")
    ] = None,
) -> None:
    """Send an open-loop load and report TTFT, ITL, TPOT, end-to-end latency and goodput.

    Exit codes: 0 = measured; 2 = wrong options or no usable endpoint; 3 = the numbers cannot be trusted.
    """
    console = Console()
    try:
        config = LoadConfig(
            endpoint=endpoint,
            model=model,
            out=out,
            rate=rate,
            context_tokens=context,
            output_tokens=output,
            duration_s=duration,
            seed=seed,
            arrivals=arrivals.value,
            api_key=api_key,
            slo=Slo(ttft_s=ttft_slo, tpot_s=tpot_slo, e2e_s=e2e_slo),
            warmup_s=warmup,
            max_in_flight=max_in_flight,
            stop_timeout_s=stop_timeout,
            processes=processes,
            salt=secrets.token_hex(4) if salt is None else salt,
        )
        with _progress_bar(console) as bar:
            summary = run_load(config, _Bars(bar).update)
    except LoadError as error:
        console.print(f"[bold red]error[/bold red]: {escape(str(error))}")
        raise typer.Exit(EXIT_USAGE) from error
    print_summary(console, summary)
    console.print(f"written to {escape(str(out))}")
    if not summary["verdict"]["trustworthy"]:
        raise typer.Exit(EXIT_NOT_TRUSTWORTHY)


def _progress_bar(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console)


class _Bars:
    """One bar per stage, made when the stage begins."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def update(self, stage: str, done: int, total: int) -> None:
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage)
        self._progress.update(self._tasks[stage], completed=done, total=total)


if __name__ == "__main__":
    app()
