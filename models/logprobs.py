"""Log-probabilities of tokens in the model's own distribution. Each row's come of its own logits alone."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from models.sampler import finite

LEAST = -9999.0  # told instead of less, which JSON cannot hold where it is infinite
SLICE_ROWS, SLICE_BYTES = 64, 64 << 20  # of float32 logits that are there at once


@dataclass(frozen=True, slots=True)
class RowLogprobs:
    """What is told of r rows and the token that came of each.

    Attributes:
        tokens: (r,) int64. values: (r,) float32, their log-probabilities.
        ranks: (r,) int64, 1 where no token is likelier. Of equally likely ones the lower id comes first.
        top_ids: (r, k) int64, the likeliest, in order. top_values: (r, k) float32, theirs.
    """

    tokens: Tensor
    values: Tensor
    ranks: Tensor
    top_ids: Tensor
    top_values: Tensor


def row_logprobs(logits: Tensor, tokens: Tensor, num_top: int) -> RowLogprobs:
    """The log-softmax of each row, in float32, at its token and at the likeliest ones.

    Args:
        logits: (r, vocab) float32; a NaN counts as the unlikeliest. tokens: (r,) int64.
    """
    logits = finite(logits)
    # The kernel takes each row alone. A sum over one row would be divided among threads, over many rows it is not.
    logprobs = logits.log_softmax(dim=-1).clamp(min=LEAST)
    column = tokens.unsqueeze(-1)
    own = logits.gather(-1, column)
    ids = torch.arange(logits.shape[-1], device=logits.device)
    ranks = 1 + ((logits > own) | ((logits == own) & (ids < column))).sum(dim=-1)
    top_ids = _likeliest(logits, min(num_top, logits.shape[-1]))
    return RowLogprobs(tokens, logprobs.gather(-1, column).squeeze(-1), ranks, top_ids, logprobs.gather(-1, top_ids))


def _likeliest(logits: Tensor, count: int) -> Tensor:
    """(r, count) ids in order; of equal logits the lower id first, which topk alone does not promise."""
    if not count:
        return torch.empty(len(logits), 0, dtype=torch.int64, device=logits.device)
    values, top = logits.topk(count, dim=-1)
    least = values[:, -1:]
    # Those above the least are what they are; which of the others are taken is settled by their ids.
    ids = torch.arange(logits.shape[-1], device=logits.device)
    tied = torch.where(logits == least, ids, logits.shape[-1]).topk(count, dim=-1, largest=False).values
    above = values > least
    place = (torch.arange(count, device=logits.device) - above.sum(dim=-1, keepdim=True)).clamp(min=0)
    top, order = torch.where(above, top, tied.gather(-1, place)).sort(dim=-1)
    order = logits.gather(-1, top).sort(dim=-1, descending=True, stable=True).indices
    return top.gather(-1, order)


def slice_rows(vocab_size: int) -> int:
    """How many rows of logits may be there at once: a power of two, so that slices end where chunks of prompts do."""
    fitting = max(1, SLICE_BYTES // (4 * vocab_size))
    return min(SLICE_ROWS, 1 << (fitting.bit_length() - 1))


def slices(start: int, stop: int, size: int) -> Iterator[tuple[int, int]]:
    """start .. stop, cut at the multiples of `size`: what is in a slice depends on the positions, not on a chunk."""
    while start < stop:
        end = min(stop, (start // size + 1) * size)
        yield start, end
        start = end


def score_rows(
    head: Callable[[Tensor], Tensor], hidden: Tensor, tokens: Tensor, *, first: int, num_top: int, size: int
) -> RowLogprobs:
    """Log-probabilities of the tokens that follow some positions of a text, with a slice of the logits at a time.

    Args:
        head: hidden states (n, hidden) -> logits (n, vocab) float32.
        hidden: (r, hidden) at positions first, first + 1, ... tokens: (r,) int64, each position's next.
        size: rows of a slice at most.
    """
    parts = [
        row_logprobs(head(hidden[start - first : stop - first]), tokens[start - first : stop - first], num_top)
        for start, stop in slices(first, first + len(tokens), size)
    ]
    return RowLogprobs(
        tokens,
        *(torch.cat([getattr(part, name) for part in parts]) for name in ("values", "ranks", "top_ids", "top_values")),
    )
