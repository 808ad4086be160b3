"""What the report's charts have in common: their axes, dots that link to samples, and panels."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import altair as alt

from evals.report.labels import PERMISSION_LABELS
from evals.report.svg import LINK_BASE

Series = Mapping[str, Any]
Chart = alt.Chart | alt.LayerChart | alt.FacetChart
WIDTH = 860


def place_of(one: Series, place: int, figure: str) -> dict[str, Any]:
    """What every row of a chart has: whose it is, where it stands, what it says and what it links to."""
    point = one["points"][place]
    return {
        "model": one["model"],
        "prompt_tokens": point["prompt_tokens_mean"],
        "budget": point["budget"],
        "label": f"{one['model']}, {budget_text(one, point['budget'])}: {figure}",
        "link": LINK_BASE + one["anchors"][place],
    }


def budget_text(one: Series, budget: int) -> str:
    return f"{budget:,} documents" if one.get("unit") == "documents" else f"{budget:,} tokens of documents"


def uses_prompt_tokens(series: Iterable[Series]) -> bool:
    """Whether every point has a measured context length; else the budget must stand for it."""
    return all(point["prompt_tokens_mean"] is not None for one in series for point in one["points"])


def x_axis(series: Sequence[Series], *, num_panels: int) -> alt.X:
    if uses_prompt_tokens(series):
        means = [point["prompt_tokens_mean"] for one in series for point in one["points"]]
        ticks = _powers_of_two(min(means), max(means), step=1 if num_panels < 3 else 2)
        scale = alt.Scale(type="log", base=2, nice=False, padding=8)
        return alt.X(
            "prompt_tokens:Q",
            title="context length, tokens",
            scale=scale,
            axis=alt.Axis(values=ticks, format=",d", labelOverlap="greedy"),
        )
    budgets = sorted({point["budget"] for one in series for point in one["points"]})
    # Logarithmic from the smallest budget on, and linear down to none at all.
    scale = alt.Scale(type="symlog", constant=max(1, min(filter(None, budgets), default=1)), nice=False, padding=8)
    axis = alt.Axis(values=budgets, format=",d", labelOverlap="greedy")
    return alt.X("budget:Q", title=budget_title(series), scale=scale, axis=axis)


def budget_title(series: Sequence[Series]) -> str:
    counted = "documents" if any(one.get("unit") == "documents" for one in series) else "tokens"
    return f"budget for documents, {counted}"


def share_axis(field: str, title: str | None, *, num_ticks: int = 5) -> alt.Y:
    scale = alt.Scale(domain=[0, 1])
    return alt.Y(f"{field}:Q", title=title, scale=scale, axis=alt.Axis(format="%", tickCount=num_ticks))


def cost_axis(rows: Sequence[Mapping[str, Any]], title: str, field: str = "value") -> alt.Y:
    """Logarithmic."""
    values = [row[field] for row in rows]
    axis = alt.Axis(format="~g", values=_one_two_five(min(values), max(values)))
    return alt.Y(f"{field}:Q", title=title, scale=alt.Scale(type="log", nice=False, padding=12), axis=axis)


def _powers_of_two(low: float, high: float, *, step: int) -> list[int]:
    """Every `step`-th power within the range, counted down from the largest, whose label matters most."""
    powers = [power for power in (2**exponent for exponent in range(31)) if low <= power <= high]
    return powers[::-1][::step][::-1]


def _one_two_five(low: float, high: float) -> list[float]:
    """The marks 1, 2, 5, 10 ... around a range; powers of ten alone where that would be many."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    steps = (1, 2, 5) if last - first <= 3 else (1,)
    return [float(f"{step}e{exponent}") for exponent in range(first, last + 1) for step in steps]


def dots(x: alt.X, y: alt.Y, colour: alt.Color) -> alt.Chart:
    """A dot for each point, which links to its samples."""
    marks = alt.Chart().mark_point(filled=True, size=55, opacity=1)
    linked: alt.Chart = marks.encode(
        x=x, y=y, color=colour, href=alt.Href("link:N"), description=alt.Description("label:N")
    )
    return linked


def colour_of(field: str, colours: Mapping[str, str]) -> alt.Color:
    return alt.Color(f"{field}:N", scale=alt.Scale(domain=list(colours), range=list(colours.values())))


def permission_panels(series: Sequence[Series]) -> list[str]:
    present = {one["permission"] for one in series}
    return [label for permission, label in PERMISSION_LABELS.items() if permission in present]


def column_of(panels: Sequence[str]) -> alt.Column:
    header = alt.Header(title=None, labelFontSize=13, labelFontWeight=600)
    return alt.Column("panel:N", sort=list(panels), header=header)


def panel_width(num_panels: int) -> int:
    return (WIDTH - 30 * (num_panels - 1)) // num_panels if num_panels > 1 else 560
