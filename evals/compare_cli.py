"""`fathom eval compare`: two models, or two runs of one, on the same questions."""

from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from evals import compare as comparing
from evals.compare_page import write_page
from evals.config import ConfigError
from evals.console import refused
from evals.whole_files import write_json

COMPARE_FILE = "compare.json"
First = Annotated[Path, typer.Argument(metavar="A", help="The --out of a run.")]
Second = Annotated[Path | None, typer.Argument(metavar="[B]", help="That of another; without it two models of A.")]
Names = Annotated[
    str | None, typer.Option("--models", help="Of A and of B, as m1,m2; one name stands for both. Needed if several.")
]
PairBy = Annotated[
    comparing.Pairing,
    typer.Option("--pair", help="budget: samples of the same budget; documents: those with the same documents."),
]
Out = Annotated[Path | None, typer.Option(help=f"Directory for {COMPARE_FILE}. Default: A.")]


def compare(a: First, b: Second = None, *, models: Names = None, pair: PairBy = "budget", out: Out = None) -> None:
    """Compare B with A, question by question: outcomes with intervals and exact tests, and the time to a first token.

    Differences are B - A.
    """
    console = Console()
    try:
        first, second = choose(a, b, models)
        found = comparing.compare(first, second, pair)
        file = write(found, out or a)
        page = write_page(out or a, first, second, found)
    except ConfigError as error:
        raise refused(console, error) from error
    show(console, found)
    console.print(f"comparison  {file}\npage        {page}", highlight=False, soft_wrap=True)


def choose(a: Path, b: Path | None, models: str | None) -> tuple[comparing.Side, comparing.Side]:
    """Raises:
    ConfigError: it is not clear which two are to be compared.
    """
    names = models.split(",") if models else []
    if len(names) > 2 or (b is None and len(names) != 2):
        raise ConfigError("--models: one directory needs two names with a comma between them, two at most two")
    sides = (a, names[0] if names else None), (b or a, names[-1] if names else None)
    first, second = (comparing.read_side(directory, model, option="--models") for directory, model in sides)
    if first.directory.resolve() == second.directory.resolve() and first.model == second.model:
        raise ConfigError(f"--models: {first.model} is compared with itself")
    return first, second


def write(found: Mapping[str, Any], directory: Path) -> Path:
    """Raises:
    ConfigError: it cannot be written.
    """
    file = directory / COMPARE_FILE
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_json(file, found)
    except OSError as error:
        raise ConfigError(f"--out {directory} cannot be written: {error}") from error
    return file


def show(console: Console, found: Mapping[str, Any]) -> None:
    for side in ("a", "b"):
        console.print(f"{side}: {escape(found[side]['model'])} in {escape(found[side]['directory'])}", highlight=False)
    for dataset, settings in found["settings"].items():
        for name, values in settings.items():
            console.print(
                f"{escape(dataset)}: {escape(name)} is {values['a']} in a, {values['b']} in b", soft_wrap=True
            )
    key = ("dataset", "condition", "permission")
    for names, points in groupby(found["points"], key=lambda point: [point[name] for name in key]):
        console.print(_table(", ".join(map(escape, names)), list(points)))
    console.print(
        "Shares and differences (b - a) in %, with 95 % intervals; p: exact, after Holm's correction for all points."
        " TTFT: median of b / median of a.",
        highlight=False,
    )
    for line in remarks(found):
        console.print(line, soft_wrap=True, highlight=False)


def remarks(found: Mapping[str, Any]) -> list[str]:
    """What a reader must know of the pairs."""
    if all(point["same_documents"] == 1 for point in found["points"]):
        return ["All pairs were asked with the same documents."]
    least = min(point["same_documents"] for point in found["points"])
    return [
        f"Pairs are of one question, but not always of the same documents: in the worst point {100 * least:.0f} % are."
        " Budgets in tokens are those of each model's own tokenizer; with --unit documents both get the same, and"
        " --pair documents leaves out all other pairs."
    ]


def _table(title: str, points: list[Mapping[str, Any]]) -> Table:
    """Within 80 columns; compare.json and the page have the other outcomes, too."""
    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 0, 0, 1)
    )
    for heading in ("budget", "pairs", "tokens a, b", "halluc. a, b", "difference", "p", "TTFT b / a"):
        table.add_column(heading, justify="right", no_wrap=True)
    for point in points:
        wrong = point["hallucinated"]
        table.add_row(
            str(point["budget"]),
            str(point["n_pairs"]),
            ", ".join(dict.fromkeys(_number(point["prompt_tokens"][side]) for side in ("a", "b"))),
            ", ".join("-" if wrong[side] is None else f"{100 * wrong[side]:.0f}" for side in ("a", "b")),
            _difference(wrong),
            "-" if wrong["p_adjusted"] is None else f"{wrong['p_adjusted']:.3f}",
            _ratio(point["ttft"]),
        )
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def _difference(found: Mapping[str, Any]) -> str:
    if found["difference"] is None:
        return "-"
    interval = "" if found["low"] is None else f" [{100 * found['low']:+.0f} {100 * found['high']:+.0f}]"
    return f"{100 * found['difference']:+.1f}{interval}"


def _ratio(found: Mapping[str, Any]) -> str:
    if found["ratio"] is None:
        return "-"
    interval = "" if found["low"] is None else f" [{found['low']:.2f} {found['high']:.2f}]"
    return f"{found['ratio']:.2f}{interval}"
