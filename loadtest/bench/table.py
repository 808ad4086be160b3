"""The results as a person reads them in a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from loadtest.bench.results import Results
from loadtest.bench.rivals import OURS
from loadtest.bench.workloads import Workload

NOTE = (
    "Medians over the runs. x: how many times faster ours is, median of the ratios within each run \\[lowest-highest]; "
    ">: stopped when it had taken so many times longer. !: its greedy tokens are not ours: it computes something else."
)


def results_table(rows: Sequence[Mapping[str, Any]], workloads: Sequence[Workload], contenders: Sequence[str]) -> Table:
    """One row for each figure, one column for each contender."""
    titles = {
        workload.name: workload.title.format(prompt=workload.prompt, requests=workload.requests)
        for workload in workloads
    }
    table = Table(caption=NOTE, caption_justify="left")
    for heading in ("model", "workload", "figure"):
        table.add_column(heading)
    for name in contenders:
        table.add_column(name, justify="right")
    cells = dict[tuple[str, str, str], dict[str, str]]()
    for row in rows:
        place = (
            f"{row['model']}\n{row['dtype']}",
            f"{row['workload']}\n{titles[row['workload']]}",
            f"{row['figure']}\n{row['unit']}",
        )
        cells.setdefault(place, {})[row["contender"]] = _cell(row)
    for place, found in cells.items():
        table.add_row(*place, *(found.get(name, "-") for name in contenders))
    return table


def print_remarks(console: Console, results: Results, absent: Mapping[str, str]) -> None:
    """Whether all computed the same, who failed, and who is absent."""
    for agreement in results.agreements:
        console.print(
            f"{agreement.model} {agreement.dtype}: {agreement.contender} gives "
            f"{agreement.same} of {agreement.of} of our greedy tokens"
        )
    for trouble in results.troubles:
        where = " ".join(filter(None, (trouble.model, trouble.dtype, trouble.workload)))
        console.print(f"{where}: [red]{trouble.contender}[/red] {escape(trouble.message)}")
    for name, reason in absent.items():
        console.print(f"absent: [yellow]{name}[/yellow]: {escape(reason)}")


def _cell(row: Mapping[str, Any]) -> str:
    if "cut_after_s" in row:
        return f"> {row['cut_after_s']:.0f} s\n> {row['at_least']:.1f} x"
    value = f"{row['median']:,.3g}" if row["median"] < 100 else f"{row['median']:,.0f}"
    if row["contender"] == OURS:
        return value
    value += "!" if "computes_something_else" in row else ""
    if "ratio" not in row:
        return value
    return f"{value}\n{row['ratio']:.2f} x \\[{row['ratio_low']:.2f}-{row['ratio_high']:.2f}]"
