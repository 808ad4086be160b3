"""In float32 and bfloat16, with numba, the logits are the same to the bit, in any chunks and any company."""

import pytest
import torch
from attention_cases import SCORES, SHAPES, Shape, paged
from paged_driver import PagedDriver

from models.cache import KVCache
from models.load import load_decoder

pytest.importorskip("numba", reason="numba is an extra")

from models.kernels.attention_numba import attend_decode, attend_prefill

LENGTH = 150  # over a tile of the attention
# Heads of whole vectors are read where they lie, four or one at once.
HEADS = SHAPES | {"five, no groups": Shape(5, 5, 64, 16), "groups of 6": Shape(12, 2, 96, 16)}
FAMILIES = ("gemma2", "gpt-oss", "jamba", "llama-tied", "mamba2-tied", "mistral-window", "qwen3-next", "zamba2")


def tokens(seed: int, length: int) -> list[int]:
    return torch.randint(0, 131, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def read(decoder, sizes: list[int], others: dict[int, int]) -> torch.Tensor:
    """Logits of one prompt read in chunks; others: how many tokens of each other sequence are read beside each."""
    driver = PagedDriver(decoder, 1 + len(others), LENGTH)
    pieces = []
    for chunk in torch.tensor(tokens(1, LENGTH)).split(sizes):
        work = {0: chunk.tolist()}
        for sequence, count in others.items():
            done = driver.lengths[sequence]
            rest = tokens(sequence + 1, LENGTH)[done : done + count]
            if rest:
                work[sequence] = rest
        pieces.append(driver.step(dict(reversed(work.items())))[0])
    return torch.cat(pieces)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", FAMILIES)
def test_chunks_and_company(pairs, device, name, dtype):
    if device.type != "cpu":
        pytest.skip("no promise on a GPU")
    decoder = load_decoder(pairs(name).directory, dtype=dtype, device=device)
    whole = read(decoder, [LENGTH], {})
    assert torch.equal(read(decoder, [64, 64, 22], {1: 90, 2: 1}), whole)
    assert torch.equal(read(decoder, [7] * 12 + [1] * 3 + [63], {1: 13, 2: 1}), whole)
    assert torch.equal(read(decoder, [40, *[1] * 4, 65, *[1] * 41], {}), whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("scores", SCORES.values(), ids=SCORES)
@pytest.mark.parametrize("shape", HEADS.values(), ids=HEADS)
def test_attention(shape, scores, dtype):
    """A query alone is the query in a run, in runs that begin and end anywhere."""
    length, generator = 300, torch.Generator().manual_seed(2)
    cache = paged(shape, [length], generator, dtype)
    q = torch.randn(300, shape.heads, shape.head_dim, generator=generator).to(dtype)
    kv, table = KVCache(cache.keys, cache.values), cache.tables[0].long()
    sinks = torch.randn(shape.heads, generator=generator)
    whole = attend_prefill(q, kv, table, 0, scores=scores, sinks=sinks)
    for start, stop in ((0, 2), (3, 131), (125, 130), (299, 300)):
        assert torch.equal(
            attend_prefill(q[start:stop], kv, table, start, scores=scores, sinks=sinks), whole[start:stop]
        )
    alone = [0, 127, 128, 299]
    tables, lengths = table.expand(4, -1), torch.tensor(alone) + 1
    assert torch.equal(attend_decode(q[alone], kv, tables, lengths, scores=scores, sinks=sinks), whole[alone])
