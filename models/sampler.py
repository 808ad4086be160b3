"""From logits to tokens. Each row's draw depends on its own seed, step and logits alone, never on its company."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_MASK = (1 << 64) - 1
GREEDY_BELOW = 1e-5  # a temperature below it is taken for 0: only what is as good as a tie could tell them apart


@dataclass(frozen=True, slots=True)
class SamplingRow:
    """How one row is sampled.

    A temperature below GREEDY_BELOW takes the likeliest token; top_k 0, top_p 1 and min_p 0 are off. `step` is the
    number of tokens that the sequence has generated before this one: with `seed` it fixes the random draw.
    """

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    seed: int
    step: int


def uniform(seed: int, step: int) -> float:
    """A number in [0, 1) that is fixed by (seed, step). Source: the splitmix64 mixing function."""
    mixed = (seed + (step + 1) * 0x9E3779B97F4A7C15) & _MASK
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
    return ((mixed ^ (mixed >> 31)) >> 11) / (1 << 53)


def finite(logits: Tensor) -> Tensor:
    """Logits that can be subtracted and compared: a NaN, the greatest of all to torch, becomes the least."""
    limit = torch.finfo(logits.dtype).max
    return logits.nan_to_num(nan=-limit, posinf=limit, neginf=-limit)


def sample(logits: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """Draw one token for each row. Nothing waits for the device.

    Args:
        logits: (r, vocab) float32; a NaN counts as the unlikeliest, so that one broken row harms no other.
            rows: r of them.
    Returns:
        (r,) int64 token ids, on the logits' device.
    Raises:
        ValueError: the numbers of rows disagree.
    """
    if logits.shape[0] != len(rows):
        raise ValueError(f"{logits.shape[0]} rows of logits for {len(rows)} sampling rows")
    logits = finite(logits)
    tokens = logits.argmax(dim=-1)
    drawn = [i for i, row in enumerate(rows) if row.temperature >= GREEDY_BELOW]
    if drawn:
        places = torch.tensor(drawn, device=logits.device)
        tokens = tokens.index_copy(0, places, _draw(logits[places], [rows[i] for i in drawn]))
    return tokens


def _draw(logits: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """Inverse-CDF sampling over the sorted probabilities that the filters leave, in float64."""

    def column(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=logits.device).unsqueeze(-1)

    logits = logits.double()
    # The greatest becomes 0 first: no quotient can overflow upwards.
    scaled = (logits - logits.amax(dim=-1, keepdim=True)) / column([row.temperature for row in rows])
    # A stable sort breaks ties by token id, so that equal logits give equal draws on every run.
    values, order = scaled.sort(dim=-1, descending=True, stable=True)
    probabilities = values.softmax(dim=-1)
    rank = torch.arange(logits.shape[-1], device=logits.device)
    limit = column([row.top_k or logits.shape[-1] for row in rows])
    keep = rank < limit
    keep &= probabilities >= column([row.min_p for row in rows]) * probabilities[:, :1]
    # Nucleus: a token stays while the mass before it, among those that the other filters left, is below top_p.
    probabilities = probabilities * keep
    probabilities = probabilities / probabilities.sum(dim=-1, keepdim=True)
    before = probabilities.cumsum(dim=-1) - probabilities
    probabilities = probabilities * ((before < column([row.top_p for row in rows])) | (rank == 0))
    cumulative = probabilities.cumsum(dim=-1)
    target = column([uniform(row.seed, row.step) for row in rows]) * cumulative[:, -1:]
    # The first place whose cumulative mass exceeds the target; places without mass can't be the first.
    places = (cumulative <= target).sum(dim=-1, keepdim=True)
    places = torch.minimum(places, (probabilities > 0).sum(dim=-1, keepdim=True) - 1).clamp(min=0)
    return order.gather(-1, places).squeeze(-1)
