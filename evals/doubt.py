"""What is known of a point's answers without anybody who knows the right ones: how sure the model was of them.

Where the right ones are known too, whether that doubt would have told the wrong answers apart.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict

from rich import box
from rich.table import Table

from evals.keys import SampleKey, by_sample, key_of
from evals.records import Draw, SampleRow
from evals.scoring.consistency import SameMeaning, doubt_of, same_words
from evals.stats.bootstrap import bca_interval, tabulate
from evals.stats.ranking import Auroc, clustered_auroc, risk_coverage

MAX_CURVE_POINTS = 50

DEFINITIONS: dict[str, str] = {
    "doubt": "how sure the model was of its answers, whether or not anybody knows the right ones; None: not asked for",
    "self_consistency": "share of the draws that mean what the greedy answer means: the claim of one contains that of"
    " the other, word by word",
    "semantic_entropy": "-sum p ln p over the meanings of a prompt's draws, p the share of draws of that meaning; 0:"
    " all draws mean the same",
    "weighted_entropy": "the same, p by the draws' probabilities, each the geometric mean of its tokens'",
    "meanings, abstaining": "how many meanings a prompt's draws have; which share of them only abstains",
    "logprob": "mean log probability of an answer's tokens, by the server",
    "auroc": "chance that a hallucinated answer has more doubt (less consistency or logprob, more entropy) than a"
    " correct one: .5 where doubt says nothing, 1 where it tells all apart; interval: bootstrap of whole clusters",
    "risk_coverage": "hallucinated / (hallucinated + correct) among the answers of the highest logprob, for each share"
    " of them that is kept; area: the mean of it over all shares",
}

LEGEND = (
    "Agree: draws that mean what the answer means. Entropy: of their meanings, in nats; logprob: mean of a token.\n"
    "AUROC: how well each tells hallucinated answers from correct ones, .5 not at all, 1 in full."
)
# The measures of one sample, in the order of their columns.
MEASURES = ("self_consistency", "semantic_entropy", "weighted_entropy", "meanings", "abstaining", "logprob")
# Of these more is less doubt.
OF_CONFIDENCE = frozenset({"self_consistency", "logprob"})
SHOWN = ("self_consistency", "semantic_entropy", "logprob")  # in the terminal; the JSON has all
Measured = Mapping[str, float]


class Mean(TypedDict):
    """Over n samples, with its 95 % interval, which is None for samples of a single cluster."""

    mean: float | None
    low: float | None
    high: float | None
    n: int


def answered_draws(draws: Iterable[Draw]) -> dict[SampleKey, list[Draw]]:
    """By the sample to whose prompt they are."""
    return by_sample(draw for draw in draws if draw.error is None)


def describe_doubt(
    rows: Sequence[SampleRow], draws: Mapping[SampleKey, Sequence[Draw]], same_meaning: SameMeaning = same_words
) -> dict[str, Any] | None:
    """The figures of one point; None where there is not a single draw or log probability.

    Args:
        draws: as `answered_draws` gives them, of other points too.
    """
    answered = [row for row in rows if row.error is None]
    own = [draws.get(key_of(row), ()) for row in answered]
    measured = [_measure(row, drawn, same_meaning) for row, drawn in zip(answered, own, strict=True)]
    if not any(measured):
        return None
    judged = [
        (row, found)
        for row, found in zip(answered, measured, strict=True)
        if row.verdict in ("correct", "hallucinated")
    ]
    return {
        "draws": max(map(len, own)),
        **{name: _mean(answered, measured, name) for name in MEASURES},
        "auroc": {name: _auroc(judged, name) for name in MEASURES},
        "risk_coverage": _risk_coverage(judged),
    }


def _measure(row: SampleRow, draws: Sequence[Draw], same_meaning: SameMeaning) -> Measured:
    found: dict[str, float | None] = {}
    doubt = doubt_of(row.question, row.answer, draws, row.permission, same_meaning)
    if doubt is not None:
        found = {
            "self_consistency": doubt.self_consistency,
            "semantic_entropy": doubt.semantic_entropy,
            "weighted_entropy": doubt.weighted_entropy,
            "meanings": doubt.num_meanings,
            "abstaining": doubt.abstaining,
        }
    if row.logprob is not None and row.logprob_tokens:
        found["logprob"] = row.logprob / row.logprob_tokens
    return {name: value for name, value in found.items() if value is not None}


def _mean(rows: Sequence[SampleRow], measured: Sequence[Measured], name: str) -> Mean:
    values = {row.question_id: found[name] for row, found in zip(rows, measured, strict=True) if name in found}
    if not values:
        return Mean(mean=None, low=None, high=None, n=0)
    table = tabulate([values], {row.question_id: row.cluster for row in rows})
    mean = float(table.means[0])
    if len(table.sums) == 1:
        return Mean(mean=mean, low=None, high=None, n=len(values))
    low, high = bca_interval(mean, table.resampled()[:, 0], table.without_each()[:, 0])
    return Mean(mean=mean, low=low, high=high, n=len(values))


def _auroc(judged: Sequence[tuple[SampleRow, Measured]], name: str) -> Auroc | None:
    known = [(row, found[name]) for row, found in judged if name in found]
    sign = -1 if name in OF_CONFIDENCE else 1
    return clustered_auroc(
        [sign * value for _, value in known],
        [row.verdict == "hallucinated" for row, _ in known],
        [row.cluster for row, _ in known],
    )


def _risk_coverage(judged: Sequence[tuple[SampleRow, Measured]]) -> dict[str, Any] | None:
    """By the log probabilities; thinned to MAX_CURVE_POINTS, of which the last has all answers."""
    known = [(row, found["logprob"]) for row, found in judged if "logprob" in found]
    curve = risk_coverage([value for _, value in known], [row.verdict == "hallucinated" for row, _ in known])
    if curve is None:
        return None
    whole = len(curve["coverage"])
    kept = sorted({round(place * (whole - 1) / (MAX_CURVE_POINTS - 1)) for place in range(MAX_CURVE_POINTS)})
    return {
        "coverage": [curve["coverage"][place] for place in kept],
        "risk": [curve["risk"][place] for place in kept],
        "area": curve["area"],
        "n": len(known),
    }


def doubt_table(series: Mapping[str, Any]) -> Table | None:
    """A line for each point at which doubt was measured; None where it was not."""
    points = [point for point in series["points"] if point["doubt"] is not None]
    if not points:
        return None
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=0)
    headings = ("budget", "draws", "agree %", "entropy", "logprob", "AUROC agree", "entropy", "logprob", "risk area")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for point in points:
        table.add_row(str(point["budget"]), *_cells(point["doubt"]))
    return table


def _cells(doubt: Mapping[str, Any]) -> list[str]:
    agree, curve = doubt["self_consistency"]["mean"], doubt["risk_coverage"]
    judged = [doubt["auroc"][name] for name in SHOWN]
    return [
        str(doubt["draws"]),
        "-" if agree is None else f"{100 * agree:.1f}",
        *(_short(doubt[name]["mean"]) for name in SHOWN[1:]),
        *(_short(found and found["auroc"]) for found in judged),
        _short(curve and curve["area"]),
    ]


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
