"""The report's charts and table of doubt: what the model itself knew of its wrong answers."""

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from evals.report.axes import Chart, Series, column_of, panel_width, share_axis
from evals.report.labels import CONDITION_LABELS, PERMISSION_LABELS, model_colours
from evals.summary import percent

MEASURES = ("self_consistency", "semantic_entropy", "logprob")


def risk_chart(series: Sequence[Series]) -> Chart | None:
    """Of the answers that are kept, the surest first, how many are hallucinated; a line for each budget."""
    rows = [
        {"panel": one["model"], "budget": f"{point['budget']:,}", "coverage": coverage, "risk": risk}
        for one in series
        for point in one["points"]
        if (point.get("doubt") or {}).get("risk_coverage")
        for coverage, risk in zip(
            point["doubt"]["risk_coverage"]["coverage"], point["doubt"]["risk_coverage"]["risk"], strict=True
        )
    ]
    if not rows:
        return None
    budgets = sorted({row["budget"] for row in rows}, key=lambda text: int(text.replace(",", "")))
    x = alt.X(
        "coverage:Q", title="share of the answers kept", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format="%")
    )
    colour = alt.Color("budget:N", sort=budgets, scale=alt.Scale(scheme="viridis", domain=budgets))
    lines = alt.Chart(alt.InlineData(values=rows)).mark_line(strokeWidth=2).encode(x=x, color=colour)
    panels = list(model_colours(series))
    lines = lines.encode(y=share_axis("risk", "hallucinated")).properties(width=panel_width(len(panels)), height=220)
    chart: alt.FacetChart = lines.facet(column=column_of(panels))
    return chart


def risk_budgets(series: Sequence[Series]) -> list[str]:
    """The budgets of the lines, as the lines are coloured, the darkest first."""
    return [
        f"{budget:,}"
        for budget in sorted(
            {
                point["budget"]
                for one in series
                for point in one["points"]
                if (point.get("doubt") or {}).get("risk_coverage")
            }
        )
    ]


def doubt_rows(series: Sequence[Series]) -> list[dict[str, Any]]:
    """A row for each point that has draws or log probabilities: means, and how well each tells wrong from right."""
    rows = []
    for one in series:
        for point in one["points"]:
            doubt = point.get("doubt")
            if doubt:
                name = f"{one['model']}, {CONDITION_LABELS[one['condition']]}, {PERMISSION_LABELS[one['permission']]}"
                cells = [_cell(doubt, measure) for measure in MEASURES]
                rows.append({"series": name, "budget": f"{point['budget']:,}", "draws": doubt["draws"], "cells": cells})
    return rows


def _cell(doubt: Mapping[str, Any], measure: str) -> dict[str, str]:
    mean, found = doubt[measure]["mean"], doubt["auroc"][measure]
    if mean is None:
        return {"mean": "-", "auroc": "-"}
    auroc = "-"
    if found and found["auroc"] is not None:
        auroc = f"{found['auroc']:.2f}"
        if found["low"] is not None:
            auroc += f" [{found['low']:.2f}, {found['high']:.2f}]"
    return {"mean": percent(mean) if measure == "self_consistency" else f"{mean:.2f}", "auroc": auroc}
