"""Rows of results, and the tables that are made of them: for a terminal and, in Markdown, for docs/measurements/."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich.table import Table

from scripts.models_page import table

Kind = Literal["ceiling", "decode", "prefill", "attention"]


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement, or why there is none.

    Attributes:
        subject: a model, or what the ceiling is of. how: eager or captured, the size of chunks, or a backend.
        context: tokens remembered; the whole prompt in prefill. backends: what the rule gave the model.
        seconds: of one call, the median. spread: slowest less fastest, in medians.
        share: of the roofline: bytes_moved by the rate of copying, or operations by the rate of multiplying.
        seconds_with_python: of an attention call whose launches the GPU waits for, as without a CUDA graph.
        is_rule: whether the rule takes this backend. note: why nothing was measured; of a ceiling, before which parts.
    """

    kind: Kind
    subject: str
    how: str
    batch: int = 1
    context: int = 0
    backends: str = ""
    seconds: float | None = None
    spread: float | None = None
    tokens_per_s: float | None = None
    bytes_moved: int | None = None
    operations: int | None = None
    share: float | None = None
    seconds_with_python: float | None = None
    is_rule: bool = False
    note: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """A table that can be shown anywhere."""

    title: str
    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]

    def rich(self) -> Table:
        made = Table(title=self.title, title_justify="left")
        for column in self.head:
            made.add_column(column, overflow="fold")
        for row in self.rows:
            made.add_row(*row)
        return made

    def markdown(self) -> str:
        rows = [tuple(cell.replace("|", "\\|") for cell in row) for row in self.rows]
        return f"## {self.title}\n\n{table(self.head, rows)}"


def thousands(tokens: int) -> str:
    return f"{tokens >> 10}K" if tokens and tokens % 1024 == 0 else str(tokens)


def percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f}%"


def of_kind(rows: Iterable[Row], kind: Kind) -> list[Row]:
    return [row for row in rows if row.kind == kind]


def ceilings(rows: Sequence[Row]) -> Page:
    def rate(row: Row) -> str:
        assert row.seconds is not None
        if row.bytes_moved is not None:
            return f"{row.bytes_moved / row.seconds / 1e9:,.1f} GB/s"
        assert row.operations is not None
        return f"{row.operations / row.seconds / 1e12:,.2f} TFLOP/s"

    return Page(
        "Ceilings",
        ("what", "how", "rate", "spread", "measured before"),
        [(row.subject, row.how, rate(row), percent(row.spread), row.note) for row in rows if row.seconds is not None],
    )


def decoding(rows: Sequence[Row]) -> Page:
    def cells(row: Row) -> tuple[str, ...]:
        begin = (row.subject, row.how, str(row.batch), thousands(row.context))
        if row.seconds is None or row.tokens_per_s is None or row.bytes_moved is None:
            return *begin, "", "", "", "", row.note
        measured = (f"{1e3 * row.seconds:,.2f}", percent(row.spread), f"{row.tokens_per_s:,.0f}")
        return *begin, *measured, f"{row.bytes_moved / 1e9:,.3f}", percent(row.share)

    head = ("model", "how", "batch", "context", "ms a step", "spread", "tokens/s", "GB moved", "of the roofline")
    return Page("Decoding", head, [cells(row) for row in rows])


def prefill(rows: Sequence[Row]) -> Page:
    def cells(row: Row) -> tuple[str, ...]:
        begin = (row.subject, row.how, thousands(row.context))
        if row.seconds is None or row.tokens_per_s is None or row.operations is None:
            return *begin, "", "", "", "", row.note
        measured = (f"{1e3 * row.seconds:,.1f}", percent(row.spread), f"{row.tokens_per_s:,.0f}")
        return *begin, *measured, f"{row.operations / row.seconds / 1e12:,.3f}", percent(row.share)

    head = ("model", "how", "prompt", "ms", "spread", "tokens/s", "TFLOP/s", "of the matrix rate")
    return Page("Prefill, one sequence", head, [cells(row) for row in rows])


def attention(rows: Sequence[Row]) -> Page:
    """A backend in each row, microseconds per layer; whether the rule's is the fastest where all were measured."""
    fastest: dict[tuple[str, int, int], float] = {}
    for row in rows:
        if row.seconds is not None:
            cell = (row.subject, row.batch, row.context)
            fastest[cell] = min(fastest.get(cell, row.seconds), row.seconds)

    def cells(row: Row) -> tuple[str, ...]:
        begin = (row.subject, str(row.batch), thousands(row.context), row.how, "rule" if row.is_rule else "")
        if row.seconds is None or row.seconds_with_python is None:
            return *begin, "", "", "", row.note, ""
        over = row.seconds / fastest[row.subject, row.batch, row.context]
        times = (f"{1e6 * row.seconds:,.1f}", percent(row.spread), f"{1e6 * row.seconds_with_python:,.1f}")
        return *begin, *times, percent(row.share), f"{over:.2f}"

    head = (
        "model", "batch", "context", "backend", "", "us a layer", "spread", "with Python", "of the roofline",
        "over the fastest",
    )  # fmt: skip
    return Page("Attention of a decode step", head, [cells(row) for row in rows])


def backends(rows: Sequence[Row]) -> Page:
    found = dict.fromkeys((row.subject, row.backends) for row in rows if row.backends)
    return Page("Backends that the rule chose", ("model", "backends"), list(found))


def speed_pages(rows: Sequence[Row]) -> list[Page]:
    """Those tables for which there are rows."""
    pages = [
        ceilings(of_kind(rows, "ceiling")),
        backends(rows),
        decoding(of_kind(rows, "decode")),
        prefill(of_kind(rows, "prefill")),
        attention(of_kind(rows, "attention")),
    ]
    return [page for page in pages if page.rows]


LEGEND = """Models have random weights in published shapes, and caches full of random numbers. A time is the median of
repeated runs after a warm-up, on the device's clock; spread is the slowest run less the fastest, in medians. Bytes of a
step are counted: weights once, keys and values of the context once, recurrent states read and written. The roofline is
those bytes at the rate of the copy above; in prefill it is the counted operations at the rate of the product above.
Attention is timed with its launches queued beforehand, and, under "with Python", without."""


def markdown(about: dict[str, Any], pages: Sequence[Page]) -> str:
    facts = "\n".join(f"- {key}: {value}" for key, value in about.items())
    parts = [f"# Measurements on {about['device']}", facts, LEGEND, *(page.markdown() for page in pages)]
    return "\n\n".join(parts) + "\n"
