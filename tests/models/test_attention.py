"""The attention kernel over a paged cache: right at every length, and no sequence pays for another's."""

import pytest
import torch
import torch.nn.functional as F
from devices import DEVICES

from models.cache import KVCache
from models.kernels.attention_torch import attend_decode, group_by_length

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


def plain(q: torch.Tensor, cache: KVCache, table: torch.Tensor, length: int) -> torch.Tensor:
    """One sequence's attention, (heads, head_dim), written out in float64."""
    blocks = table[: -(-length // BLOCK_SIZE)]
    keys, values = (
        tensor[blocks].flatten(0, 1)[:length].double().repeat_interleave(HEADS // KV_HEADS, dim=1)
        for tensor in (cache.keys, cache.values)
    )
    weights = (torch.einsum("hd,thd->ht", q.double(), keys) * HEAD_DIM**-0.5).softmax(-1)
    return torch.einsum("ht,thd->hd", weights, values)


@pytest.mark.parametrize("lengths", [[1], [40, 3, 17], [1, 2000, 256, 257, 90, 511, 2048, 33, 513]])
def test_decoding_is_plain_attention_whatever_the_company(device, lengths):
    q, cache, tables, counts = decode_inputs(lengths, device)
    out = attend_decode(q, cache, tables, counts)
    for row, length in enumerate(lengths):
        expected = plain(q[row], cache, tables[row], length)
        torch.testing.assert_close(out[row].double(), expected, rtol=0, atol=1e-6)


def test_a_long_context_does_not_lengthen_the_others(monkeypatch: pytest.MonkeyPatch):
    """What is gathered is of the order of what is attended to, not of the longest times the number of sequences."""
    gathered = []
    attention = F.scaled_dot_product_attention

    def counted(q, keys, values, **options):
        gathered.append(keys.shape[0] * keys.shape[2])
        return attention(q, keys, values, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
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
