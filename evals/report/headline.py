"""What a sweep says in a few words, all of it computed from the summary."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evals.records import CONDITIONS, PERMISSIONS, WITHOUT_LENGTH, Condition, Permission
from evals.summary import data_size, milliseconds

MAX_STORIES_IN_HEADLINE = 3


@dataclass(frozen=True, slots=True)
class Story:
    """One model on one dataset: without documents, at its best budget, at its longest context.

    `floor` is None where budget 0 was not asked; `first` is the shortest context of all.
    """

    model: str
    kind: str
    dataset: str
    permission: Permission
    floor: Mapping[str, Any] | None
    first: Mapping[str, Any]
    best: Mapping[str, Any]
    last: Mapping[str, Any]


def headline_permission(series: Sequence[Mapping[str, Any]]) -> Permission | None:
    """The permission that the headline is about: always to answer, where it was asked."""
    return next((name for name in PERMISSIONS if any(one["permission"] == name for one in series)), None)


def headline_condition(series: Sequence[Mapping[str, Any]]) -> Condition | None:
    """What the headline is about: retrieved documents, where those were asked with, else the first with a length."""
    order = ("natural", *(name for name in CONDITIONS if name not in WITHOUT_LENGTH))
    return next((name for name in order if any(one["condition"] == name for one in series)), None)


def find_stories(summary: Mapping[str, Any]) -> list[Story]:
    """One for each model and dataset as the headline is about, scored at two budgets or more."""
    permission, condition = headline_permission(summary["models"]), headline_condition(summary["models"])
    stories = []
    for one in summary["models"]:
        points = [point for point in one["points"] if point["hallucinated"]["rate"] is not None]
        if (one["permission"], one["condition"]) != (permission, condition) or len(points) < 2:
            continue
        floor = points[0] if points[0]["budget"] == 0 else None
        with_documents = points[1:] if floor else points
        # Of equally good budgets the smallest: it costs least.
        best = min(with_documents, key=lambda point: (point["hallucinated"]["rate"], point["budget"]))
        ends = {"floor": floor, "first": points[0], "best": best, "last": points[-1]}
        stories.append(Story(one["model"], one["kind"], one["dataset"], one["permission"], **ends))
    return stories


def headline(stories: Sequence[Story]) -> str:
    """One sentence about the first models; says so where there is nothing to compare."""
    if not stories:
        return "No model was asked at two budgets, so there is no effect of context length to report."
    told = [_sentence(story) for story in stories[:MAX_STORIES_IN_HEADLINE]]
    return f"With documents, hallucination goes {_join(told)}."


def _sentence(story: Story) -> str:
    best = whole_percent(story.best["hallucinated"]["rate"])
    whose = f"for {story.model} at {story.best['budget']:,} tokens"
    text = f"to {best} {whose}"
    if story.floor is not None:
        text = f"from {whole_percent(story.floor['hallucinated']['rate'])} {text}"
    if story.last is not story.best:
        # The best budget alone would hide that more context makes it worse again.
        text += f" ({whole_percent(story.last['hallucinated']['rate'])} at {story.last['budget']:,})"
    return text


def _join(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def facts(story: Story) -> list[tuple[str, str]]:
    """The story's figures as label and text, for a card."""
    lines = []
    change = story.best["vs_closed_book"]
    if change is not None and change["difference"] is not None:
        lines.append(("paired change", _change(change)))
    if story.last is not story.best:
        lines.append((f"at {story.last['budget']:,} tokens", rate_with_interval(story.last["hallucinated"])))
    for label, key, field, show in (
        ("median TTFT", "ttft_s", "p50", lambda value: f"{milliseconds(value)} ms"),
        ("cache of a sequence", "cache_bytes", "mean", data_size),
    ):
        first, last = story.first[key][field], story.last[key][field]
        if first is not None and last is not None:
            lines.append((label, f"{show(first)} → {show(last)}"))
    return lines


def _change(change: Mapping[str, Any]) -> str:
    text = f"{signed_points(change['difference'])} points"
    if change["low"] is not None:
        text += f" [{signed_points(change['low'])}, {signed_points(change['high'])}]"
    return f"{text} (n {change['n_pairs']})"


def signed_points(difference: float | None) -> str:
    """A difference of shares in percentage points, with its sign."""
    if difference is None:
        return "-"
    # Rounded first: a change of nothing has no sign.
    return f"{round(100 * difference, 1) + 0.0:+.1f}".replace("-", "\N{MINUS SIGN}")


def whole_percent(share: float) -> str:
    """A share for running text; never rounded to none or all where it is neither."""
    rounded = round(100 * share)
    if (rounded == 0 and share > 0) or (rounded == 100 and share < 1):
        return f"{100 * share:.1f}%"
    return f"{rounded}%"


def rate_with_interval(share: Mapping[str, Any]) -> str:
    if share["rate"] is None:
        return "-"
    return f"{100 * share['rate']:.1f}% [{100 * share['low']:.1f}, {100 * share['high']:.1f}]"
