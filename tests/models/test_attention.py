"""The attention kernel over a paged cache: right at every length, and no sequence pays for another's."""

import pytest
import torch
import torch.nn.functional as F
from attention_cases import Shape, expected, paged
from devices import DEVICES
from poison import num_poisoned, rows_apart

from models.cache import KVCache
from models.config import ScoreSpec
from models.kernels import attention_torch
from models.kernels.attention_torch import PLAIN, attend_decode, attend_prefill, group_by_length

BLOCK_SIZE, HEADS, KV_HEADS, HEAD_DIM = 16, 6, 2, 20


@pytest.fixture(params=DEVICES)
def device(request) -> torch.device:
    return torch.device(request.param)


def decode_inputs(lengths: list[int], device: torch.device) -> tuple[torch.Tensor, KVCache, torch.Tensor, torch.Tensor]:
    """Queries, a cache with the blocks in a scattered order, tables and lengths."""
    generator = torch.Generator().manual_seed(3)
    num_blocks = [-(-length // BLOCK_SIZE) for length in lengths]
    dealt = iter(torch.randperm(sum(num_blocks), generator=generator).tolist())
    tables = torch.full((len(lengths), max(num_blocks)), -1)
    for row, count in enumerate(num_blocks):
        tables[row, :count] = torch.tensor([next(dealt) for _ in range(count)])
    shape = (sum(num_blocks), BLOCK_SIZE, KV_HEADS, HEAD_DIM)
    keys, values = (torch.randn(shape, generator=generator).to(device) for _ in range(2))
    q = torch.randn(len(lengths), HEADS, HEAD_DIM, generator=generator).to(device)
    return q, KVCache(keys, values), tables.to(device), torch.tensor(lengths)


def plain(
    q: torch.Tensor,
    cache: KVCache,
    table: torch.Tensor,
    length: int,
    *,
    scores: ScoreSpec = PLAIN,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """One query's attention over the first positions, (heads, head_dim), written out in float64."""
    blocks = table[: -(-length // BLOCK_SIZE)]
    keys, values = (
        tensor[blocks].flatten(0, 1)[:length].double().repeat_interleave(HEADS // KV_HEADS, dim=1)
        for tensor in (cache.keys, cache.values)
    )
    products = torch.einsum("hd,thd->ht", q.double(), keys) * (scores.scale or HEAD_DIM**-0.5)
    if scores.softcap:
        products = scores.softcap * torch.tanh(products / scores.softcap)
    if scores.window:
        products[:, : max(0, length - scores.window)] = -torch.inf
    powers = products.exp()
    total = powers.sum(-1, keepdim=True)
    if sinks is not None:
        total = total + sinks.double().exp().unsqueeze(-1)
    return torch.einsum("ht,thd->hd", powers / total, values)


SCORES = {
    "plain": PLAIN,
    "scaled": ScoreSpec(scale=0.11),
    "capped": ScoreSpec(softcap=0.7),
    "window": ScoreSpec(window=37),
    "window of one": ScoreSpec(window=1),
    "window of a block": ScoreSpec(window=BLOCK_SIZE),
    "all": ScoreSpec(scale=0.3, softcap=1.3, window=300),
}


@pytest.fixture(params=[False, True], ids=["", "sinks"])
def sinks(request, device) -> torch.Tensor | None:
    if not request.param:
        return None
    return torch.randn(HEADS, generator=torch.Generator().manual_seed(7)).to(device)


@pytest.mark.parametrize("scores", SCORES.values(), ids=SCORES)
@pytest.mark.parametrize("lengths", [[1], [40, 3, 17], [1, 2000, 256, 257, 90, 511, 2048, 33, 513]])
def test_decoding_is_plain_attention_whatever_the_company(device, lengths, scores, sinks):
    q, cache, tables, counts = decode_inputs(lengths, device)
    out = attend_decode(q, cache, tables, counts, scores=scores, sinks=sinks)
    for row, length in enumerate(lengths):
        expected = plain(q[row], cache, tables[row], length, scores=scores, sinks=sinks)
        torch.testing.assert_close(out[row].double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("scores", SCORES.values(), ids=SCORES)
def test_decoding_from_blocks_that_lie_apart_looks_at_nothing_that_was_not_written(scores, sinks):
    lengths = [40, 3, 17, 300]
    generator = torch.Generator().manual_seed(4)
    cache = paged(Shape(HEADS, KV_HEADS, HEAD_DIM, BLOCK_SIZE), lengths, generator)
    q = torch.randn(len(lengths), HEADS, HEAD_DIM, generator=generator)
    kv, tables = KVCache(cache.keys, cache.values), cache.tables.long()
    out = attend_decode(q, kv, tables, torch.tensor(lengths), scores=scores, sinks=sinks)
    for row, length in enumerate(lengths):
        wanted = expected(q[row : row + 1], cache, row, scores, first=length - 1, sinks=sinks)
        torch.testing.assert_close(out[row].double(), wanted[0], rtol=0, atol=1e-6)


def test_writing_to_blocks_that_lie_apart():
    cache = KVCache(*(rows_apart(torch.zeros(4, BLOCK_SIZE, KV_HEADS, HEAD_DIM)) for _ in range(2)))
    keys, values = (torch.randn(3, KV_HEADS, HEAD_DIM) for _ in range(2))
    poisoned = num_poisoned(cache.keys)
    attention_torch.write_kv(cache, keys, values, torch.tensor([2 * BLOCK_SIZE + 5, -1, 3 * BLOCK_SIZE]))
    for pool, new in ((cache.keys, keys), (cache.values, values)):
        assert torch.equal(torch.stack((pool[2, 5], pool[3, 0])), new[[0, 2]])
        assert int((pool != 0).sum()) == 2 * KV_HEADS * HEAD_DIM
        assert num_poisoned(pool) == poisoned


@pytest.mark.parametrize("scores", SCORES.values(), ids=SCORES)
@pytest.mark.parametrize(("context_len", "num_new"), [(0, 2), (0, 90), (15, 2), (16, 33), (400, 50)])
def test_prefill_is_plain_attention(device, context_len, num_new, scores, sinks):
    _, cache, tables, _ = decode_inputs([context_len + num_new], device)
    q = torch.randn(num_new, HEADS, HEAD_DIM, generator=torch.Generator().manual_seed(5)).to(device)
    out = attend_prefill(q, cache, tables[0], context_len, scores=scores, sinks=sinks)
    for row in range(num_new):
        expected = plain(q[row], cache, tables[0], context_len + row + 1, scores=scores, sinks=sinks)
        torch.testing.assert_close(out[row].double(), expected, rtol=0, atol=1e-6)


def test_queries_one_after_the_other_where_scores_fill_the_memory(monkeypatch: pytest.MonkeyPatch):
    _, cache, tables, _ = decode_inputs([90], torch.device("cpu"))
    q, sinks = torch.randn(50, HEADS, HEAD_DIM), torch.randn(HEADS)
    whole = attend_prefill(q, cache, tables[0], 40, scores=ScoreSpec(window=30), sinks=sinks)
    monkeypatch.setattr(attention_torch, "MAX_SCORES", 7 * HEADS * 90)
    pieces = attend_prefill(q, cache, tables[0], 40, scores=ScoreSpec(window=30), sinks=sinks)
    torch.testing.assert_close(pieces, whole, rtol=0, atol=1e-6)


def test_what_lies_before_a_window_is_not_read(monkeypatch: pytest.MonkeyPatch):
    """A window costs what it is wide, not what the sequence is long."""
    read = count_keys(monkeypatch)
    q, cache, tables, counts = decode_inputs([5_000, 4_000, 30], torch.device("cpu"))
    attend_decode(q, cache, tables, counts, scores=ScoreSpec(window=64))
    assert sum(read) <= 3 * (64 + 2 * BLOCK_SIZE)
    read.clear()
    attend_prefill(q, cache, tables[0], 4_990, scores=ScoreSpec(window=64))
    assert sum(read) <= 64 + 3 + 2 * BLOCK_SIZE


def count_keys(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list to which every attention call appends how many keys it was given."""
    given = []
    attention = F.scaled_dot_product_attention

    def counted(q, keys, values, **options):
        given.append(keys.shape[0] * keys.shape[2])
        return attention(q, keys, values, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    return given


def test_a_long_context_does_not_lengthen_the_others(monkeypatch: pytest.MonkeyPatch):
    """What is gathered is of the order of what is attended to, not of the longest times the number of sequences."""
    gathered = count_keys(monkeypatch)
    lengths = [100] * 15 + [30_000]
    attend_decode(*decode_inputs(lengths, torch.device("cpu")))
    assert sum(lengths) <= sum(gathered) < 1.1 * sum(lengths)


def test_groups_hold_every_sequence_once_and_at_most_double_a_length():
    lengths = [1, 255, 256, 257, 512, 513, 1024, 1025, 30_000, 7, 16_385]
    groups = group_by_length(lengths)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    assert groups[0] == [0, 1, 2, 9]
    for group in groups[1:]:
        longest, shortest = (choose(lengths[index] for index in group) for choose in (max, min))
        assert longest < 2 * shortest
