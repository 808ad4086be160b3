"""Decode steps recorded and replayed: what the decoder computes, to the bit, and a tape that errs is not used."""

import random
from types import SimpleNamespace

import pytest
import torch
from paged_driver import PagedDriver

from models import decode_tapes
from models.cache import block_tensors, state_tensors
from models.decode_tapes import DecodeTapes
from models.layers import NormKernel, RMSNorm, rms_norm

pytest.importorskip("numba", reason="numba is an extra")

NAMES = (
    "llama-tied", "llama-untied-biased", "gemma2", "mistral-window", "ministral3", "smollm3", "mamba-tied",
    "falcon-mamba", "mamba2-tied", "jamba-dense-biased", "nemotron-h-bounded-step", "falcon-h1", "zamba2", "qwen3-5",
)  # fmt: skip
CAPACITY, MAX_TOKENS = 4, 160
BEGINS = (120, 3, 127, 40)  # of the tiles of attention one ends at 128


@pytest.fixture(params=NAMES)
def decoder(request, pairs, device):
    if device.type != "cpu":
        pytest.skip("on a GPU there are graphs")
    return pairs(request.param).ours


def tapes_of(driver: PagedDriver, monkeypatch: pytest.MonkeyPatch) -> DecodeTapes:
    """With tapes made of the second step of a size and proved on it alone, so that most steps are replayed."""
    monkeypatch.setattr(decode_tapes, "SEEN", 1)
    with torch.inference_mode():
        return DecodeTapes(
            driver.decoder, driver.caches, largest=CAPACITY, max_blocks=-(-MAX_TOKENS // 4), block_size=4
        )


def prompts() -> dict[int, list[int]]:
    rng = random.Random(3)
    return {sequence: [rng.randrange(131) for _ in range(length)] for sequence, length in enumerate(BEGINS)}


def contents(driver: PagedDriver) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in (*block_tensors(driver.caches), *state_tensors(driver.caches))]


def equal(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> bool:
    return all(torch.equal(a.view(torch.int32), b.view(torch.int32)) for a, b in zip(ours, theirs, strict=True))


def test_replayed_steps_are_the_decoders(decoder, monkeypatch):
    """Sequences come and go, in any order, over the borders of blocks and tiles; chunks of prompts come between."""
    plain, taped = (PagedDriver(decoder, CAPACITY, MAX_TOKENS) for _ in range(2))
    tapes, rng = tapes_of(taped, monkeypatch), random.Random(5)
    for driver in (plain, taped):
        driver.step(prompts())
    num_replayed = 0
    for number in range(36):
        work = {each: [rng.randrange(131)] for each in rng.sample(range(CAPACITY), rng.choice((1, 2, 3, 4, 4)))}
        if number % 9 == 8:
            work[next(iter(work))].append(5)
        expected = plain.step(work)
        taken = tapes.takes(taped.batch(work))
        assert taken == (number % 9 != 8)
        num_replayed += taken and len(work) in tapes.recorded
        found = taped.step(work, tapes.run if taken else None)
        assert all(torch.equal(found[sequence], expected[sequence]) for sequence in work)
        assert equal(contents(taped), contents(plain))
    assert tapes.refused is None
    assert num_replayed > 15
    assert all(len(tape) > 5 for tape in tapes._tapes.values())


def test_tapes_are_forgotten_where_they_take_too_much(pairs, device, monkeypatch):
    if device.type != "cpu":
        pytest.skip("on a GPU there are graphs")
    monkeypatch.setattr(decode_tapes, "MOST_BYTES", 1)
    driver = PagedDriver(pairs("llama-tied").ours, CAPACITY, MAX_TOKENS)
    tapes = tapes_of(driver, monkeypatch)
    driver.step(prompts())
    for sequences, recorded in (((0, 1), [2]), ((2,), [1]), ((1, 3), [2])):
        for _ in range(4):
            driver.step({sequence: [7] for sequence in sequences}, tapes.run)
        assert tapes.recorded == recorded


def impure(kind: str) -> NormKernel:
    """A norm that hangs on numbers that Python has looked at."""

    def norm(x: torch.Tensor, weight: torch.Tensor, eps: float, unit_offset: bool) -> torch.Tensor:
        x = rms_norm(x, weight, eps, unit_offset)
        if kind == "reads":
            return x * float(x.flatten()[0])
        return x * x.flatten().tolist()[0] if kind == "peeks" else x + torch.from_numpy(x.numpy() * 2)

    return norm


@pytest.mark.parametrize("kind", ["reads", "peeks", "computes"])
@pytest.mark.parametrize("name", ["llama-tied", "mamba2-tied"])
def test_what_cannot_be_replayed_is_refused(pairs, device, monkeypatch, name, kind):
    """The step on which it is found out is the decoder's own, in the caches too, and so are those after."""
    if device.type != "cpu":
        pytest.skip("on a GPU there are graphs")
    decoder = pairs(name).ours
    plain, taped = (PagedDriver(decoder, CAPACITY, MAX_TOKENS) for _ in range(2))
    tapes = tapes_of(taped, monkeypatch)
    norms = [module for module in decoder.modules() if isinstance(module, RMSNorm)]
    monkeypatch.setattr(norms[-1], "kernel", impure(kind))
    for driver in (plain, taped):
        driver.step(prompts())
    for token in range(5):
        work = {1: [token], 3: [token + 1]}
        expected = plain.step(work)
        takes = tapes.takes(taped.batch(work))
        found = taped.step(work, tapes.run if takes else None)
        assert all(torch.equal(found[sequence], expected[sequence]) for sequence in work)
        assert equal(contents(taped), contents(plain))
        assert (tapes.refused is not None) == (token >= (1 if kind == "reads" else 2))
    assert "reads a number on the host" in tapes.refused if kind == "reads" else "a step of 2 replayed" in tapes.refused
    assert not tapes.recorded


def test_first_sizes_are_recorded_before_there_are_requests(pairs, device):
    if device.type != "cpu":
        pytest.skip("on a GPU there are graphs")
    driver = PagedDriver(pairs("falcon-h1").ours, CAPACITY, MAX_TOKENS)
    with torch.inference_mode():
        tapes = DecodeTapes(driver.decoder, driver.caches, largest=1, max_blocks=40, block_size=4)
        assert tapes.prepare() is None
    assert tapes.recorded == [1]
    batch = SimpleNamespace(steps=SimpleNamespace(rows=None, count=2), logit_rows=[0, 1])
    assert not tapes.takes(batch)
