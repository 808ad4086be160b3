"""summary.json and the same figures as a terminal table."""

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from evals import costs, decomposition, depths, graded
from evals.depths import depth_cells
from evals.doubt import DEFINITIONS as DOUBT
from evals.doubt import LEGEND as DOUBT_LEGEND
from evals.doubt import answered_draws, describe_doubt, doubt_table
from evals.keys import SampleKey, by_sample
from evals.points import describe_points, turning_of
from evals.records import (
    CONDITIONS,
    ESTIMATED,
    PERMISSIONS,
    SERVED,
    Condition,
    Draw,
    Judgement,
    Permission,
    RunNote,
    SampleRow,
    Scrape,
)
from evals.scoring.graders import qualities
from evals.scrape import KV_SHARE
from evals.stats import paired, rates, turning
from evals.stats.corrected import GraderQuality
from loadtest import latency

SCHEMA = "fathom.summary/1"

DEFINITIONS: dict[str, str] = {
    "n": "samples asked",
    "correct": "answers whose claim contains an accepted answer as a run of whole normalised words / samples asked",
    "hallucinated": "answers that claim something else, or anything at all where no document has the answer"
    " / samples asked",
    "abstained": "answers that only say that they do not know / samples asked",
    "lost": "samples asked without a verdict. failed: the request; truncated: the server cut the prompt; empty: not a"
    " single word came back; these three stay in the denominator of all shares. ungraded: words do not tell whether"
    " such an answer is right, or nobody knows; these are in no share",
    "at_limit": "answers that --max-tokens ended",
    "limits of the verdicts": "they compare words: a right answer in other words counts as hallucinated, and one that"
    " names several candidates, a right one among them, as correct",
    "hallucinated_of_answered": "hallucinated / (correct + hallucinated)",
    "first_line": "the same verdicts on the first line of each answer alone",
    "recall": "answerable questions with every supporting document in the context / answerable questions",
    "gold": "answerable questions, split by whether every supporting document was in the context",
    **decomposition.FORMULAS,
    "distractor": "hallucinations whose words stand in a document of their context",
    "fabricated": "all other hallucinations",
    "vs_closed_book": "hallucinated at this budget - hallucinated without documents: " + paired.FORMULAS["difference"],
    "p_value": paired.FORMULAS["p_value"],
    "p_adjusted": paired.FORMULAS["p_adjusted"],
    "equivalent_within": paired.FORMULAS["equivalent_within"],
    "turning": "where the rate of hallucinations stops to fall: " + turning.FORMULA,
    "depths": depths.FORMULA,
    "condition": "which documents: closed none; oracle those that support the answer; natural those retrieved;"
    " gold+distractors a supporting one among others; no-gold the same without any that has an answer in its words;"
    " conflict the first and an altered copy that says something else",
    "leaks": "documents in the context that are no supporting ones and have an accepted answer in their words",
    "duplicates": "documents in the context that say word by word what one before them says",
    "conflict": "hallucinations that say what the altered document says",
    "low, high": rates.FORMULA,
    "prompt_tokens_mean": "mean of the server's usage.prompt_tokens",
    "cache_bytes": "the most cache that one sequence held, as the server reports it (else keys and values + state)",
    "counting": "where the token counts of documents come from, by which they fill a budget: "
    f"the {SERVED}, or an {ESTIMATED}",
    "request_changes": "what the endpoint did not take, and so was left out of its requests or named otherwise",
    **DOUBT,
    **graded.DEFINITIONS,
    **costs.DEFINITIONS,
    "adapted_concurrency": "requests under way when one more was sent, itself counted: the mean of a run whose"
    " concurrency was adapted to the endpoint",
    **{name: latency.FORMULAS[name] for name in ("ttft_s", "tpot_s", "e2e_s")},
}


class _SeriesKey(NamedTuple):
    dataset: str
    model: str
    condition: Condition
    permission: Permission


class _Beside(NamedTuple):
    """What is kept beside the samples: of runs, by model and dataset; of samples, by their keys; of graders."""

    notes: Mapping[tuple[str, str], RunNote]
    scrapes: Mapping[tuple[str, str], Sequence[Scrape]]
    draws: Mapping[SampleKey, Sequence[Draw]]
    judgements: Mapping[SampleKey, Sequence[Judgement]]
    quality: Mapping[str, GraderQuality]


def summarise(
    rows: Sequence[SampleRow],
    load: Sequence[Mapping[str, Any]] = (),
    notes: Mapping[tuple[str, str], RunNote] = MappingProxyType({}),
    lm: Sequence[Mapping[str, Any]] = (),
    *,
    judgements: Iterable[Judgement] = (),
    draws: Iterable[Draw] = (),
    quality: Mapping[str, GraderQuality] | None = None,
    scrapes: Iterable[Scrape] = (),
) -> dict[str, Any]:
    """All samples as one JSON object.

    Args:
        load: summaries of load tests, passed on as they are.
        notes: what was noted of the runs, by model and dataset.
        lm: figures of lm-eval's tasks, passed on as they are.
        judgements: what other graders say. quality: of the graders, by name; None: what comes with Fathom.
        scrapes: what servers said at /metrics, in the order of their times.
        draws: further answers to the samples' prompts.
    Raises:
        ValueError: one question stands twice in a point; a share of such samples would count it twice.
    """
    series: dict[_SeriesKey, list[SampleRow]] = {}
    for row in rows:
        series.setdefault(_SeriesKey(row.dataset, row.model, row.condition, row.permission), []).append(row)
    # Without documents is where every curve begins; alone it is one of its own.
    begins = {key[:2] + key[3:]: members for key, members in series.items() if key.condition == "closed"}
    curves = {key: members for key, members in series.items() if key.condition not in ("closed", "oracle")}
    for key, members in curves.items():
        members += begins.get(key[:2] + key[3:], [])
    followed = {key[:2] + key[3:] for key in curves}
    order = sorted(
        key for key in series if key in curves or key.condition == "oracle" or key[:2] + key[3:] not in followed
    )
    order.sort(key=lambda key: (*key[:2], CONDITIONS.index(key.condition), PERMISSIONS.index(key.permission)))
    read: dict[tuple[str, str], list[Scrape]] = {}
    for scrape in scrapes:
        read.setdefault((scrape.model, scrape.dataset), []).append(scrape)
    beside = _Beside(
        notes=notes,
        scrapes=read,
        draws=answered_draws(draws),
        judgements=by_sample(judgements),
        quality=qualities(()) if quality is None else quality,
    )
    described = [_describe_series(key, series[key], beside) for key in order]
    return {
        "schema": SCHEMA,
        "models": described,
        "pareto": costs.describe_fronts(described),
        "load": [dict(one) for one in load],
        "lm": [dict(one) for one in lm],
        "definitions": DEFINITIONS,
    }


def _describe_series(key: _SeriesKey, rows: Sequence[SampleRow], beside: _Beside) -> dict[str, Any]:
    run = key.model, key.dataset
    note, scrapes = beside.notes.get(run, RunNote()), beside.scrapes.get(run, ())
    by_budget: dict[int, list[SampleRow]] = {}
    for row in rows:
        by_budget.setdefault(row.budget, []).append(row)
    for budget, asked in by_budget.items():
        if len({row.question_id for row in asked}) < len(asked):
            raise ValueError(f"a question stands twice in {key.model}, {key.dataset}, budget {budget}")
    return {
        "model": key.model,
        "kind": rows[0].kind,
        "dataset": key.dataset,
        "condition": key.condition,
        "permission": key.permission,
        "counting": note.counting,
        "request_changes": list(note.request_changes),
        "adapted_concurrency": note.adapted_concurrency,
        "points": [
            {
                **point,
                **costs.describe_costs(point["budget"], by_budget[point["budget"]], scrapes),
                "doubt": describe_doubt(by_budget[point["budget"]], beside.draws),
                **graded.describe_graded(by_budget[point["budget"]], beside.judgements, beside.quality),
            }
            for point in describe_points(by_budget)
        ],
        "turning": turning_of(by_budget),
        "depths": depth_cells(by_budget),
        "growth": costs.describe_growth(by_budget, note),
        "preemptions": costs.preemptions_of(rows, scrapes),
    }


def summary_table(summary: Mapping[str, Any]) -> Group:
    """One table per model, dataset and permission, for `rich.console.Console.print`; fits 80 columns."""
    if not summary["models"]:
        return Group(Text("no samples"))
    parts: list[RenderableType] = []
    for series in summary["models"]:
        doubt = doubt_table(series)
        parts += [_series_table(series), *([] if doubt is None else [doubt])]
    has_doubt = any(point["doubt"] for series in summary["models"] for point in series["points"])
    return Group(
        *parts,
        Text("Shares in % of the samples asked, hallucinated with its 95 % interval; lost: no verdict."),
        Text("TTFT, TPOT: medians in ms. Cache: mean peak of one sequence, or share in use of the server's."),
        *map(Text, graded.lines(summary["models"])),
        *([Text(DOUBT_LEGEND)] if has_doubt else []),
        *map(Text, caveats(summary["models"])),
    )


def caveats(series: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a reader of the figures must know of how they were asked for, a line each; most runs have none."""
    lines: dict[str, None] = {}
    for one in series:
        if one.get("counting") == ESTIMATED:
            lines[f"{one['model']}: documents are counted by an {ESTIMATED}."] = None
        for change in one.get("request_changes", ()):
            lines[f"{one['model']}: {change}."] = None
        lines.update(dict.fromkeys(costs.caveats(one)))
        if one.get("adapted_concurrency") is not None:
            at_once = f"{one['adapted_concurrency']:.1f} requests at once on average"
            lines[f"{one['model']}: {at_once}, adapted to the endpoint: its latencies are of several loads."] = None
    return list(lines)


def _series_table(series: Mapping[str, Any]) -> Table:
    any_lost = any(point["unscored"] for point in series["points"])
    table = Table(
        title=", ".join(_title(series)),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
        padding=0 if any_lost else (0, 0, 0, 1),
    )
    lost = ("lost",) if any_lost else ()
    headings = ("budget", "n", *lost, "prompt", "recall", "correct", "hallucinated", "abst.", "TTFT", "TPOT", "cache")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for point in series["points"]:
        table.add_row(*_cells(point, any_lost=any_lost))
    return table


def _title(series: Mapping[str, Any]) -> list[str]:
    condition = [] if series["condition"] == "natural" else [series["condition"]]
    return [escape(series["model"]), *condition, series["permission"], f"dataset {escape(series['dataset'])}"]


def _cells(point: Mapping[str, Any], *, any_lost: bool) -> list[str]:
    lost = [str(point["unscored"])] if any_lost else []
    return [
        str(point["budget"]),
        str(point["n"]),
        *lost,
        "-" if point["prompt_tokens_mean"] is None else f"{point['prompt_tokens_mean']:.0f}",
        percent(point["recall"]["rate"]),
        percent(point["correct"]["rate"]),
        share_with_interval(point["hallucinated"]),
        percent(point["abstained"]["rate"]),
        milliseconds(point["ttft_s"]["p50"]),
        milliseconds(point["tpot_s"]["p50"]),
        _memory(point),
    ]


def _memory(point: Mapping[str, Any]) -> str:
    """Bytes; else the share of the server's cache, where that is told."""
    used = point["scraped"][KV_SHARE]["mean"]
    size = point["cache_bytes"]["mean"]
    return f"{percent(used)} %" if size is None and used is not None else data_size(size)


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def share_with_interval(share: Mapping[str, Any]) -> str:
    if share["rate"] is None:
        return "-"
    return f"{percent(share['rate'])} [{100 * share['low']:.0f}-{100 * share['high']:.0f}]"


def milliseconds(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    digits = 0 if seconds >= 0.1 else 1 if seconds >= 0.01 else 2
    return f"{1000 * seconds:.{digits}f}"


def data_size(size: float | None) -> str:
    """Bytes in binary units, three digits or so."""
    if size is None:
        return "-"
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"
