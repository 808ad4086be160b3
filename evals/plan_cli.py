"""`fathom eval plan`: how many questions a wanted certainty takes, before anything is asked."""

import math
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from evals.exits import EXIT_CONFIG
from evals.stats.power import design_effect, detectable_difference, questions_for_difference, questions_for_rate

HalfWidth = Annotated[float, typer.Option(help="Of the 95 % interval, as a share: 0.03 is plus or minus three points.")]
RateOption = Annotated[float, typer.Option(help="The rate that is expected.")]
Discordance = Annotated[
    float, typer.Option(help="Share of questions whose outcome is expected to differ between two budgets.")
]
ClusterSize = Annotated[float, typer.Option(help="Questions about one entity or article, on average.")]
Correlation = Annotated[float, typer.Option(help="Of errors within such a cluster, from 0 to 1.")]
Points = Annotated[int, typer.Option(help="Budgets times conditions times permissions times models.")]


def plan(
    *,
    half_width: HalfWidth = 0.03,
    rate: RateOption = 0.3,
    discordance: Discordance = 0.15,
    cluster_size: ClusterSize = 1.0,
    correlation: Correlation = 0.2,
    points: Points = 6,
) -> None:
    """How many questions a wanted half-width of intervals takes, and what difference these would show."""
    try:
        if cluster_size < 1 or not 0 <= correlation <= 1 or points < 1:
            raise ValueError("--cluster-size and --points must be at least 1, and --correlation from 0 to 1")
        needed = {
            "a rate": questions_for_rate(half_width, rate),
            "a paired difference": questions_for_difference(half_width, discordance),
        }
        factor = design_effect(cluster_size, correlation)
        table = Table(title=f"for ±{100 * half_width:g} points at 95 %", title_justify="left", box=box.SIMPLE_HEAD)
        for heading in ("of", "questions", "requests", "shows differences from"):
            table.add_column(heading, justify="left" if heading == "of" else "right")
        for what, alone in needed.items():
            num_questions = math.ceil(alone * factor)
            shown = detectable_difference(max(1, round(num_questions / factor)), discordance)
            table.add_row(what, f"{num_questions:,}", f"{num_questions * points:,}", f"{100 * shown:.1f} points")
    except ValueError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(EXIT_CONFIG) from error
    console = Console()
    console.print(table)
    console.print("shown with a power of 80 % at 5 %, one comparison; Holm's correction for several asks for more")
