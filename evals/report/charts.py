"""The report's charts of what became of the questions.

Each takes series of one dataset, as they stand in the summary, each with the "anchors" of its points.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from evals.records import WITHOUT_LENGTH
from evals.report.axes import (
    Chart,
    Series,
    budget_title,
    colour_of,
    column_of,
    dots,
    panel_width,
    permission_panels,
    place_of,
    share_axis,
    x_axis,
)
from evals.report.labels import (
    CONDITION_LABELS,
    OUTCOME_COLOURS,
    PART_LABELS,
    PERMISSION_LABELS,
    condition_colours,
    model_colours,
    part_colours,
)
from evals.report.svg import LINK_BASE
from evals.summary import percent, share_with_interval

_GOLD_LABELS = {
    "present": "evidence in the context",
    "absent": "evidence missing",
    "unanswerable": "no document has the answer",
}
MAX_ROW = 3  # panels beside one another


def hallucination_chart(series: Sequence[Series]) -> Chart | None:
    """Hallucination rate with its interval against context length; a panel for each permission."""
    rows = [
        _rate_row(one, place, point["hallucinated"], PERMISSION_LABELS[one["permission"]])
        for one in series
        for place, point in enumerate(one["points"])
        if point["hallucinated"]["rate"] is not None
    ]
    return _rates(rows, series, permission_panels(series), height=300)


def gold_chart(series: Sequence[Series]) -> Chart | None:
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


def recall_chart(series: Sequence[Series]) -> Chart | None:
    """How often all evidence was among the retrieved documents; of one permission, as it is alike in both."""
    rows = [
        _rate_row(one, place, point["recall"], "")
        for one in series
        for place, point in enumerate(one["points"])
        if point["recall"]["rate"] is not None and point["budget"] > 0
    ]
    return _rates(rows, series, [""], height=210, title="evidence in the context") if rows else None


def conditions_chart(series: Sequence[Series]) -> Chart | None:
    """All conditions of each model in one panel; those without a length as level lines. None of a single condition."""
    colours = condition_colours(series)
    if len({one["condition"] for one in series}) < 2:
        return None
    rows = [
        _rate_row(one, place, point["hallucinated"], one["model"])
        | {"condition": CONDITION_LABELS[one["condition"]], "dash": one["condition"] in WITHOUT_LENGTH}
        for one in series
        if one["condition"] not in WITHOUT_LENGTH
        for place, point in enumerate(one["points"])
        if point["hallucinated"]["rate"] is not None and point["budget"] > 0
    ]
    if not rows:
        return None
    rows += _levels(series, rows)
    panels = list(model_colours(series))
    num_beside = min(len(panels), MAX_ROW)
    measured = [{**one, "points": [point for point in one["points"] if point["budget"] > 0]} for one in series]
    x = x_axis([one for one in measured if one["condition"] not in WITHOUT_LENGTH], num_panels=num_beside)
    y, colour = share_axis("rate", "hallucinated"), colour_of("condition", colours)
    dash = alt.StrokeDash("dash:N", legend=None, scale=alt.Scale(domain=[False, True], range=[[1, 0], [4, 4]]))
    band = alt.Chart().mark_area(opacity=0.1).encode(x=x, y=alt.Y("low:Q"), y2="high:Q", color=colour)
    band = band.transform_filter("!datum.dash")
    line = alt.Chart().mark_line(strokeWidth=2.2).encode(x=x, y=y, color=colour, strokeDash=dash)
    layers = alt.layer(band, line, dots(x, y, colour).transform_filter("!datum.dash"), data=_inline(rows))
    return _in_panels(layers.properties(width=panel_width(num_beside), height=270), panels)


def _levels(series: Sequence[Series], rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What has no length, from one end of the axis to the other."""
    found = []
    for one in series:
        begins = [(place, point) for place, point in enumerate(one["points"]) if point["budget"] == 0]
        for place, point in begins:
            condition = one["condition"] if one["condition"] in WITHOUT_LENGTH else "closed"
            ends = [row for row in rows if row["model"] == one["model"]]
            if point["hallucinated"]["rate"] is None or not ends:
                continue
            for end in (min, max):
                level = _rate_row(one, place, point["hallucinated"], one["model"])
                level |= {
                    field: end(row[field] for row in ends) for field in ("prompt_tokens", "budget") if ends[0][field]
                }
                found.append(level | {"condition": CONDITION_LABELS[condition], "dash": True})
    # Without documents is where several curves begin: one line for all of them.
    return list({(row["model"], row["condition"], row["budget"]): row for row in found}.values())


def decomposition_chart(series: Sequence[Series]) -> Chart | None:
    """What each part adds to the rate of hallucinations, stacked; a panel for each model."""
    rows = [
        {
            "budget": point["budget"],
            "panel": one["model"],
            "part": PART_LABELS[name],
            "order": order,
            "share": part["contribution"],
            "label": f"{one['model']}, {point['budget']:,}: {PART_LABELS[name]}, {percent(part['contribution'])} %",
            "link": LINK_BASE + one["anchors"][place],
        }
        for one in series
        for place, point in enumerate(one["points"])
        if point["decomposition"] is not None
        for order, (name, part) in enumerate(point["decomposition"]["parts"].items())
    ]
    if not rows:
        return None
    return _stacked(rows, list(model_colours(series)), series, colour_of("part", part_colours()), height=190)


def outcome_charts(series: Sequence[Series]) -> dict[str, Chart]:
    """For each model what became of the questions at each budget, as stacked shares of all that were asked."""
    return {model: _outcome_chart([one for one in series if one["model"] == model]) for model in model_colours(series)}


def _outcome_chart(series: Sequence[Series]) -> Chart:
    rows = [
        {
            "budget": point["budget"],
            "panel": PERMISSION_LABELS[one["permission"]],
            "outcome": outcome,
            "order": order,
            "share": count / point["n"],
            "label": f"{point['budget']:,}, {outcome}: {count} of {point['n']}",
            "link": LINK_BASE + one["anchors"][place],
        }
        for one in series
        for place, point in enumerate(one["points"])
        for order, (outcome, count) in enumerate(_outcomes(point).items())
        if count
    ]
    return _stacked(rows, permission_panels(series), series, colour_of("outcome", OUTCOME_COLOURS), height=120)


def _stacked(
    rows: list[dict[str, Any]], panels: Sequence[str], series: Sequence[Series], colour: alt.Color, *, height: int
) -> Chart:
    bars: Any = (
        alt.Chart(_inline(rows))
        .mark_bar()
        .encode(
            x=alt.X("budget:O", title=budget_title(series), axis=alt.Axis(labelAngle=0)),
            y=share_axis("share", None, num_ticks=3),
            color=colour,
            order=alt.Order("order:Q"),
            href=alt.Href("link:N"),
            description=alt.Description("label:N"),
        )
        .properties(width=panel_width(len(panels)), height=height)
    )
    chart: alt.FacetChart = bars.facet(column=column_of(panels))
    return chart


def depth_chart(series: Sequence[Series]) -> Chart | None:
    """Hallucinations by where the evidence stood and how long the context was; a panel for each model."""
    rows = [
        {
            "panel": one["model"],
            "budget": cell["budget"],
            "depth": f"{100 * cell['from']:.0f}-{100 * cell['to']:.0f} %",
            "rate": cell["hallucinated"]["rate"],
            "text": f"{100 * cell['hallucinated']['rate']:.0f}",
            "label": f"{one['model']}, {cell['budget']:,}: {share_with_interval(cell['hallucinated'])} % of "
            f"{cell['hallucinated']['n']}",
        }
        for one in series
        for cell in one.get("depths", ())
        if cell["hallucinated"]["rate"] is not None
    ]
    if len({row["budget"] for row in rows}) < 2:
        return None
    panels = list(model_colours(series))
    base = alt.Chart(_inline(rows)).encode(
        x=alt.X("budget:O", title=budget_title(series), axis=alt.Axis(labelAngle=0)),
        y=alt.Y("depth:N", title="where the evidence stood (0 = first)", sort=None),
    )
    ramp = alt.Scale(domain=[0, 0.5, 1], range=["#2f9e6e", "#f2d48f", "#d1495b"])
    cells = base.mark_rect().encode(color=alt.Color("rate:Q", scale=ramp), description=alt.Description("label:N"))
    text = base.mark_text(fontSize=11, color="#1d2329").encode(text="text:N")
    layers = alt.layer(cells, text).properties(width=panel_width(min(len(panels), MAX_ROW)), height=170)
    return _in_panels(layers, panels)


def _in_panels(layers: Any, panels: Sequence[str]) -> alt.FacetChart:
    """A panel for each model, some beside one another."""
    header = alt.Header(title=None, labelFontSize=13, labelFontWeight=600)
    facet = alt.Facet("panel:N", sort=list(panels), header=header)
    chart: alt.FacetChart = layers.facet(facet=facet, columns=min(len(panels), MAX_ROW))
    return chart


def _outcomes(point: Mapping[str, Any]) -> dict[str, int]:
    counts = {name: round((point[name]["rate"] or 0) * point[name]["n"]) for name in ("correct", "abstained")}
    kinds = point["hallucination_kinds"]
    wrong = kinds["distractor"], kinds["fabricated"], kinds["conflict"]
    values = (*counts.values(), *wrong, point["unscored"])
    return dict(zip(OUTCOME_COLOURS, values, strict=True))


def _rate_row(one: Series, place: int, share: Mapping[str, Any], panel: str) -> dict[str, Any]:
    return {**place_of(one, place, f"{share_with_interval(share)} % of {share['n']}"), **share, "panel": panel}


def _rates(
    rows: list[dict[str, Any]],
    series: Sequence[Series],
    panels: list[str],
    *,
    height: int,
    title: str = "hallucinated",
) -> Chart | None:
    if not rows:
        return None
    x, y = x_axis(series, num_panels=len(panels)), share_axis("rate", title)
    colour = colour_of("model", model_colours(series))
    band = alt.Chart().mark_area(opacity=0.16).encode(x=x, y=alt.Y("low:Q"), y2="high:Q", color=colour)
    line = alt.Chart().mark_line(strokeWidth=2.2).encode(x=x, y=y, color=colour)
    layers = alt.layer(band, line, dots(x, y, colour), data=_inline(rows))
    return layers.properties(width=panel_width(len(panels)), height=height).facet(column=column_of(panels))


def _inline(rows: list[dict[str, Any]]) -> alt.InlineData:
    return alt.InlineData(values=rows)
