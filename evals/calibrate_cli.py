"""`fathom eval calibrate`: how often the grader agrees with people, and what it says once that is set right."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from evals.config import ConfigError
from evals.scoring.calibration import (
    EVOUNA,
    LLMS,
    SYSTEMS,
    Judged,
    called_right,
    judged_answers,
    quality_of,
    write_quality,
)
from evals.stats.corrected import corrected_rate
from evals.stats.rates import Rate, rate

EXIT_CONFIG = 2
Data = Annotated[Path, typer.Option(help=f"Directory that has {EVOUNA} in it.")]
Out = Annotated[Path | None, typer.Option(help="File for what was measured, to correct other rates with.")]


def calibrate(*, data: Data, out: Out = None) -> None:
    """Grade answers that people have judged: the grader's sensitivity and specificity, by system and in all."""
    try:
        judged = judged_answers(data)
        quality = quality_of(judged, f"EVOUNA, {EVOUNA}")
        table = _table(judged)
        if out is not None:
            write_quality(out, quality)
    except (ConfigError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(EXIT_CONFIG) from error
    console = Console()
    console.print(table)
    console.print(
        "Sensitivity: right answers that are called so. Specificity: wrong ones that are not. Corrected: the grader's "
        "error set right by the other half of the questions. In brackets 95 % intervals."
    )
    if out is not None:
        console.print(f"written to {out}", highlight=False)


def _table(judged: Sequence[Judged]) -> Table:
    table = Table(title="the lexical grader beside people", title_justify="left", box=box.SIMPLE_HEAD)
    for heading in ("system", "answers", "error by people", "by the grader", "corrected", "sensitivity", "specificity"):
        table.add_column(heading, justify="left" if heading == "system" else "right")
    groups = {system: (system,) for system in SYSTEMS.values()}
    for name, systems in {**groups, "the four LLMs": LLMS, "all": tuple(SYSTEMS.values())}.items():
        table.add_row(name, *_cells([one for one in judged if one.system in systems]))
    return table


def _cells(judged: Sequence[Judged]) -> list[str]:
    quality = quality_of(judged, "")
    # Set right by others than themselves: else they would agree whatever the grader does.
    halves = [[one for one in judged if int(one.question_id[1:]) % 2 == half] for half in (0, 1)]
    found = corrected_rate(called_right(halves[0]), quality_of(halves[1], ""))
    corrected = "-" if found is None else f"{1 - found['rate']:.3f} [{1 - found['high']:.3f}, {1 - found['low']:.3f}]"
    return [
        f"{len(judged):,}",
        f"{sum(not one.right for one in judged) / len(judged):.3f}",
        f"{sum(not one.called_right for one in judged) / len(judged):.3f}",
        corrected,
        _share(rate(quality.right_called_right, quality.right)),
        _share(rate(quality.wrong_called_wrong, quality.wrong)),
    ]


def _share(found: Rate) -> str:
    return f"{found['rate']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"
