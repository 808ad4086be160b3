"""`fathom eval judge`: a second grader over the stored samples of a run."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from evals.client import open_session
from evals.config import ConfigError, RunStoppedError
from evals.exits import EXIT_CONFIG, EXIT_FAILED_SAMPLES, EXIT_INTERRUPTED
from evals.judging.cases import Judge
from evals.judging.endpoint import EndpointJudge, JudgeConfig
from evals.judging.nli import NliJudge
from evals.judging.prompts import KINDS
from evals.judging.store_run import Progress, Tally, judge_store
from evals.store import FILE_NAME, Store

KEY_VARIABLE = "FATHOM_JUDGE_API_KEY"
Directory = Annotated[Path, typer.Argument(help="The --out of earlier runs.")]
JudgeUrl = Annotated[str | None, typer.Option("--judge", help="Base URL of the endpoint of a model that judges.")]
JudgeModel = Annotated[str | None, typer.Option(help="The model that judges.")]
KindOption = Annotated[
    str,
    typer.Option(help=f"{', '.join(KINDS)}: by the accepted answers, or claim by claim against the documents."),
]
Nli = Annotated[Path | None, typer.Option(help="In place of an endpoint: directory of a local NLI model.")]
Concurrency = Annotated[int, typer.Option(help="Samples judged at once.")]
Limit = Annotated[int | None, typer.Option(help="Most samples to judge now.")]
ApiKey = Annotated[str | None, typer.Option(envvar=KEY_VARIABLE, help="Bearer token for the judge; never stored.")]


def judge(
    directory: Directory,
    *,
    judge: JudgeUrl = None,
    judge_model: JudgeModel = None,
    kind: KindOption = "answer",
    nli: Nli = None,
    concurrency: Concurrency = 4,
    limit: Limit = None,
    api_key: ApiKey = None,
) -> None:
    """Judge the stored samples of a run, each once; `fathom eval report` shows it beside the lexical verdicts.

    Exit codes: 0 = all judged; 2 = wrong options, or the judge went away; 3 = some have no verdict, the same command
    judges them again.
    """
    console = Console()
    try:
        if limit is not None and limit <= 0:
            raise ConfigError(f"--limit must be above 0, got {limit}")
        if not (directory / FILE_NAME).is_file():
            raise ConfigError(f"{directory} has no {FILE_NAME}; it is not the --out of a run")
        choice = chosen(judge, judge_model, kind=kind, nli=nli, concurrency=concurrency, api_key=api_key)
        with Store(directory) as store:
            name, tally = asyncio.run(_judge_all(console, store, choice, limit))
    except ConfigError as error:
        console.print(f"[bold red]error[/bold red]: {escape(str(error))}", soft_wrap=True)
        if isinstance(error, RunStoppedError):
            console.print("what was judged is stored; the same command goes on where this one stood")
        raise typer.Exit(EXIT_CONFIG) from error
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on where this one stood")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    _tell(console, name, tally)


def chosen(
    judge: str | None, judge_model: str | None, *, kind: str, nli: Path | None, concurrency: int, api_key: str | None
) -> JudgeConfig | Path:
    """An endpoint's model, or the directory of a local one.

    Raises:
        ConfigError: both are given, or half of one.
    """
    if nli is None:
        return JudgeConfig.checked(judge, judge_model, kind=kind, concurrency=concurrency, api_key=api_key)
    if judge is not None or judge_model is not None:
        raise ConfigError("--nli and --judge are two judges: give one of them")
    return nli


@contextlib.asynccontextmanager
async def opened(choice: JudgeConfig | Path, console: Console) -> AsyncIterator[Judge]:
    """Raises:
    ConfigError: it is not there.
    """
    if isinstance(choice, Path):
        yield NliJudge(choice)
        return
    async with open_session(choice.requests) as session:
        judge = EndpointJudge(session, choice)
        await judge.check()
        yield judge
        for change in judge.dialect.changes:
            console.print(escape(f"{choice.model}: {change}"), soft_wrap=True)


async def _judge_all(
    console: Console, store: Store, choice: JudgeConfig | Path, limit: int | None
) -> tuple[str, Tally]:
    async with opened(choice, console) as judge:
        with counting(console, judge.name) as progress:
            tally = await judge_store(store, judge, concurrency=at_once(choice), limit=limit, progress=progress)
        return judge.name, tally


def at_once(choice: JudgeConfig | Path) -> int:
    """A local model has the whole machine for each."""
    return 1 if isinstance(choice, Path) else choice.concurrency


@contextlib.contextmanager
def counting(console: Console, name: str) -> Iterator[Progress]:
    """A bar that says how many are judged."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=console) as bar:
        task = bar.add_task(escape(name), total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _tell(console: Console, name: str, tally: Tally) -> None:
    console.print(
        escape(
            f"{name}: {tally.judged} judged now, {tally.known} before, {tally.left_out} have nothing to judge "
            "(no answer, or no documents)"
        ),
        soft_wrap=True,
    )
    if tally.failed:
        console.print(f"[bold red]{tally.failed} have no verdict[/bold red]; the same command judges them again")
        console.print(f"the first error: {escape(tally.first_error or '')}", soft_wrap=True)
        raise typer.Exit(EXIT_FAILED_SAMPLES)
