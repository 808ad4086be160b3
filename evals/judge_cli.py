"""`fathom eval judge`: a second grader over the stored samples of a run."""

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from evals.client import open_session
from evals.config import ConfigError, RunStoppedError
from evals.judging.cases import Judge
from evals.judging.endpoint import EndpointJudge, JudgeConfig
from evals.judging.nli import NliJudge
from evals.judging.prompts import KINDS
from evals.judging.store_run import Progress, Tally, judge_store
from evals.store import FILE_NAME, Store

EXIT_CONFIG, EXIT_FAILED, EXIT_INTERRUPTED = 2, 3, 130
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
        if nli is not None and (judge is not None or judge_model is not None):
            raise ConfigError("--nli and --judge are two judges: give one of them")
        with Store(directory) as store:
            if nli is not None:
                name, tally = asyncio.run(_judge_all(console, store, NliJudge(nli), concurrency=1, limit=limit))
            else:
                config = JudgeConfig.checked(judge, judge_model, kind=kind, concurrency=concurrency, api_key=api_key)
                name, tally = asyncio.run(_ask_endpoint(console, store, config, limit))
    except ConfigError as error:
        console.print(f"[bold red]error[/bold red]: {escape(str(error))}", soft_wrap=True)
        if isinstance(error, RunStoppedError):
            console.print("what was judged is stored; the same command goes on where this one stood")
        raise typer.Exit(EXIT_CONFIG) from error
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on where this one stood")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    _tell(console, name, tally)


async def _ask_endpoint(console: Console, store: Store, config: JudgeConfig, limit: int | None) -> tuple[str, Tally]:
    async with open_session(config.requests) as session:
        judge = EndpointJudge(session, config)
        await judge.check()
        found = await _judge_all(console, store, judge, concurrency=config.concurrency, limit=limit)
        for change in judge.dialect.changes:
            console.print(escape(f"{config.model}: {change}"), soft_wrap=True)
        return found


async def _judge_all(
    console: Console, store: Store, judge: Judge, *, concurrency: int, limit: int | None
) -> tuple[str, Tally]:
    with counting(console, judge.name) as progress:
        return judge.name, await judge_store(store, judge, concurrency=concurrency, limit=limit, progress=progress)


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
        raise typer.Exit(EXIT_FAILED)
