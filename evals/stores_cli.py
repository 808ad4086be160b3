"""`fathom eval rerun`, `merge` and `export`: what is done with stores that are there."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from evals.config import ConfigError
from evals.console import ask_all, refused, show, tell_failures
from evals.exits import EXIT_INTERRUPTED
from evals.export import TABLES, WRITERS, export_table
from evals.merge import Merged, merge_stores
from evals.rerun import Comparison, compare_stores, load_again, repeats_of

MAX_SHOWN = 20

Earlier = Annotated[Path, typer.Argument(help="The --out of an earlier run.")]
NewOut = Annotated[Path | None, typer.Option("--out", help="Directory of the new store. Default: DIRECTORY-again.")]
OtherEndpoint = Annotated[str | None, typer.Option("--endpoint", help="Default: that of then.")]
OtherData = Annotated[Path | None, typer.Option("--data", help="Where the dataset's files are now.")]
ApiKey = Annotated[str | None, typer.Option(envvar="FATHOM_API_KEY", help="Bearer token; never stored.")]
Target = Annotated[Path, typer.Argument(help="Directory of the store that takes all; it may hold some already.")]
Sources = Annotated[list[Path], typer.Argument(help="The --out of each run.")]
SameWeights = Annotated[
    bool, typer.Option("--same-weights", help="The endpoints serve the same weights, though none says by which digest.")
]
File = Annotated[Path, typer.Option("--to", help=f"The file; it ends in {', '.join(WRITERS)}.")]
TableName = Annotated[str, typer.Option("--table", help=f"One of {', '.join(TABLES)}.")]


def rerun(
    directory: Earlier,
    *,
    out: NewOut = None,
    endpoint: OtherEndpoint = None,
    data: OtherData = None,
    api_key: ApiKey = None,
) -> None:
    """Repeat the runs of a store as they were told, into another one, and compare the verdicts.

    Where documents, questions, prompts or retriever are no longer what they were, it says so and asks nothing.
    Exit codes are those of `fathom eval run`; other verdicts are no failure.
    """
    console = Console()
    target = out or directory.with_name(f"{directory.resolve().name}-again")
    try:
        if target.resolve() == directory.resolve():
            raise ConfigError(f"--out {target} is the store that is to be repeated")
        repeats = repeats_of(directory, target, endpoint=endpoint, data=data, api_key=api_key)
        # All of them before anything is asked.
        datasets = [load_again(repeat) for repeat in repeats]
        results = [
            result
            for repeat, dataset in zip(repeats, datasets, strict=True)
            for result in ask_all(console, [repeat.config], dataset, origin=repeat.origin, earlier=repeat.earlier)
        ]
        show(console, target)
        tell_comparison(console, compare_stores(directory, target))
    except ConfigError as error:
        raise refused(console, error) from error
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on where this one stood")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    tell_failures(console, [result for result in results if result.failed])


def tell_comparison(console: Console, found: Comparison) -> None:
    console.print(
        f"{found.both} samples were answered then and now: {found.same_verdicts} have the same verdict, "
        f"{found.same_answers} the same answer word by word, {found.same_documents} the same documents; "
        f"{found.only_before} were answered then only, {found.only_now} now only",
        soft_wrap=True,
    )
    for change in found.changed[:MAX_SHOWN]:
        console.print(f"  {escape(' '.join(map(str, change.key)))}: {change.before}, now {change.now}", soft_wrap=True)
    if len(found.changed) > MAX_SHOWN:
        console.print(f"  and {len(found.changed) - MAX_SHOWN} more")


def merge(out: Target, sources: Sources, *, same_weights: SameWeights = False) -> None:
    """Put the stores of several runs into one: shards of a run, or several models. All of it, or nothing.

    A sample that failed in one and was answered in another is the answered one; two answers to one sample are refused.
    """
    console = Console()
    try:
        for merged in merge_stores(out, sources, same_weights=same_weights):
            console.print(_told(merged), highlight=False, soft_wrap=True)
        show(console, out)
    except ConfigError as error:
        raise refused(console, error) from error


def _told(merged: Merged) -> str:
    rows = [f"{count} {escape(table)}" for table, count in merged.added.items() if count]
    known = sum(merged.known.values())
    return f"{escape(str(merged.source))}: {', '.join(rows) or 'nothing new'}; {known} rows were there already"


def export(directory: Earlier, *, to: File, table: TableName = "samples") -> None:
    """Write a table of a store for other tools."""
    console = Console()
    try:
        console.print(f"{export_table(directory, to, table):,} rows in {escape(str(to))}", highlight=False)
    except ConfigError as error:
        raise refused(console, error) from error
