"""States kept in 16 bits: every backend computes in float32 what it does with float32 states, and rounds once after."""

import importlib
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from devices import DEVICES
from paged_driver import PagedDriver
from poison import poisoned_memory, skip_unless_triton_runs_on
from torch import Tensor

from models.cache import StateCache, simple_caches
from models.config import CacheNeeds
from models.kernels import delta_rule_torch, selective_scan_torch, ssd_torch
from models.kernels.environment import probe
from models.kernels.state_rows import narrowed

NARROW = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
PLACES = {torch.bfloat16: 2**-7, torch.float16: 2**-10}  # the last place of a number, beside the number
STEPS: dict[str, Callable[..., Tensor]] = {
    "ssd_step": ssd_torch.ssd_step,
    "selective_step": selective_scan_torch.selective_step,
    "delta_step": delta_rule_torch.delta_step,
}
SLOTS = [4, 0, 6]  # of eight rows


def step_of(backend: str, kind: str, device: torch.device) -> Callable[..., Tensor]:
    if backend == "torch":
        return STEPS[kind]
    pytest.importorskip(backend, reason=f"{backend} is not here")
    if backend == "triton":
        skip_unless_triton_runs_on(device)
    elif device.type != "cpu":
        pytest.skip("numba is for processors")
    return getattr(importlib.import_module(f"models.kernels.recurrent_{backend}"), kind)


def inputs_of(kind: str, device: torch.device) -> tuple[list[Tensor], tuple[int, ...]]:
    """Of three sequences, and the shape of a state, in odd sizes."""
    generator = torch.Generator().manual_seed(5)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    if kind == "ssd_step":
        return [draw(3, 6, 5), draw(3, 6).abs(), -draw(6).abs(), draw(3, 2, 19), draw(3, 2, 19)], (6, 5, 19)
    if kind == "selective_step":
        return [draw(3, 70), draw(3, 70).abs(), -draw(70, 7).abs(), draw(3, 7), draw(3, 7)], (70, 7)
    k = F.normalize(draw(3, 2, 9), dim=-1)
    return [draw(3, 2, 9), k, draw(3, 6, 21), -draw(3, 6).abs(), draw(3, 6).sigmoid()], (6, 9, 21)


@pytest.mark.parametrize("device", DEVICES)
@NARROW
@pytest.mark.parametrize("kind", STEPS)
@pytest.mark.parametrize("backend", ["torch", "numba", "triton"])
def test_a_step_rounds_once(backend, kind, dtype, device):
    device = torch.device(device)
    step, (inputs, shape) = step_of(backend, kind, device), inputs_of(kind, device)
    slots = torch.tensor(SLOTS, device=device)
    pool = torch.full((8, *shape), float("nan"), device=device)
    pool[slots] = torch.randn(3, *shape, generator=torch.Generator().manual_seed(6)).to(device)
    pool = pool.to(dtype)
    wide, before = pool.float(), pool.clone()
    with poisoned_memory():
        y = step(*inputs, pool=pool, slots=slots)
        wanted_y = step(*inputs, pool=wide, slots=slots)
    torch.testing.assert_close(y, wanted_y, rtol=1e-5, atol=1e-5)
    others = [row for row in range(8) if row not in SLOTS]
    assert before[others].isnan().all()
    assert pool[others].isnan().all()
    # Sums in another order may fall on the other side of a half, now and then.
    kept, wanted = pool[slots].float(), narrowed(wide[slots], dtype).float()
    if (backend, device.type) != ("triton", "cpu"):  # whose interpreter cuts bfloat16 off, where a GPU rounds it
        assert (kept != wanted).float().mean() < 0.01
    torch.testing.assert_close(kept, wanted, rtol=PLACES[dtype], atol=1e-6)
    assert (kept != before[slots].float()).float().mean() > 0.9


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", ["torch", "numba", "triton"])
def test_float16_stays_finite(backend, device):
    """What is too large stays the largest number: infinite it would make NaN of all that follows."""
    device = torch.device(device)
    step = step_of(backend, "ssd_step", device)
    ones = torch.ones(1, 1, device=device)
    x, bc, slots = torch.full((1, 1, 2), 3e4, device=device), torch.ones(1, 1, 3, device=device), torch.tensor([1])
    x[..., 1] *= -1
    pool = torch.zeros(2, 1, 2, 3, dtype=torch.float16, device=device)
    for _ in range(4):
        y = step(x, ones, -ones[0] / 64, bc, bc, pool=pool, slots=slots.to(device))
    assert y.isfinite().all()
    assert pool[1, 0].tolist() == [[65504.0] * 3, [-65504.0] * 3]


def rounded_by_hand(driver: PagedDriver, dtype: torch.dtype) -> None:
    for cache in simple_caches(driver.caches):
        if isinstance(cache, StateCache):
            cache.ssm_state.copy_(narrowed(cache.ssm_state, dtype))


@NARROW
@pytest.mark.parametrize("compiled", [False, True], ids=["plain", "compiled"])
@pytest.mark.parametrize("name", ["mamba-tied", "mamba2-tied", "qwen3-5", "falcon-h1"])
def test_models_round_after_each_step(pairs, device, name, dtype, compiled):
    """Chunks and single tokens, alone and together: as with float32 states that are rounded by hand after each pass."""
    environment = probe(device) if compiled else replace(probe(device), packages={})
    ours = pairs(name).ours
    works = [{0: [5, 9, 2, 7, 1], 1: [4]}, {0: [3], 1: [8]}, {1: [2, 6, 6], 0: [1]}, {1: [7], 0: [9]}]
    found = []
    for state_dtype in (dtype, torch.float32):
        driver = PagedDriver(ours, 2, 12, environment, state_dtype)
        logits = []
        for work in works:
            logits += driver.step(work).values()
            rounded_by_hand(driver, dtype)
        found.append(torch.cat(logits))
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-3)
    plain = PagedDriver(ours, 2, 12, environment)
    exact = torch.cat([logits for work in works for logits in plain.step(work).values()])
    assert not torch.equal(exact, found[0])


@pytest.mark.parametrize("name", ["mamba-tied", "mamba2-tied", "qwen3-5"])
def test_a_sequence_goes_on_from_what_its_snapshot_holds(pairs, name):
    """So one that takes a snapshot up computes the same as the one that left it, which read on."""
    ours, ids = pairs(name).ours, [5, 9, 2, 7, 1, 4, 4]
    driver = PagedDriver(ours, 2, 12, None, torch.bfloat16)
    batch = driver.batch({0: ids})
    snapshot = int(driver.slots[1])
    with torch.inference_mode():
        logits = ours(replace(batch, snapshots={0: ((4, snapshot),)}), driver.caches)
    for cache in simple_caches(driver.caches):
        if not isinstance(cache, StateCache):
            cache.keys[driver.tables[1]], cache.values[driver.tables[1]] = (
                tensor[driver.tables[0]] for tensor in (cache.keys, cache.values)
            )
    driver.lengths[1] = 4
    torch.testing.assert_close(driver.step({1: ids[4:]})[1], logits[4:].cpu(), rtol=1e-5, atol=1e-5)


@NARROW
def test_declared_needs_are_the_allocated_bytes(pairs, dtype):
    ours = pairs("falcon-h1").ours
    driver = PagedDriver(ours, 2, 12, None, dtype)
    states = [cache for cache in simple_caches(driver.caches) if isinstance(cache, StateCache)]
    needs, full = ours.config.cache_needs(4, dtype.itemsize), ours.config.cache_needs(4)
    assert needs.bytes_per_sequence == sum(each.conv_state[0].nbytes + each.ssm_state[0].nbytes for each in states)
    saved = sum(each.ssm_state[0].nbytes for each in states)
    assert full == CacheNeeds(needs.bytes_per_token, needs.bytes_per_sequence + saved)
