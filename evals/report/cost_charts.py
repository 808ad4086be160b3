"""The report's charts of what the answers cost: time, memory, energy, and what is worth it."""

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from evals.report.axes import Chart, Series, colour_of, cost_axis, dots, panel_width, place_of, x_axis
from evals.report.labels import model_colours
from evals.summary import data_size, milliseconds


def ttft_chart(series: Sequence[Series]) -> Chart | None:
    """Time to first token: median as a line, 99th percentile dashed, both axes logarithmic."""
    rows = [
        place_of(one, place, f"{milliseconds(point['ttft_s'][name])} ms")
        | {"value": point["ttft_s"][name] * 1000, "line": name}
        for one in series
        for place, point in enumerate(one["points"])
        for name in ("p50", "p99")
        if point["ttft_s"][name]
    ]
    return _costs(rows, series, "time to first token, ms", ["p50", "p99"])


def tpot_chart(series: Sequence[Series]) -> Chart | None:
    """Time per token after the first: its median, both axes logarithmic."""
    rows = [
        place_of(one, place, f"{milliseconds(point['tpot_s']['p50'])} ms")
        | {"value": point["tpot_s"]["p50"] * 1000, "line": "p50"}
        for one in series
        for place, point in enumerate(one["points"])
        if point["tpot_s"]["p50"]
    ]
    return _costs(rows, series, "time per output token, ms", ["p50"])


def memory_chart(series: Sequence[Series]) -> Chart | None:
    """Mean cache of one sequence, both axes logarithmic."""
    rows = [
        place_of(one, place, data_size(size)) | {"value": size / 2**20, "line": "mean"}
        for one in series
        for place, point in enumerate(one["points"])
        if (size := point["cache_bytes"]["mean"])
    ]
    return _costs(rows, series, "cache of one sequence, MiB", ["mean"])


def energy_chart(series: Sequence[Series]) -> Chart | None:
    """Mean energy of an answer, where the GPU tells."""
    rows = [
        place_of(one, place, f"{energy:.3g} J") | {"value": energy, "line": "mean"}
        for one in series
        for place, point in enumerate(one["points"])
        if (energy := (point.get("energy_j") or {}).get("mean"))
    ]
    return _costs(rows, series, "energy of one answer, J", ["mean"])


def _costs(
    rows: list[dict[str, Any]], series: Sequence[Mapping[str, Any]], title: str, lines: list[str]
) -> Chart | None:
    if not rows:
        return None
    x, colour = x_axis(series, num_panels=2), colour_of("model", model_colours(series))
    y = cost_axis(rows, title)
    dash = alt.StrokeDash("line:N", scale=alt.Scale(domain=lines, range=[[1, 0], [3, 3]][: len(lines)]))
    line = alt.Chart().mark_line(strokeWidth=2.2).encode(x=x, y=y, color=colour, strokeDash=dash)
    points = dots(x, y, colour).transform_filter(alt.FieldEqualPredicate(field="line", equal=lines[0]))
    layers = alt.layer(line, points, data=alt.InlineData(values=rows))
    return layers.properties(width=panel_width(2), height=250)
