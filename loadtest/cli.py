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


Endpoint = Annotated[str, typer.Option(help="Base URL, as http://127.0.0.1:8000")]
Model = Annotated[str, typer.Option(help="Model name in the requests")]
Out = Annotated[Path, typer.Option(help="New directory for summary.json, requests.jsonl and the logs")]
Rate = Annotated[float, typer.Option(help="Arrivals per second, whether or not the server keeps up")]
Context = Annotated[int, typer.Option(help="Prompt tokens of each request, chat template included")]
Output = Annotated[int, typer.Option(help="Output tokens of each request (max_tokens)")]
Duration = Annotated[float, typer.Option(help="Measured seconds of the schedule")]
Seed = Annotated[int, typer.Option(help="Draws arrivals and prompts")]
ArrivalsOption = Annotated[Arrivals, typer.Option(help="Arrival process")]
ApiKey = Annotated[str | None, typer.Option(envvar="FATHOM_API_KEY", help="Bearer token")]
TtftSlo = Annotated[float | None, typer.Option(help="Limit of TTFT from schedule, seconds")]
TpotSlo = Annotated[float | None, typer.Option(help="Limit of TPOT, seconds")]
E2eSlo = Annotated[float | None, typer.Option(help="Limit end to end from schedule, seconds")]
Warmup = Annotated[float, typer.Option(help="Seconds sent before the measured ones, not counted")]
MaxInFlight = Annotated[int | None, typer.Option(help="Cap of open requests; none by default")]
StopTimeout = Annotated[float, typer.Option(help="Seconds to wait for answers after the schedule")]
Processes = Annotated[int, typer.Option(help="Load processes; more than one for more than 100 streams")]
Salt = Annotated[str | None, typer.Option(help="Repeats the very bytes of an earlier run; see its config")]


@app.callback()
def load() -> None:
    """Load tests of any OpenAI-compatible endpoint."""


@app.command()
def run(
    *,
    endpoint: Endpoint,
    model: Model,
    out: Out,
    rate: Rate = 1.0,
    context: Context = 512,
    output: Output = 64,
    duration: Duration = 30.0,
    seed: Seed = 0,
    arrivals: ArrivalsOption = Arrivals.POISSON,
    api_key: ApiKey = None,
    ttft_slo: TtftSlo = None,
    tpot_slo: TpotSlo = None,
    e2e_slo: E2eSlo = None,
    warmup: Warmup = 0.0,
    max_in_flight: MaxInFlight = None,
    stop_timeout: StopTimeout = 60.0,
    processes: Processes = 1,
    salt: Salt = None,
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
