"""Our logits against transformers', in float32, on whatever road they come.

What each test measures is recorded; the run ends with a table of model, check and largest deviation.
"""

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from paged_driver import BLOCK_SIZE, PagedDriver
from reference_models import CACHE_CONTRADICTS

from models.cache import simple_caches
from models.config import CacheNeeds, ExpertsSpec
from models.kernels.bind import bind
from models.kernels.environment import probe
from models.load import load_decoder

TOLERANCE = 1e-4


def tokens(seed: int, length: int) -> list[int]:
    return torch.randint(0, 131, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.fixture
def close(record_property) -> Callable[[torch.Tensor, torch.Tensor], None]:
    """Asserts that logits are the reference's, and records how far they are."""

    def check(ours: torch.Tensor, reference: torch.Tensor) -> None:
        assert ours.shape == reference.shape
        deviation = float((ours - reference).abs().max())
        record_property("deviation", deviation)
        assert deviation < TOLERANCE

    return check


def test_dense_forward(pair, device, close):
    """On plain torch, whatever backends the other tests' paged caches are served by."""
    ids = tokens(1, 67)
    bind(pair.ours, replace(probe(device), packages={}), torch.float32, BLOCK_SIZE)
    with torch.inference_mode():
        ours = pair.ours.logits(pair.ours.forward_dense(torch.tensor([ids], device=device)))[0].cpu()
    close(ours, pair.reference_logits(ids))


def test_bfloat16(pair, device):
    """Root mean square of what bfloat16 changes: at most 1.25 times what it changes in transformers' own logits.

    Where a router chooses experts, rounding turns close choices round, in a few tokens, and in others here than there:
    the median of the tokens, at most twice.
    """
    ids = tokens(1, 67)
    ours = load_decoder(pair.directory, dtype=torch.bfloat16, device=device)
    with torch.inference_mode():
        logits = ours.logits(ours.forward_dense(torch.tensor([ids], device=device)))[0].cpu()
        theirs = copy.deepcopy(pair.reference).to(torch.bfloat16)(torch.tensor([ids])).logits[0].float()
    assert logits.dtype == torch.float32
    reference = pair.reference_logits(ids)
    changed, changed_there = ((x - reference).square().mean(-1) for x in (logits, theirs))
    if any(isinstance(layer.mlp, ExpertsSpec) for layer in ours.config.layers):
        assert 0 < changed.median().sqrt() < 2.0 * changed_there.median().sqrt()
    else:
        assert 0 < changed.mean().sqrt() < 1.25 * changed_there.mean().sqrt()


def test_whole_prefill(pair, close):
    ids = tokens(2, 67)
    ours = PagedDriver(pair.ours, 1, 67).step({0: ids})[0]
    close(ours, pair.reference_logits(ids))


@pytest.mark.parametrize("sizes", [(1, 7, 2, 1, 23, 5, 28), (7,) * 9 + (4,), (64, 2, 1)], ids=["odd", "of 7", "of 64"])
def test_prefill_in_chunks(pair, close, sizes):
    ids = tokens(3, 67)
    driver = PagedDriver(pair.ours, 1, 67)
    pieces = [driver.step({0: piece.tolist()})[0] for piece in torch.tensor(ids).split(sizes)]
    close(torch.cat(pieces), pair.reference_logits(ids))


def test_token_by_token(pair, close):
    ids = tokens(4, 40)
    driver = PagedDriver(pair.ours, 1, 40)
    ours = torch.cat([driver.step({0: [token]})[0] for token in ids])
    close(ours, pair.reference_logits(ids))


def test_batched_with_other_lengths(pair, close):
    """Three sequences that start and end at different steps; prefill chunks and decode steps in the same pass."""
    prompts = [tokens(5, 61), tokens(6, 18), tokens(7, 33)]
    driver = PagedDriver(pair.ours, 3, 61)
    plan = [{0: 10}, {0: 13, 1: 5}, {0: 1, 1: 1, 2: 20}, {0: 1, 1: 3, 2: 1}, {2: 12, 0: 30, 1: 1}, {1: 8, 0: 6}]
    done = [0, 0, 0]
    collected: list[list[torch.Tensor]] = [[], [], []]
    for step in plan:
        work = {sequence: prompts[sequence][done[sequence] : done[sequence] + size] for sequence, size in step.items()}
        for sequence, logits in driver.step(work).items():
            collected[sequence].append(logits)
            done[sequence] += len(work[sequence])
    assert done == [61, 18, 33]
    for prompt, logits in zip(prompts, collected, strict=True):
        close(torch.cat(logits), pair.reference_logits(prompt))


def test_snapshot_in_the_middle(pair, close):
    """What the caches hold after a prefix, copied: the original reads on, the copies go other ways and the same again.

    Each way is gone in one chunk, token by token, and from a single token to a chunk and back.
    """
    prefix, same, other = tokens(9, 23), tokens(10, 18), tokens(11, 15)
    expected = {
        name: pair.reference_logits(prefix + rest)[len(prefix) :] for name, rest in (("same", same), ("other", other))
    }
    original, snapshot, first, second = range(4)
    driver = PagedDriver(pair.ours, 4, len(prefix + same))

    def read_on(sequence: int, rest: list[int], sizes: tuple[int, ...]) -> torch.Tensor:
        pieces = torch.tensor(rest).split(sizes)
        return torch.cat([driver.step({sequence: piece.tolist()})[sequence] for piece in pieces])

    driver.step({original: prefix[:10]})
    driver.step({original: prefix[10:]})
    driver.copy(original, snapshot)
    close(read_on(original, same, (1, 16, 1)), expected["same"])
    for sizes in ((15,), (1,) * 15, (1, 13, 1)):
        driver.copy(snapshot, first)
        close(read_on(first, other, sizes), expected["other"])
    for sizes in ((18,), (1,) * 18):
        driver.copy(snapshot, second)
        close(read_on(second, same, sizes), expected["same"])
    driver.copy(snapshot, first)
    driver.copy(snapshot, second)
    together = driver.step({first: other, second: same[:1]})
    close(together[first], expected["other"])
    close(together[second], expected["same"][:1])


def test_greedy_tokens(pair):
    """64 greedy tokens equal those that transformers generates with its own cache."""
    prompt = tokens(8, 13)
    driver = PagedDriver(pair.ours, 1, 80)
    logits = driver.step({0: prompt})[0]
    ours = []
    for _ in range(64):
        ours.append(int(logits[-1].argmax()))
        logits = driver.step({0: [ours[-1]]})[0]
    reference = pair.reference.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=64,
        min_new_tokens=64,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        use_cache=pair.name not in CACHE_CONTRADICTS,
    )
    assert ours == reference[0, len(prompt) :].tolist()


def test_declared_needs_are_the_allocated_bytes(pair):
    """What the layers declare is what their caches take, with nothing padded."""
    driver = PagedDriver(pair.ours, 3, 40)
    needs = pair.ours.config.cache_needs(4)
    per_token = per_sequence = 0
    for cache in simple_caches(driver.caches):
        for field in cache.__slots__:
            tensor = getattr(cache, field)
            if field in ("keys", "values"):
                per_token += tensor[0, 0].nbytes
            else:
                per_sequence += tensor[0].nbytes
    assert needs == CacheNeeds(per_token, per_sequence)
