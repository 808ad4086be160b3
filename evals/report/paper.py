"""A run's figures for a paper: tables as Markdown, charts as PNG."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evals.records import CONDITIONS
from evals.report.figures import charts_of, with_anchors
from evals.report.headline import find_stories, headline
from evals.report.labels import CONDITION_LABELS, PERMISSION_LABELS
from evals.report.svg import to_png
from evals.summary import caveats, data_size, milliseconds, share_with_interval

COLUMNS = (
    "budget",
    "prompt tokens",
    "n",
    "recall",
    "correct",
    "hallucinated",
    "abstained",
    "TTFT ms",
    "TPOT ms",
    "cache",
)


def markdown(summary: Mapping[str, Any]) -> str:
    """Headline, a table for each series, and the definitions; shares in % with 95 % intervals."""
    parts = [f"# {_escaped(headline(find_stories(summary)))}"]
    series = sorted(summary["models"], key=lambda one: (one["dataset"], CONDITIONS.index(one["condition"])))
    for dataset in dict.fromkeys(one["dataset"] for one in series):
        own = [one for one in series if one["dataset"] == dataset]
        parts.append(f"## Dataset {_escaped(dataset)}")
        parts += [_escaped(caveat) for caveat in caveats(own)]
        for one in own:
            title = f"{one['model']}, {CONDITION_LABELS[one['condition']]}, {PERMISSION_LABELS[one['permission']]}"
            parts += [f"### {_escaped(title)}", _table(COLUMNS, [_cells(point) for point in one["points"]])]
    parts.append("Shares in % of all samples asked, in brackets 95 % intervals; TTFT and TPOT: medians.")
    definitions = "\n".join(
        f"- **{_escaped(name)}**: {_escaped(text)}" for name, text in summary["definitions"].items()
    )
    return "\n\n".join([*parts, "## Definitions", definitions]) + "\n"


def _cells(point: Mapping[str, Any]) -> list[str]:
    tokens = point["prompt_tokens_mean"]
    return [
        f"{point['budget']:,}",
        "-" if tokens is None else f"{tokens:,.0f}",
        str(point["n"]),
        *(share_with_interval(point[name]) for name in ("recall", "correct", "hallucinated", "abstained")),
        milliseconds(point["ttft_s"]["p50"]),
        milliseconds(point["tpot_s"]["p50"]),
        data_size(point["cache_bytes"]["mean"]),
    ]


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---:"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _escaped(text: str) -> str:
    """As it reads: names of models and questions are no markup."""
    return re.sub(r"([\\`*_{}\[\]<>#|])", r"\\\1", text)


def write_pictures(directory: Path, summary: Mapping[str, Any]) -> list[Path]:
    """Every chart of every dataset as a PNG of its name, at twice the size of the page's, black on white.

    Raises:
        OSError: the directory cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    series, written = with_anchors(summary), []
    for dataset in dict.fromkeys(one["dataset"] for one in series):
        for name, chart in charts_of([one for one in series if one["dataset"] == dataset]).items():
            if chart is not None:
                file = directory / f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', dataset)}-{name}.png"
                file.write_bytes(to_png(chart))
                written.append(file)
    return written
