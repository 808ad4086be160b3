"""report.html: one file that needs neither network nor script, with every figure linked to its samples."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from evals.records import SampleRow
from evals.report import charts
from evals.report.headline import (
    facts,
    find_stories,
    headline,
    headline_permission,
    rate_with_interval,
    signed_points,
    whole_percent,
)
from evals.report.load import describe_load
from evals.report.samples import MAX_DOCUMENTS, PointKey, by_point, groups, point_key
from evals.summary import caveats, data_size, milliseconds, percent

FILE_NAME = "report.html"
MAX_BYTES = 3_000_000
# Samples shown of each verdict at each point; the first cap that keeps the file small enough is taken.
CAPS = (50, 25, 12, 6, 3, 1, 0)
TEMPLATE = "template.html"


def write_report(out: Path, rows: Sequence[SampleRow], summary: dict[str, Any]) -> Path:
    """Write the report of `summary` and of the samples that it was made from; returns its path.

    Raises:
        ValueError: the figures alone, without a single sample, are larger than MAX_BYTES.
    """
    page = render(rows, summary)
    out.mkdir(parents=True, exist_ok=True)
    path = out / FILE_NAME
    draft = out / f".{FILE_NAME}.tmp"
    draft.write_bytes(page)
    # Replaced in one move: a reader never sees half a page.
    os.replace(draft, path)
    return path


def render(rows: Sequence[SampleRow], summary: Mapping[str, Any]) -> bytes:
    """The page, with as many samples as MAX_BYTES allows."""
    template = _environment().get_template(TEMPLATE)
    figures = _figures(summary)
    points = by_point(rows)
    for cap in CAPS:
        series = _with_samples(figures["series"], points, cap)
        page = template.render(**(figures | {"series": series}), cap=cap, num_samples=len(rows)).encode()
        if len(page) <= MAX_BYTES:
            return page
    raise ValueError(f"a report of {len(summary['models'])} series does not fit into {MAX_BYTES} bytes")


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("evals.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shown = {
        "percent": percent,
        "milliseconds": milliseconds,
        "data_size": data_size,
        "interval": _interval,
        "number": _number,
        "points": signed_points,
        "whole_percent": whole_percent,
        "rate_with_interval": rate_with_interval,
    }
    environment.filters.update(shown)
    return environment


def _figures(summary: Mapping[str, Any]) -> dict[str, Any]:
    """All that the template shows but the samples."""
    series = [
        {**one, "anchors": [f"p{number}-{place}" for place in range(len(one["points"]))]}
        for number, one in enumerate(summary["models"])
    ]
    stories = find_stories(summary)
    return {
        "headline": headline(stories),
        "stories": [{"story": story, "facts": facts(story)} for story in stories],
        "datasets": [
            _dataset(*key, series) for key in dict.fromkeys((one["dataset"], one["condition"]) for one in series)
        ],
        "series": series,
        "load": [describe_load(run) for run in summary["load"]],
        "lm": summary.get("lm", []),
        "definitions": summary["definitions"],
        "conditions": charts.CONDITION_LABELS,
        "labels": charts.PERMISSION_LABELS,
        "max_documents": MAX_DOCUMENTS,
    }


def _dataset(name: str, condition: str, series: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The series and charts of one dataset under one condition, most of them for the headline's permission alone: the
    table has the other.
    """
    own = [one for one in series if (one["dataset"], one["condition"]) == (name, condition)]
    permission = headline_permission(own)
    headlined = [one for one in own if one["permission"] == permission]
    return {
        "name": name,
        "condition": condition,
        "outcome_colours": charts.outcome_colours(own),
        "series": own,
        "caveats": caveats(own),
        "permission": permission,
        "prompt_tokens": charts.uses_prompt_tokens(own),
        "cached_share": _cached_share(headlined),
        "hallucination": charts.hallucination_chart(own),
        "gold": charts.gold_chart(headlined),
        "ttft": charts.ttft_chart(headlined),
        "memory": charts.memory_chart(headlined),
        "outcomes": charts.outcome_charts(own),
        "colours": charts.model_colours(own),
    }


def _cached_share(series: Sequence[Mapping[str, Any]]) -> float:
    """The largest share of a point's prompt tokens that came from a prefix cache: such a TTFT is a warm one."""
    points = [point for one in series for point in one["points"] if point["prompt_tokens_mean"]]
    return max(((point["cached_tokens_mean"] or 0) / point["prompt_tokens_mean"] for point in points), default=0.0)


def _with_samples(
    series: Sequence[Mapping[str, Any]], points: Mapping[PointKey, Sequence[SampleRow]], cap: int
) -> list[dict[str, Any]]:
    def samples(one: Mapping[str, Any], budget: int) -> list[Any]:
        key = point_key(one["model"], one["dataset"], one["condition"], one["permission"], budget)
        return groups(points.get(key, []), cap)

    return [{**one, "samples": [samples(one, point["budget"]) for point in one["points"]]} for one in series]


def _interval(share: Mapping[str, Any]) -> str:
    return "" if share["rate"] is None else f"{percent(share['low'])}\N{EN DASH}{percent(share['high'])}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"
