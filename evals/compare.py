"""Two models, or one model in two runs, on the same questions: what differs, and whether that is more than chance.

Questions are paired at each budget. Where budgets are tokens of two tokenizers, the documents of a pair may differ;
then how many pairs have the same ones is told beside the figures, or only such pairs are taken.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from evals.config import ConfigError
from evals.points import SCORED, mean
from evals.records import CONDITIONS, PERMISSIONS, SampleRow
from evals.stats import ratios
from evals.stats.paired import FORMULAS, holm, paired_difference
from evals.store import FILE_NAME, Store

SCHEMA = "fathom.compare/1"
DATA = "--seed or --data"
Pairing = Literal["budget", "documents"]
PAIRINGS: tuple[Pairing, ...] = ("budget", "documents")
Pair = tuple[SampleRow, SampleRow]
Group = tuple[str, str, str, int]  # dataset, condition, permission, budget

DEFINITIONS: dict[str, str] = {
    "difference": "mean over questions of (outcome at b - outcome at a), questions with a verdict at both; 95 % BCa"
    " bootstrap interval of whole clusters (questions about one entity)",
    "p_value": FORMULAS["p_value"],
    "p_adjusted": "the same after Holm's correction for all points of this comparison, for each outcome by itself",
    "equivalent_within": FORMULAS["equivalent_within"],
    "a, b": "the share of the outcome among the pairs with a verdict at both",
    "same_documents": "share of the pairs that were asked with the very same documents in the same order",
    "prompt_tokens": "mean of the server's usage.prompt_tokens, over the pairs",
    "ttft": ratios.FORMULA + "; pairs that were answered at both",
}


@dataclass(frozen=True, slots=True)
class Side:
    """One model in one store. settings: by dataset, what decided its samples, as far as that was noted."""

    directory: Path
    model: str
    rows: tuple[SampleRow, ...]
    settings: Mapping[str, Mapping[str, str]]


def read_side(directory: Path, model: str | None, *, option: str) -> Side:
    """Raises:
    ConfigError: there is no store, or not this model in it, or several where none is named.
    """
    if not (directory / FILE_NAME).is_file():
        raise ConfigError(f"{directory} has no {FILE_NAME}; it is not the --out of a run")
    with Store(directory) as store:
        rows, settings = list(store.rows()), store.settings()
    models = sorted({row.model for row in rows})
    if model is None and len(models) != 1:
        raise ConfigError(f"{directory} holds {len(models)} models ({', '.join(models)}): name one by {option}")
    chosen = model or models[0]
    if chosen not in models:
        raise ConfigError(f"{option} {chosen!r} is not in {directory}; there are: {', '.join(models)}")
    own = {dataset: noted for (name, dataset), noted in settings.items() if name == chosen}
    return Side(directory, chosen, tuple(row for row in rows if row.model == chosen), own)


def compare(a: Side, b: Side, pairing: Pairing = "budget") -> dict[str, Any]:
    """Everything that compare.json has.

    Raises:
        ConfigError: the two were asked other questions, or none in common.
    """
    differing = _differing_settings(a, b)
    groups = pair_up(a.rows, b.rows, pairing)
    if not groups:
        raise ConfigError(f"{_named(a)} and {_named(b)} have no sample in common to compare")
    points = [_point(group, groups[group]) for group in sorted(groups, key=_order)]
    for outcome in SCORED:
        adjusted = holm([point[outcome]["p_value"] for point in points])
        for point, value in zip(points, adjusted, strict=True):
            point[outcome]["p_adjusted"] = value
    return {
        "schema": SCHEMA,
        "a": {"model": a.model, "directory": str(a.directory), "kind": a.rows[0].kind},
        "b": {"model": b.model, "directory": str(b.directory), "kind": b.rows[0].kind},
        "pairing": pairing,
        "settings": differing,
        "points": points,
        "definitions": DEFINITIONS,
    }


def _named(side: Side) -> str:
    return f"{side.model} in {side.directory}"


def _differing_settings(a: Side, b: Side) -> dict[str, dict[str, dict[str, str | None]]]:
    """By dataset and setting: what it was in either; that both may differ in.

    Raises:
        ConfigError: the questions or documents of a dataset are not the same.
    """
    differing: dict[str, dict[str, dict[str, str | None]]] = {}
    for dataset in sorted(a.settings.keys() & b.settings.keys()):
        first, second = a.settings[dataset], b.settings[dataset]
        if first.get(DATA) != second.get(DATA):
            raise ConfigError(
                f"{dataset} is not the same in both: {DATA} is {first.get(DATA)} in {_named(a)}, "
                f"{second.get(DATA)} in {_named(b)}"
            )
        names = [name for name in {**first, **second} if first.get(name) != second.get(name)]
        if names:
            differing[dataset] = {name: {"a": first.get(name), "b": second.get(name)} for name in names}
    return differing


def pair_up(first: Iterable[SampleRow], second: Iterable[SampleRow], pairing: Pairing) -> dict[Group, list[Pair]]:
    """Samples of one question, at the same budget, or with the same documents whatever the budget.

    Of several budgets with the same documents a sample's own comes first, then the smallest. Groups have the budget of
    the first.

    Raises:
        ConfigError: a question is not the same in both.
    """
    candidates: dict[tuple[str, ...], dict[int, SampleRow]] = {}
    for row in second:
        candidates.setdefault(_question_key(row), {})[row.budget] = row
    groups: dict[Group, list[Pair]] = {}
    for row in first:
        other = _partner(row, candidates.get(_question_key(row), {}), pairing)
        if other is None:
            continue
        if other.question != row.question:
            raise ConfigError(f"question {row.question_id} of {row.dataset} is not the same in both")
        groups.setdefault((row.dataset, row.condition, row.permission, row.budget), []).append((row, other))
    return groups


def _question_key(row: SampleRow) -> tuple[str, ...]:
    return row.dataset, row.condition, row.permission, row.question_id


def _partner(row: SampleRow, by_budget: Mapping[int, SampleRow], pairing: Pairing) -> SampleRow | None:
    own = by_budget.get(row.budget)
    if pairing == "budget" or (own is not None and own.doc_ids == row.doc_ids):
        return own
    same = [other for _, other in sorted(by_budget.items()) if other.doc_ids == row.doc_ids]
    return same[0] if same else None


def _order(group: Group) -> tuple[Any, ...]:
    dataset, condition, permission, budget = group
    return dataset, [*CONDITIONS].index(condition), [*PERMISSIONS].index(permission), budget  # type: ignore[arg-type]


def _point(group: Group, pairs: Sequence[Pair]) -> dict[str, Any]:
    dataset, condition, permission, budget = group
    clusters = {a.question_id: a.cluster for a, _ in pairs}
    return {
        "dataset": dataset,
        "condition": condition,
        "permission": permission,
        "budget": budget,
        "n_pairs": len(pairs),
        "same_documents": sum(a.doc_ids == b.doc_ids for a, b in pairs) / len(pairs),
        "prompt_tokens": _both(lambda side: mean(row.prompt_tokens for row in side if row.prompt_tokens), pairs),
        "documents": _both(lambda side: mean(len(row.doc_ids) for row in side), pairs),
        "unscored": _both(lambda side: sum(row.verdict == "unscored" for row in side), pairs),
        **{outcome: _outcome(outcome, pairs, clusters) for outcome in SCORED},
        "ttft": _ttft(pairs, clusters),
    }


def _both(figure: Any, pairs: Sequence[Pair]) -> dict[str, Any]:
    return {"a": figure([a for a, _ in pairs]), "b": figure([b for _, b in pairs])}


def _outcome(outcome: str, pairs: Sequence[Pair], clusters: Mapping[str, str]) -> dict[str, Any]:
    scored = [(a, b) for a, b in pairs if "unscored" not in (a.verdict, b.verdict)]
    happened = [{row.question_id: row.verdict == outcome for row in side} for side in zip(*scored, strict=True)]
    first, second = happened or ({}, {})
    found = paired_difference(second, first, clusters)
    return {"a": mean(first.values()), "b": mean(second.values()), **found}


def _ttft(pairs: Sequence[Pair], clusters: Mapping[str, str]) -> dict[str, Any]:
    answered = [(a, b) for a, b in pairs if a.error is None and b.error is None and a.ttft_s and b.ttft_s]
    first = {a.question_id: a.ttft_s for a, _ in answered if a.ttft_s}
    second = {b.question_id: b.ttft_s for _, b in answered if b.ttft_s}
    return {**ratios.median_ratio(first, second, clusters)}
