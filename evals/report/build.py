"""report.html: one file that needs no network, with every figure linked to its samples.

Figures and tables need no script. The browser of samples is one, which stands in the page; its content security policy
allows that one alone, by its hash.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from evals.records import SampleRow
from evals.report import charts
from evals.report.browser import Documents, browser_data, encode
from evals.report.extras import describe_extras, describe_run
from evals.report.figures import charts_of, describe_dataset, main_series, with_anchors
from evals.report.headline import (
    facts,
    find_stories,
    headline,
    rate_with_interval,
    signed_points,
    whole_percent,
)
from evals.report.labels import CONDITION_LABELS, PERMISSION_LABELS
from evals.report.load import describe_load
from evals.report.svg import to_svg
from evals.summary import data_size, milliseconds, percent
from evals.whole_files import write_whole

FILE_NAME = "report.html"
MAX_BYTES = 3_000_000
TEMPLATE, SCRIPT = "template.html", "browser.js"
KIND_LABELS = {
    "distractor": "read in a document",
    "fabricated": "found nowhere",
    "conflict": "said by the altered document",
}


def write_report(
    out: Path,
    rows: Sequence[SampleRow],
    summary: dict[str, Any],
    documents: Documents | None = None,
    *,
    name: str = FILE_NAME,
) -> Path:
    """Write the report of `summary` and of the samples that it was made from; returns its path.

    Args:
        documents: the texts of what the samples were asked with, by dataset and id.
    Raises:
        ValueError: the figures alone, without a single sample, are larger than MAX_BYTES.
    """
    page = render(rows, summary, documents)
    out.mkdir(parents=True, exist_ok=True)
    path = out / name
    write_whole(path, page)
    return path


def render(rows: Sequence[SampleRow], summary: Mapping[str, Any], documents: Documents | None = None) -> bytes:
    """The page, with the samples of as many questions as MAX_BYTES allows."""
    environment = _environment()
    template, figures = environment.get_template(TEMPLATE), _figures(summary)
    script = _script(environment)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    shown = {**figures, "script": Markup(script), "script_hashes": f"'sha256-{digest}'", "num_samples": len(rows)}
    empty = template.render(**shown, **_browser(browser_data([], {}, 0)))
    room = MAX_BYTES - len(empty.encode())
    if room < 0:
        raise ValueError(f"a report of {len(summary['models'])} series does not fit into {MAX_BYTES} bytes")
    return template.render(**shown, **_browser(browser_data(rows, documents or {}, room))).encode()


def _script(environment: Environment) -> str:
    assert environment.loader is not None
    return environment.loader.get_source(environment, SCRIPT)[0]


def _browser(data: Mapping[str, Any]) -> dict[str, Any]:
    """What `encode` makes has nothing in it that ends a script: it may stand in the page as it is."""
    return {"browser": data, "browser_json": Markup(encode(data))}


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
    series = with_anchors(summary)
    stories = find_stories(summary)
    labels = {
        "condition": CONDITION_LABELS,
        "permission": PERMISSION_LABELS,
        "kind": KIND_LABELS,
        "start": _start(series),
    }
    return {
        "headline": headline(stories),
        "stories": [{"story": story, "facts": facts(story)} for story in stories],
        "datasets": [
            _dataset(name, [one for one in series if one["dataset"] == name], summary)
            for name in dict.fromkeys(one["dataset"] for one in series)
        ],
        "load": [describe_load(run) for run in summary["load"]],
        "facts_of_runs": [describe_run(run) for run in summary.get("runs", ())],
        "comparison": summary.get("comparison"),
        "lm": summary.get("lm", []),
        "definitions": summary["definitions"],
        "conditions": CONDITION_LABELS,
        "labels": PERMISSION_LABELS,
        "points_json": Markup(encode(_points(series))),
        "labels_json": Markup(encode(labels)),
    }


def _start(series: Sequence[Mapping[str, Any]]) -> str | None:
    """The anchor at which the browser of samples begins: the headline's, at the longest context."""
    if not series:
        return None
    _, [first, *_] = main_series([one for one in series if one["dataset"] == series[0]["dataset"]])
    return str(first["anchors"][-1])


def _dataset(name: str, series: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> dict[str, Any]:
    own, _ = main_series(series)
    found = charts_of(series, summary.get("pareto", ()))
    drawn = {key: None if chart is None else to_svg(chart, key) for key, chart in found.items()}
    outcomes = {model: to_svg(chart, "outcomes") for model, chart in charts.outcome_charts(own).items()}
    return {**describe_dataset(name, series), **describe_extras(name, series, summary), **drawn, "outcomes": outcomes}


def _points(series: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Which samples each anchor stands for: model, dataset, condition, permission and budget.

    Without documents is where every curve begins: there is one point for all of them.
    """
    return {
        anchor: [
            one["model"],
            one["dataset"],
            "closed" if point["budget"] == 0 and one["condition"] != "oracle" else one["condition"],
            one["permission"],
            point["budget"],
        ]
        for one in series
        for anchor, point in zip(one["anchors"], one["points"], strict=True)
    }


def _interval(share: Mapping[str, Any]) -> str:
    return "" if share["rate"] is None else f"{percent(share['low'])}\N{EN DASH}{percent(share['high'])}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"
