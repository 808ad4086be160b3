"""The summary of one run as a person reads it in a terminal."""

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

LABELS = {
    "ttft_s": "TTFT",
    "ttft_from_schedule_s": "TTFT, scheduled",
    "itl_s": "ITL",
    "tpot_s": "TPOT",
    "e2e_s": "e2e",
    "e2e_from_schedule_s": "e2e, scheduled",
}


def print_summary(console: Console, summary: dict[str, Any]) -> None:
    """Counts, latencies, goodput, the client's self-check, the formulas, the verdict."""
    requests = summary["requests"]
    console.print(
        f"[bold]{escape(summary['model'])}[/bold] at {escape(summary['endpoint'])}: "
        f"{requests['dispatched'] + requests['lost']} measured requests, {requests['completed']} completed, "
        f"{requests['failed']} failed, {requests['unfinished']} unfinished"
    )
    for error in summary["errors"]:
        console.print(f"  [red]{error['n']} x {escape(error['kind'])}[/red]: {escape(error['example'] or '')}")
    console.print(_latency_table(summary))
    console.print(_facts_table(summary))
    for name, formula in summary["formulas"].items():
        console.print(f"[dim]{name} = {escape(formula)}[/dim]", highlight=False)
    _print_verdict(console, summary["verdict"])


def _latency_table(summary: dict[str, Any]) -> Table:
    caption = "scheduled: from the scheduled arrival; p99 all: failed requests are infinitely slow"
    table = Table(title="Latency, ms", title_justify="left", caption=caption, caption_justify="left")
    table.add_column("")
    for heading in ("p50", "p90", "p99", "mean", "n", "p99 all"):
        table.add_column(heading, justify="right")
    for name, label in LABELS.items():
        row = summary["latency"][name]
        done, everyone = row["completed"], row["with_failures"]
        cells = [_milliseconds(done[key]) for key in ("p50", "p90", "p99", "mean")]
        table.add_row(label, *cells, str(done["n"]), _worst(everyone))
    return table


def _worst(everyone: dict[str, Any] | None) -> str:
    if everyone is None or everyone["n"] == 0:
        return "-"
    return "failed" if everyone["p99"] is None else _milliseconds(everyone["p99"])


def _facts_table(summary: dict[str, Any]) -> Table:
    table = Table(show_header=False, box=None)
    client, tokens = summary["client"], summary["tokens"]
    rows = {
        "load": f"offered {_number(client['offered_rps'])}/s, achieved {_number(client['achieved_rps'])}/s,"
        f" completed {_number(summary['requests']['completed_rps'])}/s;"
        f" at most {client['max_open']} open, {client['max_queued']} queued",
        "goodput": _goodput(summary["slo"]),
        "tokens": f"prompt {_number(tokens['prompt']['mean'], 0)} ({tokens['counting']}),"
        f" output {_number(tokens['output']['mean'])}, {_number(tokens['output_per_s'])} output tokens/s",
        "client": f"dispatch lag p99 {_milliseconds(client['dispatch_lag_s']['p99'])} ms,"
        f" event loop lag p99 {_milliseconds(client['loop_lag_p99_s'])} ms,"
        f" CPU at most {_number(client['cpu_max'])} of a core",
    }
    for name, text in rows.items():
        table.add_row(f"[bold]{name}[/bold]", escape(text))
    return table


def _goodput(slo: dict[str, Any]) -> str:
    reached = slo["attainment"]
    if reached is None:
        return "-"
    limits = ", ".join(f"{name.removesuffix('_s')} <= {limit:g} s" for name, limit in slo["limits"].items() if limit)
    return (
        f"{reached['goodput_rps']:.2f}/s; {reached['good']} of {reached['n']} = {reached['fraction']:.1%}"
        f" ({reached['low']:.1%} to {reached['high']:.1%}) with {limits or 'no limit stated'}"
    )


def _print_verdict(console: Console, verdict: dict[str, Any]) -> None:
    if verdict["trustworthy"]:
        console.print("[bold green]trustworthy[/bold green]: the client kept its schedule and lost nothing")
    for reason in verdict["reasons"]:
        console.print(f"[bold red]not trustworthy[/bold red]: {escape(reason)}")
    for note in verdict["notes"]:
        console.print(f"[yellow]note[/yellow]: {escape(note)}")


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.1f}"


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
