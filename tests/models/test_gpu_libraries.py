"""The libraries with GPU kernels against plain torch, each where it is installed and a GPU is there."""

import pytest
import torch

from models.batch import ForwardBatch
from models.cache import KVCache
from models.config import ScoreSpec
from models.kernels import attention_torch
from models.kernels.bind import attention_kernels
from models.kernels.choose import Need, choose
from models.kernels.convolution_torch import convolve
from models.kernels.environment import Environment, probe
from models.kernels.mamba_backends import convolve as library_convolve
from models.kernels.mamba_backends import ssd_scan as library_ssd_scan
from models.kernels.ssd_torch import ssd_scan

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
BLOCK_SIZE, HEAD_DIM = 256, 64


@pytest.fixture(scope="module")
def environment() -> Environment:
    return probe(torch.device("cuda"))


def skip_unless(backend: str, operation: str, environment: Environment, need: Need) -> None:
    choice = choose(operation, environment, need)
    if backend in dict(choice.passed_over):
        pytest.skip(dict(choice.passed_over)[backend])


def random(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, device="cuda").to(dtype)


def mixed_batch(new: list[int], contexts: list[int]) -> ForwardBatch:
    """Sequences over scattered blocks; what no position of theirs lies in is poisoned by the caller."""
    starts = torch.tensor([0, *new]).cumsum(0)
    blocks = [-(-(n + c) // BLOCK_SIZE) for n, c in zip(new, contexts, strict=True)]
    deal = torch.randperm(sum(blocks)).split(blocks)
    tables = torch.full((len(new), max(blocks)), -1)
    for row, mine in zip(tables, deal, strict=True):
        row[: len(mine)] = mine
    rows = torch.zeros(int(starts[-1]), dtype=torch.int64, device="cuda")
    return ForwardBatch(rows, rows, starts, torch.tensor(contexts), tables.cuda(), rows, rows[:1], rows[:1])


@pytest.mark.parametrize("backend", ["flash-attn", "varlen_attn", "triton"])
@pytest.mark.parametrize("scores", [ScoreSpec(), ScoreSpec(window=100), ScoreSpec(softcap=20.0)], ids=str)
@pytest.mark.parametrize(
    ("new", "contexts"), [([1, 1, 1], [700, 3, 255]), ([1, 300, 1, 64], [511, 0, 12, 1000])], ids=["decode", "mixed"]
)
def test_attention(environment, backend, scores, new, contexts):
    need = Need("bfloat16", BLOCK_SIZE, head_dim=HEAD_DIM, softcap=scores.softcap is not None)
    if backend != "triton":
        skip_unless(backend, "attention", environment, need)
    torch.manual_seed(0)
    batch = mixed_batch(new, contexts)
    num_blocks = int(batch.block_tables.max()) + 1
    cache = KVCache(*(random(num_blocks, BLOCK_SIZE, 2, HEAD_DIM, dtype=torch.bfloat16) for _ in range(2)))
    for i, length in enumerate((batch.context_lens + batch.num_new).tolist()):
        last = int(batch.block_tables[i, (length - 1) // BLOCK_SIZE])
        for pool in (cache.keys, cache.values):
            pool[last, (length - 1) % BLOCK_SIZE + 1 :] = torch.nan if backend == "triton" else 1e4
    q = random(len(batch.token_ids), 6, HEAD_DIM, dtype=torch.bfloat16)
    ours = attention_kernels(backend).attend(q, cache, batch, scores=scores, sinks=None)
    wide = KVCache(cache.keys.float(), cache.values.float())
    reference = attention_torch.attend(q.float(), wide, batch, scores=scores, sinks=None)
    torch.testing.assert_close(ours.float(), reference, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("length", [5, 256, 700])
def test_ssd_scan(environment, length):
    skip_unless("mamba-ssm", "SSD scan", environment, Need("bfloat16"))
    torch.manual_seed(length)
    x, dt, A = random(1, length, 8, 64), torch.rand(1, length, 8, device="cuda") * 0.1, -random(8).abs()
    B, C, state = random(1, length, 2, 128), random(1, length, 2, 128), random(1, 8, 64, 128)
    y, after = library_ssd_scan()(x, dt, A, B, C, state=state)
    reference, expected = ssd_scan(x, dt, A, B, C, state=state)
    scale = reference.abs().max()
    assert (y - reference).abs().max() < 1e-2 * scale
    torch.testing.assert_close(after, expected, atol=1e-2 * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize("length", [1, 3, 500])
def test_convolution(environment, length):
    skip_unless("causal-conv1d", "convolution", environment, Need("bfloat16", width=4))
    torch.manual_seed(length)
    # A slice of a wider projection, as the mixers hand it on.
    x, state = random(1, length, 512)[..., 128:384], random(1, 256, 3)
    weight, bias = random(256, 1, 4), random(256)
    y, after = library_convolve()(x, state, weight, bias)
    reference, expected = convolve(x, state, weight, bias)
    torch.testing.assert_close(y, reference, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(after, expected)
