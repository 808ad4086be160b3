"""How the rate of hallucinations depends on where the evidence stood, at each length."""

from collections.abc import Mapping, Sequence
from typing import TypedDict

from evals.records import SampleRow
from evals.stats.rates import Rate, clustered_rate

NUM_BINS = 5
FORMULA = (
    f"the share of hallucinations among the samples with evidence in the context, by budget and by {NUM_BINS} equal"
    " ranges of the depth of its first document (0 = first of all, 1 = last)"
)


# "from" is a word of the language.
DepthCell = TypedDict("DepthCell", {"budget": int, "from": float, "to": float, "hallucinated": Rate})


def depth_cells(by_budget: Mapping[int, Sequence[SampleRow]]) -> list[DepthCell]:
    """A cell for each budget and range of depths in which there are samples with all of their evidence."""
    cells: list[DepthCell] = []
    for budget in sorted(budget for budget in by_budget if budget > 0):
        bins: dict[int, list[SampleRow]] = {}
        for row in by_budget[budget]:
            if row.depth is not None and row.gold_in_context and row.lost is None:
                bins.setdefault(min(int(row.depth * NUM_BINS), NUM_BINS - 1), []).append(row)
        for place, rows in sorted(bins.items()):
            wrong = clustered_rate((row.cluster, row.verdict == "hallucinated") for row in rows)
            ends = {"from": place / NUM_BINS, "to": (place + 1) / NUM_BINS}
            cells.append({"budget": budget, **ends, "hallucinated": wrong})  # type: ignore[typeddict-item]
    return cells
