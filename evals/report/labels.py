"""The words and colours of the report: one for each permission, condition, outcome and model, the same everywhere."""

from collections.abc import Iterable, Mapping
from typing import Any

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
# Told apart by eyes with any colour vision, on white and on near-black (after Okabe and Ito).
CONDITION_COLOURS = {
    "closed": "#6c757d",
    "oracle": "#1f9e77",
    "natural": "#2b83ba",
    "gold+distractors": "#e07b1a",
    "no-gold": "#d1495b",
    "conflict": "#8a7cc8",
}
PART_LABELS = {
    "present": "evidence in the context: reading failed",
    "absent": "evidence missing: retrieval failed",
    "unanswerable": "no document has the answer",
}
PART_COLOURS = {"present": "#e07b1a", "absent": "#2b83ba", "unanswerable": "#8a7cc8"}
_MODEL_COLOURS = ["#2b83ba", "#e07b1a", "#1f9e77", "#c0569b", "#8a7cc8", "#b39b00", "#d1495b", "#6c757d"]


def model_colours(series: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """A colour for each model, the same in all charts."""
    models = sorted({one["model"] for one in series})
    return {model: _MODEL_COLOURS[place % len(_MODEL_COLOURS)] for place, model in enumerate(models)}


def outcome_colours(series: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Of what became of the questions; what an altered document makes of them only where there is one."""
    conflict = any(one["condition"] == "conflict" for one in series)
    return {name: colour for name, colour in OUTCOME_COLOURS.items() if conflict or "altered" not in name}


def condition_colours(series: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Of the conditions that were asked, in their order; without documents where a curve begins there."""
    asked = {one["condition"] for one in series}
    asked |= {
        "closed" for one in series if any(point["budget"] == 0 for point in one["points"]) and asked != {"oracle"}
    }
    return {CONDITION_LABELS[name]: colour for name, colour in CONDITION_COLOURS.items() if name in asked}


def part_colours() -> dict[str, str]:
    return {PART_LABELS[name]: colour for name, colour in PART_COLOURS.items()}
