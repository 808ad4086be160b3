"""The figures of one dataset, as the page shows them: charts of the headline's condition and permission, and tables."""

from collections.abc import Mapping, Sequence
from typing import Any

from evals.records import CONDITIONS
from evals.report import charts, cost_charts
from evals.report.axes import Chart, uses_prompt_tokens
from evals.report.doubt_charts import risk_budgets, risk_chart
from evals.report.headline import headline_condition, headline_permission
from evals.report.labels import condition_colours, model_colours, outcome_colours, part_colours
from evals.summary import caveats

Series = Sequence[Mapping[str, Any]]
EVIDENCE_PLACED = "gold+distractors"  # the one condition in which depth is drawn, not a matter of rank


def with_anchors(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The summary's series, each with the names by which the page knows its points."""
    return [
        {**one, "anchors": [f"p{number}-{place}" for place in range(len(one["points"]))]}
        for number, one in enumerate(summary["models"])
    ]


def main_series(series: Series) -> tuple[Series, Series]:
    """Of one dataset the series of the headline's condition, under all permissions and under the headline's."""
    condition = headline_condition(series) or next(name for name in CONDITIONS if _of(series, condition=name))
    own = _of(series, condition=condition)
    return own, _of(own, permission=headline_permission(own))


def charts_of(series: Series, fronts: Series = ()) -> dict[str, Chart | None]:
    """By name, all charts of one dataset but those that each model has its own of; fronts: the summary's."""
    own, headlined = main_series(series)
    permission = headlined[0]["permission"]
    same = _of(series, permission=permission)
    return {
        "conditions_chart": charts.conditions_chart(same),
        "hallucination": charts.hallucination_chart(own),
        "decomposition": charts.decomposition_chart(headlined),
        "gold": charts.gold_chart(headlined),
        "recall": charts.recall_chart(headlined),
        "depth": charts.depth_chart(_of(same, condition=EVIDENCE_PLACED)),
        "ttft": cost_charts.ttft_chart(headlined),
        "memory": cost_charts.memory_chart(headlined),
        "tpot": cost_charts.tpot_chart(headlined),
        "energy": cost_charts.energy_chart(headlined),
        "risk": risk_chart(headlined),
        "pareto": cost_charts.pareto_chart(fronts, headlined),
    }


def describe_dataset(name: str, series: Series) -> dict[str, Any]:
    """Everything but the charts."""
    own, headlined = main_series(series)
    permission = headlined[0]["permission"]
    return {
        "name": name,
        "caveats": caveats(series),
        "condition": own[0]["condition"],
        "permission": permission,
        "num_permissions": len({one["permission"] for one in own}),
        "prompt_tokens": uses_prompt_tokens(own),
        "cached_share": _cached_share(headlined),
        "colours": model_colours(series),
        "condition_colours": condition_colours(_of(series, permission=permission)),
        "part_colours": part_colours(),
        "outcome_colours": outcome_colours(own),
        "depth_condition": EVIDENCE_PLACED,
        "risk_budgets": risk_budgets(headlined),
        "turnings": [text for one in headlined if (text := _turning(one))],
        "by_condition": {
            condition: members for condition in CONDITIONS if (members := _of(series, condition=condition))
        },
    }


def _of(series: Series, **fields: Any) -> Series:
    return [one for one in series if all(one[name] == value for name, value in fields.items())]


def _cached_share(series: Series) -> float:
    """The largest share of a point's prompt tokens that came from a prefix cache: such a TTFT is a warm one."""
    points = [point for one in series for point in one["points"] if point["prompt_tokens_mean"]]
    return max(((point["cached_tokens_mean"] or 0) / point["prompt_tokens_mean"] for point in points), default=0.0)


def _turning(one: Mapping[str, Any]) -> str | None:
    turning = one.get("turning")
    if turning is None:
        return None
    interval = f"95% interval {turning['low']:,.0f} to {turning['high']:,.0f}"
    if turning["shape"] == "turns":
        return (
            f"{one['model']}: more context helps up to {turning['budget']:,.0f} ({interval}); the rate falls by"
            f" {100 * turning['fall']:.1f} points until there and rises by {100 * turning['rise']:.1f} from there on."
        )
    if turning["shape"] == "falls throughout":
        return f"{one['model']}: more context helps throughout, up to the longest one ({interval})."
    return f"{one['model']}: more context than the shortest does not help ({interval})."
