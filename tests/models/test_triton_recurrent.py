"""The recurrent steps in Triton against plain torch in float64; rows of the pool that no sequence has are NaN."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from devices import DEVICES
from poison import among_poison, num_poisoned, poisoned_memory, rows_apart, skip_unless_triton_runs_on
from torch import Tensor

from models.kernels import delta_rule_torch, selective_scan_torch, ssd_torch

pytest.importorskip("triton", reason="triton has no build for this machine")

from models.kernels.recurrent_triton import conv_step, delta_step, selective_scan, selective_step, ssd_step

SLOTS = [4, -1, 0, 6]  # of eight; the second sequence is a padding row
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


@pytest.fixture(params=DEVICES)
def device(request) -> torch.device:
    device = torch.device(request.param)
    skip_unless_triton_runs_on(device)
    return device


def run(*inputs: Tensor) -> list[Tensor]:
    """Inputs of one token each, (b, ...) -> runs of a single token, (b, 1, ...), in float64."""
    return [tensor.double().unsqueeze(1) for tensor in inputs]


class Draw:
    """Random tensors, the same at every run; of inputs, the padding row is NaN and so is what lies beside them."""

    def __init__(self, device: torch.device, seed: int, dtype: torch.dtype = torch.float32) -> None:
        self.device, self.dtype = device, dtype
        self.generator = torch.Generator().manual_seed(seed)

    def plain(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator).to(self.device)

    def inputs(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """(b, ...) as it comes from a split and an unflatten."""
        tensor = self.plain(*shape)
        tensor[torch.tensor(SLOTS) < 0] = float("nan")
        return among_poison(tensor.flatten(1).to(dtype or self.dtype)).unflatten(1, shape[1:])

    def steps(self, *shape: int) -> Tensor:
        """As a softplus gives them: (b, ...) float32, positive, now and then none at all."""
        steps = self.inputs(*shape, dtype=torch.float32).abs()
        steps[0, 0] = 0
        return steps

    def pool(self, *shape: int) -> Tensor:
        pool = torch.full((8, *shape), float("nan"), device=self.device)
        for slot in SLOTS:
            if slot >= 0:
                pool[slot] = self.plain(*shape)
        return rows_apart(pool)


def check(step: Callable[[Tensor, Tensor], Tensor], twin: Callable[[Tensor], tuple[Tensor, Tensor]], pool: Tensor):
    """Compare a kernel's step over a pool with its twin's over the states alone, which gives (b, 1, ...) and new ones.

    The twin computes all rows, in float64, those of padding too, of which nothing is looked at.
    """
    slots = torch.tensor(SLOTS, device=pool.device)
    y, states = twin(pool[slots].double())
    wanted, real = pool.clone(), slots >= 0
    wanted[slots[real]] = states[real].float()
    before, poisoned = pool.clone(), num_poisoned(pool)
    with poisoned_memory():
        out = step(pool, slots)
    tolerance = 1e-5 if out.dtype == torch.float32 else 1e-2
    torch.testing.assert_close(out[real].double(), y[real, 0], rtol=tolerance, atol=tolerance)
    assert out[~real].eq(0).all()
    torch.testing.assert_close(pool, wanted, rtol=1e-5, atol=1e-6, equal_nan=True)
    assert num_poisoned(pool) == poisoned
    assert not torch.equal(pool[slots[real]], before[slots[real]])


@DTYPES
@pytest.mark.parametrize(("channels", "kernel", "with_bias"), [(7, 4, True), (300, 3, False), (128, 2, True)])
def test_convolution(device, dtype, channels, kernel, with_bias):
    draw = Draw(device, channels, dtype)
    x, weight, bias = draw.inputs(len(SLOTS), channels), draw.plain(channels, 1, kernel).to(dtype), draw.plain(channels)

    def twin(states: Tensor) -> tuple[Tensor, Tensor]:
        window = torch.cat((states, x.double().unsqueeze(-1)), dim=-1)
        y = (window * weight.double().squeeze(1)).sum(-1)
        return F.silu(y + bias.double() if with_bias else y).unsqueeze(1), window[..., 1:]

    bias_or_none = bias if with_bias else None
    check(lambda pool, slots: conv_step(x, pool, slots, weight, bias_or_none), twin, draw.pool(channels, kernel - 1))


@DTYPES
@pytest.mark.parametrize("sizes", [(6, 24, 2, 20), (3, 64, 1, 128), (4, 16, 4, 256), (2, 1, 1, 3)], ids=str)
def test_mamba_2(device, dtype, sizes):
    heads, head_dim, groups, size = sizes
    draw = Draw(device, size, dtype)
    x, dt, A = draw.inputs(len(SLOTS), heads, head_dim), draw.steps(len(SLOTS), heads), -draw.plain(heads).abs()
    B, C = draw.inputs(len(SLOTS), groups, size), draw.inputs(len(SLOTS), groups, size)
    check(
        lambda pool, slots: ssd_step(x, dt, A, B, C, pool=pool, slots=slots),
        lambda states: ssd_torch.ssd_loop(*run(x, dt), A.double(), *run(B, C), state=states),
        draw.pool(heads, head_dim, size),
    )


@DTYPES
@pytest.mark.parametrize(("channels", "size"), [(7, 5), (300, 16), (128, 64)])
def test_mamba_1(device, dtype, channels, size):
    draw = Draw(device, channels, dtype)
    x, dt, A = draw.inputs(len(SLOTS), channels), draw.steps(len(SLOTS), channels), -draw.plain(channels, size).abs()
    B, C = draw.inputs(len(SLOTS), size), draw.inputs(len(SLOTS), size)
    check(
        lambda pool, slots: selective_step(x, dt, A, B, C, pool=pool, slots=slots),
        lambda states: selective_scan_torch.selective_loop(*run(x, dt), A.double(), *run(B, C), state=states),
        draw.pool(channels, size),
    )


@DTYPES
@pytest.mark.parametrize("sizes", [(2, 6, 24, 20), (1, 2, 128, 128), (3, 3, 80, 40), (1, 1, 3, 1)], ids=str)
def test_delta_rule(device, dtype, sizes):
    key_heads, heads, key_dim, value_dim = sizes
    draw = Draw(device, key_dim, dtype)
    # Of length one, as the mixer has them: a step can magnify a memory otherwise.
    q, k = (among_poison(F.normalize(draw.inputs(len(SLOTS), key_heads, key_dim), dim=-1)) for _ in range(2))
    v, log_decay = draw.inputs(len(SLOTS), heads, value_dim), -draw.steps(len(SLOTS), heads)
    beta = draw.inputs(len(SLOTS), heads).sigmoid()
    check(
        lambda pool, slots: delta_step(q, k, v, log_decay, beta, pool=pool, slots=slots),
        lambda states: delta_rule_torch.delta_loop(*run(q, k, v, log_decay, beta), state=states),
        draw.pool(heads, key_dim, value_dim),
    )


@DTYPES
@pytest.mark.parametrize("layout", ["channel by channel", "token by token"])
@pytest.mark.parametrize("sizes", [(1, 1, 7, 5), (2, 40, 70, 16), (1, 9, 33, 64)], ids=str)
def test_selective_scan(device, dtype, sizes, layout):
    batch, length, channels, size = sizes
    draw = Draw(device, length, dtype)
    # A convolution lets tokens be neighbours, a projection's part channels.
    x, dt = draw.plain(batch, channels, length).to(dtype).transpose(1, 2), draw.plain(batch, length, channels).abs()
    if layout == "token by token":
        x, dt = among_poison(x), among_poison(dt)
    A = -draw.plain(channels, size).abs()
    B, C = (among_poison(draw.plain(batch, length, size).to(dtype)) for _ in range(2))
    state = draw.plain(batch, channels, size)
    given = state.clone()
    wanted = selective_scan_torch.selective_loop(*(v.double() for v in (x, dt, A, B, C)), state=state.double())
    with poisoned_memory():
        y, after = selective_scan(x, dt, A, B, C, state=state)
    torch.testing.assert_close(y.double(), wanted[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(after.double(), wanted[1], rtol=1e-5, atol=1e-6)
    assert torch.equal(state, given)


def test_inputs_whose_channels_lie_apart(device):
    draw = Draw(device, 1)
    x, weight, pool = draw.plain(9, 2).T[:1], draw.plain(9, 1, 4), draw.plain(1, 9, 3)
    wanted = F.silu((torch.cat((pool[0], x.T), dim=-1) * weight.squeeze(1)).sum(-1))
    y = conv_step(x, pool, torch.zeros(1, dtype=torch.int64, device=device), weight, None)
    torch.testing.assert_close(y[0], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES[1:], indirect=True)
def test_a_captured_step_serves_the_slots_of_later_sequences(device):
    draw = Draw(device, 0)
    x, dt, A, bc = draw.plain(2, 4, 16), draw.plain(2, 4).abs(), -draw.plain(4).abs(), draw.plain(2, 1, 32)
    pool, slots = draw.plain(3, 4, 16, 32), torch.tensor([-1, -1], device=device)
    ssd_step(x, dt, A, bc, bc, pool=pool, slots=slots)  # a kernel cannot be compiled in a capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = ssd_step(x, dt, A, bc, bc, pool=pool, slots=slots)
    slots.copy_(torch.tensor([2, 0]))
    wanted, states = ssd_torch.ssd_loop(*run(x, dt), A.double(), *run(bc, bc), state=pool[slots].double())
    graph.replay()
    torch.testing.assert_close(y.double(), wanted[:, 0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(pool[slots].double(), states, rtol=1e-5, atol=1e-5)


def test_a_strong_decay_forgets_all_and_is_finite(device):
    pool, slots = torch.full((1, 1, 2, 4), 1e30, device=device), torch.zeros(1, dtype=torch.int64, device=device)
    ones = torch.ones(1, 1, 4, device=device)
    y = ssd_step(ones[..., :2], ones[..., 0] * 200, ones[0, :, 0] * -16, ones, ones, pool=pool, slots=slots)
    assert torch.equal(pool, torch.full_like(pool, 200))
    assert torch.equal(y, torch.full_like(y, 800))


def test_what_does_not_fit_is_refused(device):
    x, slots = torch.zeros(2, 8, device=device), torch.zeros(2, dtype=torch.int64, device=device)
    weight = torch.zeros(8, 1, 4, device=device)
    for pool, rows, message in (
        (torch.zeros(3, 8, 3).bfloat16(), slots, "float32 rows"),
        (torch.zeros(3, 8, 4), slots, r"float32 rows \(8, 3\)"),
        (torch.zeros(3, 3, 8).transpose(1, 2), slots, "contiguous"),
        (torch.zeros(3, 8, 3), slots[:1], "2 sequences, but slots"),
    ):
        with pytest.raises(ValueError, match=message):
            conv_step(x, pool.to(device), rows, weight, None)
    scan = [x.unsqueeze(0), x.unsqueeze(0), torch.zeros(8, 5), torch.zeros(1, 2, 5), torch.zeros(1, 3, 5)]
    with pytest.raises(ValueError, match="does not fit"):
        selective_scan(*scan, state=torch.zeros(1, 8, 5))
