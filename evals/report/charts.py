"""The report's charts as inline SVG: no script, no network, and the page's own text colour, light or dark.

Each function takes the series of one dataset, as they stand in the summary, each with the "anchors" of its points.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import altair as alt
from markupsafe import Markup

from evals.report.svg import LINK_BASE, to_svg

Series = Mapping[str, Any]

PERMISSION_LABELS = {"must_answer": "told always to answer", "may_abstain": "allowed to say “I don't know”"}
OUTCOME_COLOURS = {
    "correct": "#2f9e6e",
    "abstained": "#9aa3ad",
    "hallucinated: read in a document": "#f0a13a",
    "hallucinated: found nowhere": "#d1495b",
    "no verdict": "#5b6470",
}
_GOLD_LABELS = {
    "present": "supporting documents in the context",
    "absent": "a supporting document missing",
    "unanswerable": "no document has the answer",
}
# Told apart by eyes with any colour vision, on white and on near-black (after Okabe and Ito).
_MODEL_COLOURS = ["#2b83ba", "#e07b1a", "#1f9e77", "#c0569b", "#8a7cc8", "#b39b00", "#d1495b", "#6c757d"]
_WIDTH = 860


def hallucination_chart(series: Sequence[Series]) -> Markup | None:
    """Hallucination rate with its interval against context length; a panel for each permission."""
    rows = [
        {
            **_place(one, place),
            **point["hallucinated"],
            "panel": PERMISSION_LABELS[one["permission"]],
        }
        for one in series
        for place, point in enumerate(one["points"])
        if point["hallucinated"]["rate"] is not None
    ]
    present = {one["permission"] for one in series}
    panels = [label for permission, label in PERMISSION_LABELS.items() if permission in present]
    return _rates(rows, series, panels, height=300)


def gold_chart(series: Sequence[Series]) -> Markup | None:
    """The same rate, split by whether the context held what the answer needs."""
    rows = [
        {**_place(one, place), **part["hallucinated"], "panel": _GOLD_LABELS[name]}
        for one in series
        for place, point in enumerate(one["points"])
        for name, part in (*point["gold"].items(), ("unanswerable", point["unanswerable"]))
        if part["hallucinated"]["rate"] is not None
    ]
    seen = {row["panel"] for row in rows}
    return _rates(rows, series, [label for label in _GOLD_LABELS.values() if label in seen], height=210)


def ttft_chart(series: Sequence[Series]) -> Markup | None:
    """Time to first token: median as a line, 99th percentile dashed, both axes logarithmic."""
    rows = [
        {**_place(one, place), "value": point["ttft_s"][name] * 1000, "line": name}
        for one in series
        for place, point in enumerate(one["points"])
        for name in ("p50", "p99")
        if point["ttft_s"][name]
    ]
    return _costs(rows, series, "time to first token, ms", ["p50", "p99"])


def memory_chart(series: Sequence[Series]) -> Markup | None:
    """Mean cache of one sequence, both axes logarithmic."""
    rows = [
        {**_place(one, place), "value": point["cache_bytes"]["mean"] / 2**20, "line": "mean"}
        for one in series
        for place, point in enumerate(one["points"])
        if point["cache_bytes"]["mean"]
    ]
    return _costs(rows, series, "cache of one sequence, MiB", ["mean"])


def outcome_chart(series: Sequence[Series]) -> Markup | None:
    """What became of the questions at each budget, as stacked shares of all that were asked."""
    rows = [
        {
            "budget": point["budget"],
            "model": one["model"],
            "panel": PERMISSION_LABELS[one["permission"]],
            "outcome": outcome,
            "order": order,
            "share": count / point["n"],
        }
        for one in series
        for point in one["points"]
        for order, (outcome, count) in enumerate(_outcomes(point).items())
        if count
    ]
    if not rows:
        return None
    panels = [label for label in PERMISSION_LABELS.values() if any(row["panel"] == label for row in rows)]
    colours = {name: colour for name, colour in OUTCOME_COLOURS.items() if any(row["outcome"] == name for row in rows)}
    bars = (
        alt.Chart(alt.InlineData(values=rows))
        .mark_bar()
        .encode(
            x=alt.X("budget:O", title="budget for documents, tokens", axis=alt.Axis(labelAngle=0)),
            y=alt.Y("share:Q", title=None, scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format="%", tickCount=3)),
            color=_colour("outcome", list(colours), list(colours.values())),
            order=alt.Order("order:Q"),
        )
        .properties(width=_panel_width(len(panels)), height=130)
    )
    header = alt.Header(title=None, labelFontSize=13, labelFontWeight=600)
    column = alt.Column("panel:N", sort=panels, header=header)
    models = list(dict.fromkeys(one["model"] for one in series))
    return to_svg(bars.facet(column=column, row=alt.Row("model:N", sort=models, header=header)), "outcomes")


def uses_prompt_tokens(series: Iterable[Series]) -> bool:
    """Whether every point has a measured context length; else the budget must stand for it."""
    return all(point["prompt_tokens_mean"] is not None for one in series for point in one["points"])


def _outcomes(point: Mapping[str, Any]) -> dict[str, int]:
    scored = point["n"] - point["unscored"]
    counts = {name: round((point[name]["rate"] or 0) * scored) for name in ("correct", "abstained")}
    kinds = point["hallucination_kinds"]
    values = (*counts.values(), kinds["distractor"], kinds["fabricated"], point["unscored"])
    return dict(zip(OUTCOME_COLOURS, values, strict=True))


def _place(one: Series, place: int) -> dict[str, Any]:
    """What every row of a chart has: whose it is, where it stands, what it links to."""
    point = one["points"][place]
    return {
        "model": one["model"],
        "prompt_tokens": point["prompt_tokens_mean"],
        "budget": point["budget"],
        "link": LINK_BASE + one["anchors"][place],
    }


def _x(series: Sequence[Series]) -> alt.X:
    if uses_prompt_tokens(series):
        means = [point["prompt_tokens_mean"] for one in series for point in one["points"]]
        ticks = _powers_of_two(min(means), max(means))
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
    return alt.X("budget:Q", title="budget for documents, tokens", scale=scale, axis=axis)


def _powers_of_two(low: float, high: float) -> list[int]:
    powers = [2**exponent for exponent in range(31)]
    return [power for power in powers if low <= power <= high]


def _rates(rows: list[dict[str, Any]], series: Sequence[Series], panels: list[str], *, height: int) -> Markup | None:
    if not rows:
        return None
    x, colour = _x(series), _model_colour(series)
    y = alt.Y("rate:Q", title="hallucinated", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format="%", tickCount=5))
    width = _panel_width(len(panels))
    band = alt.Chart().mark_area(opacity=0.16).encode(x=x, y=alt.Y("low:Q"), y2="high:Q", color=colour)
    line = alt.Chart().mark_line(strokeWidth=2.2).encode(x=x, y=y, color=colour)
    facet = alt.Column("panel:N", sort=panels, header=alt.Header(title=None, labelFontSize=13, labelFontWeight=600))
    layers = alt.layer(band, line, _points(x, y, colour), data=alt.InlineData(values=rows))
    layers = layers.properties(width=width, height=height)
    return to_svg(layers.facet(column=facet), "rates")


def _costs(rows: list[dict[str, Any]], series: Sequence[Series], title: str, lines: list[str]) -> Markup | None:
    if not rows:
        return None
    x, colour = _x(series), _model_colour(series)
    y = alt.Y("value:Q", title=title, scale=alt.Scale(type="log"), axis=alt.Axis(format="~g", tickCount=5))
    dash = alt.StrokeDash(
        "line:N",
        title=None,
        scale=alt.Scale(domain=lines, range=[[1, 0], [3, 3]][: len(lines)]),
        legend=alt.Legend() if len(lines) > 1 else None,
    )
    line = alt.Chart().mark_line(strokeWidth=2.2).encode(x=x, y=y, color=colour, strokeDash=dash)
    points = _points(x, y, colour).transform_filter(alt.FieldEqualPredicate(field="line", equal=lines[0]))
    layers = alt.layer(line, points, data=alt.InlineData(values=rows)).properties(width=_panel_width(2), height=250)
    return to_svg(layers, "costs")


def _points(x: alt.X, y: alt.Y, colour: alt.Color) -> alt.Chart:
    """A dot for each point, which links to its samples."""
    dots = alt.Chart().mark_point(filled=True, size=55, opacity=1)
    linked: alt.Chart = dots.encode(x=x, y=y, color=colour, href=alt.Href("link:N"))
    return linked


def _model_colour(series: Sequence[Series]) -> alt.Color:
    models = sorted({one["model"] for one in series})
    return _colour("model", models, [_MODEL_COLOURS[i % len(_MODEL_COLOURS)] for i in range(len(models))])


def _colour(field: str, domain: list[str], colours: list[str]) -> alt.Color:
    return alt.Color(f"{field}:N", title=None, sort=domain, scale=alt.Scale(domain=domain, range=colours))


def _panel_width(num_panels: int) -> int:
    return (_WIDTH - 30 * (num_panels - 1)) // num_panels if num_panels > 1 else 560
