"""Paged caches to attend over, poisoned wherever nothing may be read, and what attention is, written out in float64."""

from dataclasses import dataclass

import torch
from poison import rows_apart

from models.config import ScoreSpec


@dataclass(frozen=True)
class Shape:
    heads: int
    kv_heads: int
    head_dim: int
    block_size: int


SHAPES = {
    "groups of 3, odd size": Shape(6, 2, 24, 16),
    "no groups, large blocks": Shape(2, 2, 80, 256),
    "one key head": Shape(8, 1, 128, 16),
}
SCORES = {
    "plain": ScoreSpec(),
    "scaled and capped": ScoreSpec(scale=0.3, softcap=1.7),
    "short window": ScoreSpec(window=7),
    "window": ScoreSpec(window=40, softcap=30.0),
    "window longer than all": ScoreSpec(window=1000),
}


@dataclass(frozen=True)
class Paged:
    """A cache with the blocks of some sequences in a scattered order, and not side by side. All that is not theirs is
    NaN.
    """

    keys: torch.Tensor
    values: torch.Tensor
    tables: torch.Tensor
    lengths: list[int]


def paged(shape: Shape, lengths: list[int], generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Paged:
    """On the CPU. What tables do not need names a block of NaN, as do two columns more than the longest needs."""
    counts = [-(-length // shape.block_size) for length in lengths]
    dealt = iter(torch.randperm(sum(counts), generator=generator).tolist())
    tables = torch.full((len(lengths), max(counts) + 2), sum(counts), dtype=torch.int32)
    size = (sum(counts) + 1, shape.block_size, shape.kv_heads, shape.head_dim)
    keys, values = (torch.full(size, float("nan"), dtype=dtype) for _ in range(2))
    keys, values = rows_apart(keys), rows_apart(values)
    for row, length in enumerate(lengths):
        for column in range(counts[row]):
            tables[row, column] = block = next(dealt)
            written = min(shape.block_size, length - column * shape.block_size)
            for cached in (keys, values):
                cached[block, :written] = torch.randn(written, *size[2:], generator=generator)
    return Paged(keys, values, tables, lengths)


def forget(cache: Paged, row: int, before: int) -> None:
    """Make NaN of what a sequence has written before a position."""
    block_size = cache.keys.shape[1]
    for column in range(-(-before // block_size)):
        for cached in (cache.keys, cache.values):
            cached[int(cache.tables[row, column]), : before - column * block_size] = float("nan")


def expected(
    q: torch.Tensor, cache: Paged, row: int, scores: ScoreSpec, *, first: int, sinks: torch.Tensor | None = None
) -> torch.Tensor:
    """Attention of a sequence's queries (n, heads, head_dim) at positions first .. first + n - 1, in float64."""
    stop, group = first + len(q), q.shape[1] // cache.keys.shape[2]
    blocks = cache.tables[row, : -(-stop // cache.keys.shape[1])].long()
    keys, values = (
        cached[blocks].flatten(0, 1)[:stop].double().repeat_interleave(group, dim=1)
        for cached in (cache.keys, cache.values)
    )
    products = torch.einsum("nhd,thd->hnt", q.double(), keys) * (scores.scale or q.shape[-1] ** -0.5)
    if scores.softcap:
        products = scores.softcap * torch.tanh(products / scores.softcap)
    queries, tokens = torch.arange(first, stop).unsqueeze(-1), torch.arange(stop)
    visible = (tokens <= queries) & (tokens > queries - (scores.window or stop))
    products = products.masked_fill(~visible, -torch.inf)
    if sinks is not None:
        products = torch.cat((products, sinks.double()[:, None, None].expand(-1, len(q), 1)), dim=-1)
    return torch.einsum("hnt,thd->nhd", products.softmax(-1)[..., :stop], values)
