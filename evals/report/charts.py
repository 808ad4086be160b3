"""The report's charts as inline SVG: no script, no network, and the page's own text colour, light or dark.

Each function takes the series of one dataset, as they stand in the summary, each with the "anchors" of its points.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import altair as alt
from markupsafe import Markup

from evals.report.svg import LINK_BASE, to_svg
from evals.summary import data_size, milliseconds, share_with_interval

Series = Mapping[str, Any]

PERMISSION_LABELS = {"must_answer": "told always to answer", "may_abstain": "allowed to say “I don't know”"}
OUTCOME_COLOURS = {
    "correct": "#2f9e6e",
    "abstained": "#9aa3ad",
    "hallucinated: read in a document": "#f0a13a",
    "hallucinated: found nowhere": "#d1495b",
    "hallucinated: said by the altered document": "#8a5fc8",
    "no verdict": "#5b6470",
}
CONDITION_LABELS = {
    "closed": "without documents",
    "oracle": "what supports the answer, and nothing else",
    "natural": "retrieved documents",
    "gold+distractors": "what supports the answer, among documents that do not",
    "no-gold": "no document with the answer",
    "conflict": "what supports the answer, and a document that contradicts it",
}
_GOLD_LABELS = {
    "present": "evidence in the context",
    "absent": "evidence missing",
    "unanswerable": "no document has the answer",
}
# Told apart by eyes with any colour vision, on white and on near-black (after Okabe and Ito).
_MODEL_COLOURS = ["#2b83ba", "#e07b1a", "#1f9e77", "#c0569b", "#8a7cc8", "#b39b00", "#d1495b", "#6c757d"]
_WIDTH = 860


def hallucination_chart(series: Sequence[Series]) -> Markup | None:
    """Hallucination rate with its interval against context length; a panel for each permission."""
    rows = [
        _rate_row(one, place, point["hallucinated"], PERMISSION_LABELS[one["permission"]])
        for one in series
        for place, point in enumerate(one["points"])
        if point["hallucinated"]["rate"] is not None
    ]
    return _rates(rows, series, _permission_panels(series), height=300)


def gold_chart(series: Sequence[Series]) -> Markup | None:
    """The same rate, split by whether the context held what the answer needs."""
    rows = [
        _rate_row(one, place, part["hallucinated"], _GOLD_LABELS[name])
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
        _place(one, place, f"{milliseconds(point['ttft_s'][name])} ms")
        | {"value": point["ttft_s"][name] * 1000, "line": name}
        for one in series
        for place, point in enumerate(one["points"])
        for name in ("p50", "p99")
        if point["ttft_s"][name]
    ]
    return _costs(rows, series, "time to first token, ms", ["p50", "p99"])


def memory_chart(series: Sequence[Series]) -> Markup | None:
    """Mean cache of one sequence, both axes logarithmic."""
    rows = [
        _place(one, place, data_size(size)) | {"value": size / 2**20, "line": "mean"}
        for one in series
        for place, point in enumerate(one["points"])
        if (size := point["cache_bytes"]["mean"])
    ]
    return _costs(rows, series, "cache of one sequence, MiB", ["mean"])


def outcome_charts(series: Sequence[Series]) -> dict[str, Markup]:
    """For each model what became of the questions at each budget, as stacked shares of all that were asked."""
    return {model: _outcome_chart([one for one in series if one["model"] == model]) for model in model_colours(series)}


def _outcome_chart(series: Sequence[Series]) -> Markup:
    rows = [
        {
            "budget": point["budget"],
            "panel": PERMISSION_LABELS[one["permission"]],
            "outcome": outcome,
            "order": order,
            "share": count / point["n"],
            "label": f"{point['budget']:,} tokens, {outcome}: {count} of {point['n']}",
            "link": LINK_BASE + one["anchors"][place],
        }
        for one in series
        for place, point in enumerate(one["points"])
        for order, (outcome, count) in enumerate(_outcomes(point).items())
        if count
    ]
    panels = _permission_panels(series)
    bars = (
        alt.Chart(alt.InlineData(values=rows))
        .mark_bar()
        .encode(
            x=alt.X("budget:O", title="budget for documents, tokens", axis=alt.Axis(labelAngle=0)),
            y=alt.Y("share:Q", title=None, scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format="%", tickCount=3)),
            color=_colour("outcome", OUTCOME_COLOURS),
            order=alt.Order("order:Q"),
            href=alt.Href("link:N"),
            description=alt.Description("label:N"),
        )
        .properties(width=_panel_width(len(panels)), height=120)
    )
    return to_svg(bars.facet(column=_column(panels)), "outcomes")


def model_colours(series: Iterable[Series]) -> dict[str, str]:
    """A colour for each model, the same in all charts."""
    models = sorted({one["model"] for one in series})
    return {model: _MODEL_COLOURS[place % len(_MODEL_COLOURS)] for place, model in enumerate(models)}


def outcome_colours(series: Iterable[Series]) -> dict[str, str]:
    """Of what became of the questions; what an altered document makes of them only where there is one."""
    conflict = any(one["condition"] == "conflict" for one in series)
    return {name: colour for name, colour in OUTCOME_COLOURS.items() if conflict or "altered" not in name}


def uses_prompt_tokens(series: Iterable[Series]) -> bool:
    """Whether every point has a measured context length; else the budget must stand for it."""
    return all(point["prompt_tokens_mean"] is not None for one in series for point in one["points"])


def _outcomes(point: Mapping[str, Any]) -> dict[str, int]:
    counts = {name: round((point[name]["rate"] or 0) * point[name]["n"]) for name in ("correct", "abstained")}
    kinds = point["hallucination_kinds"]
    wrong = kinds["distractor"], kinds["fabricated"], kinds["conflict"]
    values = (*counts.values(), *wrong, point["unscored"])
    return dict(zip(OUTCOME_COLOURS, values, strict=True))


def _place(one: Series, place: int, figure: str) -> dict[str, Any]:
    """What every row of a chart has: whose it is, where it stands, what it says and what it links to."""
    point = one["points"][place]
    return {
        "model": one["model"],
        "prompt_tokens": point["prompt_tokens_mean"],
        "budget": point["budget"],
        "label": f"{one['model']}, {point['budget']:,} tokens of documents: {figure}",
        "link": LINK_BASE + one["anchors"][place],
    }


def _rate_row(one: Series, place: int, share: Mapping[str, Any], panel: str) -> dict[str, Any]:
    return {**_place(one, place, f"{share_with_interval(share)} % of {share['n']}"), **share, "panel": panel}


def _x(series: Sequence[Series], *, num_panels: int) -> alt.X:
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
    return alt.X("budget:Q", title="budget for documents, tokens", scale=scale, axis=axis)


def _powers_of_two(low: float, high: float, *, step: int) -> list[int]:
    """Every `step`-th power within the range, counted down from the largest, whose label matters most."""
    powers = [power for power in (2**exponent for exponent in range(31)) if low <= power <= high]
    return powers[::-1][::step][::-1]


def _one_two_five(low: float, high: float) -> list[float]:
    """The marks 1, 2, 5, 10 ... around a range; powers of ten alone where that would be many."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    steps = (1, 2, 5) if last - first <= 3 else (1,)
    return [float(f"{step}e{exponent}") for exponent in range(first, last + 1) for step in steps]


def _rates(rows: list[dict[str, Any]], series: Sequence[Series], panels: list[str], *, height: int) -> Markup | None:
    if not rows:
        return None
    x, colour = _x(series, num_panels=len(panels)), _colour("model", model_colours(series))
    y = alt.Y("rate:Q", title="hallucinated", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format="%", tickCount=5))
    width = _panel_width(len(panels))
    band = alt.Chart().mark_area(opacity=0.16).encode(x=x, y=alt.Y("low:Q"), y2="high:Q", color=colour)
    line = alt.Chart().mark_line(strokeWidth=2.2).encode(x=x, y=y, color=colour)
    layers = alt.layer(band, line, _points(x, y, colour), data=alt.InlineData(values=rows))
    layers = layers.properties(width=width, height=height)
    return to_svg(layers.facet(column=_column(panels)), "rates")


def _costs(rows: list[dict[str, Any]], series: Sequence[Series], title: str, lines: list[str]) -> Markup | None:
    if not rows:
        return None
    x, colour = _x(series, num_panels=2), _colour("model", model_colours(series))
    values = [row["value"] for row in rows]
    axis = alt.Axis(format="~g", values=_one_two_five(min(values), max(values)))
    y = alt.Y("value:Q", title=title, scale=alt.Scale(type="log", nice=False, padding=12), axis=axis)
    dash = alt.StrokeDash(
        "line:N",
        scale=alt.Scale(domain=lines, range=[[1, 0], [3, 3]][: len(lines)]),
    )
    line = alt.Chart().mark_line(strokeWidth=2.2).encode(x=x, y=y, color=colour, strokeDash=dash)
    points = _points(x, y, colour).transform_filter(alt.FieldEqualPredicate(field="line", equal=lines[0]))
    layers = alt.layer(line, points, data=alt.InlineData(values=rows)).properties(width=_panel_width(2), height=250)
    return to_svg(layers, "costs")


def _points(x: alt.X, y: alt.Y, colour: alt.Color) -> alt.Chart:
    """A dot for each point, which links to its samples."""
    dots = alt.Chart().mark_point(filled=True, size=55, opacity=1)
    linked: alt.Chart = dots.encode(
        x=x, y=y, color=colour, href=alt.Href("link:N"), description=alt.Description("label:N")
    )
    return linked


def _colour(field: str, colours: Mapping[str, str]) -> alt.Color:
    return alt.Color(f"{field}:N", scale=alt.Scale(domain=list(colours), range=list(colours.values())))


def _permission_panels(series: Sequence[Series]) -> list[str]:
    present = {one["permission"] for one in series}
    return [label for permission, label in PERMISSION_LABELS.items() if permission in present]


def _column(panels: list[str]) -> alt.Column:
    header = alt.Header(title=None, labelFontSize=13, labelFontWeight=600)
    return alt.Column("panel:N", sort=panels, header=header)


def _panel_width(num_panels: int) -> int:
    return (_WIDTH - 30 * (num_panels - 1)) // num_panels if num_panels > 1 else 560
