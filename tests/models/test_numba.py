"""The kernels in numba against plain torch in float64, on inputs that lie apart and memory that is poisoned."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from attention_cases import SCORES, SHAPES, Shape, expected, forget, paged
from poison import among_poison, num_poisoned, poisoned_memory, rows_apart
from torch import Tensor

from models.batch import Piece, Runs
from models.cache import KVCache
from models.config import ScoreSpec
from models.kernels import attention_torch, convolution_torch, delta_rule_torch, selective_scan_torch, ssd_torch
from models.layers import rms_norm
from models.linear import Joined, Linear
from models.rope import apply_rotary

pytest.importorskip("numba", reason="numba is an extra")

from models.activations import PLAIN
from models.kernels import linear_numba, norm_numba
from models.kernels import recurrent_numba as compiled
from models.kernels import runs_numba as over_runs
from models.kernels.activations_numba import ACTIVATIONS, SHARE
from models.kernels.attention_numba import TILE, attend_decode, attend_prefill
from models.kernels.numba_scalars import array, exp, narrow, task, widen
from models.kernels.rotary_numba import rotate, write_kv

SLOTS = torch.tensor([4, 0, 6])  # of eight rows of a pool; the others are NaN
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


@task
def exponentials(y, x):
    for i in range(x.shape[0]):
        y[i] = exp(x[i])


@task
def narrowed(y, x):
    for i in range(x.shape[0]):
        y[i] = narrow(x[i], y[i])


@task
def widened(y, x):
    for i in range(x.shape[0]):
        y[i] = widen(x[i])


def test_exponentials():
    x = torch.cat((torch.linspace(-86, 87, 100_001), torch.tensor([0.0, -0.0, 1.0])))
    y = torch.empty_like(x)
    exponentials(y.numpy(), x.numpy())
    torch.testing.assert_close(y.double(), x.double().exp(), rtol=3e-7, atol=0)
    assert y[-3:].tolist()[:2] == [1.0, 1.0]
    exponentials(y[:4].numpy(), torch.tensor([float("nan"), -1e30, -float("inf"), float("inf")]).numpy())
    assert y[0].isnan()
    assert 0 < y[1] < 2e-38
    assert y[1] == y[2]
    assert 1e38 < y[3] < float("inf")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_numbers_are_rounded_as_torch_rounds_them(dtype):
    halves = [1.00390625, 1.01171875, -1.00390625, 1.00048828125, -1.00146484375, 0.0]
    # Those below 2^-14 have fewer places in float16, and none below 2^-25.
    small = torch.randn(1000) * 2.0 ** -torch.arange(1000).div(40, rounding_mode="floor")
    x = torch.cat((torch.randn(10_000), torch.tensor(halves), small))
    y = torch.empty(len(x), dtype=dtype)
    narrowed(array(y), array(x))
    assert torch.equal(y, x.to(dtype))
    wide = torch.empty(len(x))
    widened(array(wide), array(y))
    assert torch.equal(wide, y.float())


def test_what_is_too_large_for_a_number_format():
    x = torch.tensor([65519.0, 65520.0, 1e9, -1e9, float("inf")])
    y = torch.empty(len(x), dtype=torch.float16)
    narrowed(array(y), array(x))
    assert y.tolist() == [65504.0, 65504.0, 65504.0, -65504.0, 65504.0]
    y = torch.empty(len(x), dtype=torch.bfloat16)
    narrowed(array(y), array(x))
    assert y[-1].isinf()


class Draw:
    """Random tensors, the same at every run, in the ways in which mixers hand them over."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def plain(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)

    def inputs(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """(b, ..., n) as a piece of something wider, between NaN."""
        return among_poison(self.plain(*shape).to(dtype))

    def pool(self, *shape: int) -> Tensor:
        pool = torch.full((8, *shape), float("nan"))
        pool[SLOTS] = self.plain(len(SLOTS), *shape)
        return rows_apart(pool)


def recurrence(kind: str, draw: Draw, lead: tuple[int, ...]) -> tuple[list[Tensor], tuple[int, ...]]:
    """What a recurrence takes, with the leading dimensions given, and the shape of a state; odd sizes."""
    if kind == "ssd":
        x, dt = draw.inputs(*lead, 6, 5), draw.inputs(*lead, 6).abs()
        return [x, dt, -draw.plain(6).abs(), draw.inputs(*lead, 2, 19), draw.inputs(*lead, 2, 19)], (6, 5, 19)
    if kind == "selective":
        x, dt = draw.inputs(*lead, 150), draw.inputs(*lead, 150).abs()
        return [x, dt, -draw.plain(150, 7).abs() * 9, draw.inputs(*lead, 7), draw.inputs(*lead, 7)], (150, 7)
    k = among_poison(F.normalize(draw.plain(*lead, 2, 9), dim=-1))
    decay, beta = -draw.inputs(*lead, 6).abs(), draw.inputs(*lead, 6).sigmoid()
    return [draw.inputs(*lead, 2, 9), k, draw.inputs(*lead, 6, 21), decay, beta], (6, 9, 21)


LOOPS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "ssd": ssd_torch.ssd_loop,
    "selective": selective_scan_torch.selective_loop,
    "delta": delta_rule_torch.delta_loop,
}
SCANS = {"ssd": over_runs.ssd_scan, "selective": over_runs.selective_scan, "delta": over_runs.delta_scan}
OVER_RUNS = {"ssd": over_runs.ssd_runs, "selective": over_runs.selective_runs, "delta": over_runs.delta_runs}
STEPS = {"ssd": compiled.ssd_step, "selective": compiled.selective_step, "delta": compiled.delta_step}
KINDS = pytest.mark.parametrize("kind", LOOPS)


def piece(kind: str, inputs: list[Tensor], tokens: slice | int) -> list[Tensor]:
    """Some tokens of a run's inputs; A is the same for all."""
    return [x if kind != "delta" and i == 2 else x[:, tokens] for i, x in enumerate(inputs)]


@KINDS
@pytest.mark.parametrize("length", [1, 70])
def test_scan(kind, length):
    draw = Draw(length)
    inputs, shape = recurrence(kind, draw, (2, length))
    state = draw.plain(2, *shape)
    before = state.clone()
    with poisoned_memory():
        y, after = SCANS[kind](*inputs, state=state)
    wanted_y, wanted_state = LOOPS[kind](*(x.double() for x in inputs), state=state.double())
    torch.testing.assert_close(y.double(), wanted_y, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(after.double(), wanted_state, rtol=1e-5, atol=1e-5)
    assert torch.equal(state, before)


@KINDS
def test_step(kind):
    draw = Draw(3)
    inputs, shape = recurrence(kind, draw, (len(SLOTS), 1))
    pool = draw.pool(*shape)
    before, poisoned = pool.clone(), num_poisoned(pool)
    with poisoned_memory():
        y = STEPS[kind](*piece(kind, inputs, 0), pool=pool, slots=SLOTS)
    wanted_y, states = LOOPS[kind](*(x.double() for x in inputs), state=before[SLOTS].double())
    torch.testing.assert_close(y.double(), wanted_y[:, 0], rtol=1e-5, atol=1e-5)
    before[SLOTS] = states.float()
    torch.testing.assert_close(pool, before, rtol=1e-5, atol=1e-6, equal_nan=True)
    assert num_poisoned(pool) == poisoned


@KINDS
def test_a_run_is_the_same_to_the_bit_in_any_pieces_and_company(kind):
    """Whole, in pieces, alone, and by steps among others."""
    draw = Draw(5)
    inputs, shape = recurrence(kind, draw, (3, 23))
    pool = rows_apart(torch.zeros(8, *shape))
    pool[SLOTS] = start = draw.plain(3, *shape)
    y, state = SCANS[kind](*inputs, state=start)
    pieces, held = [], start[1:2]
    mine = [x if kind != "delta" and i == 2 else x[1:2] for i, x in enumerate(inputs)]
    for tokens in (slice(0, 1), slice(1, 12), slice(12, 23)):
        out, held = SCANS[kind](*piece(kind, mine, tokens), state=held)
        pieces.append(out)
    assert torch.equal(torch.cat(pieces, dim=1), y[1:2])
    assert torch.equal(held, state[1:2])
    for token in range(23):
        out = STEPS[kind](*piece(kind, inputs, token), pool=pool, slots=SLOTS)
        assert torch.equal(out, y[:, token])
    assert torch.equal(pool[SLOTS], state)


RUNS = Runs(
    [
        [Piece(1, 4, -1, 2), Piece(4, 4, 2, 7), Piece(4, 40, 7, 4)],  # fresh, with two snapshots after its third token
        [Piece(41, 42, 6, 6)],  # goes on from what its slot holds
        [Piece(42, 43, 0, 1), Piece(43, 50, 1, 0)],
    ]
)  # rows 0 and 40 are others'


@KINDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_runs_in_pieces_are_as_each_alone(kind, dtype):
    draw = Draw(7)
    inputs, shape = recurrence(kind, draw, (1, 50))
    pool = draw.pool(*shape).to(dtype)
    before = pool.clone()
    rows = [x if kind != "delta" and i == 2 else x[0] for i, x in enumerate(inputs)]
    with poisoned_memory():
        y = OVER_RUNS[kind](*rows, pool=pool, runs=RUNS)
    for run in RUNS.pieces:
        first = before[max(0, run[0].begins)].float().unsqueeze(0)
        state = torch.zeros_like(first) if run[0].begins < 0 else first
        for start, stop, _, slot in run:
            if stop > start:
                wanted, state = SCANS[kind](*piece(kind, inputs, slice(start, stop)), state=state)
                assert torch.equal(y[start:stop], wanted[0])
                state = state.to(dtype).float()
            assert torch.equal(pool[slot].float(), state[0])
    assert pool[[3, 5]].isnan().all()


@DTYPES
@pytest.mark.parametrize(("channels", "kernel"), [(7, 4), (300, 3), (128, 2)])
def test_a_convolution_of_runs_in_pieces_is_as_each_alone(dtype, channels, kernel):
    draw = Draw(channels)
    x = draw.inputs(50, channels, dtype=dtype)
    weight, bias = draw.plain(channels, 1, kernel).to(dtype), draw.plain(channels).to(dtype)
    pool = rows_apart(draw.pool(channels, kernel - 1).to(dtype).float())
    before = pool.clone()
    with poisoned_memory():
        y = over_runs.convolve_runs(x, pool, RUNS, weight, bias)
    for run in RUNS.pieces:
        first = before[max(0, run[0].begins)].unsqueeze(0)
        state = torch.zeros_like(first) if run[0].begins < 0 else first
        for start, stop, _, slot in run:
            if stop > start:
                wanted, last = over_runs.convolve(x[start:stop].unsqueeze(0), state, weight, bias)
                assert torch.equal(y[start:stop], wanted[0])
                state = last.float()
            assert torch.equal(pool[slot], state[0])
    assert pool[[3, 5]].isnan().all()


@DTYPES
@pytest.mark.parametrize(("channels", "kernel", "with_bias"), [(7, 4, True), (300, 3, False), (128, 2, True)])
@pytest.mark.parametrize("length", [1, 2, 150])
def test_convolution(dtype, channels, kernel, with_bias, length):
    draw = Draw(channels)
    x = draw.inputs(2, length, channels, dtype=dtype)
    weight, bias = draw.plain(channels, 1, kernel).to(dtype), draw.plain(channels).to(dtype) if with_bias else None
    state = draw.plain(2, channels, kernel - 1).to(dtype).float()
    with poisoned_memory():
        y, last = over_runs.convolve(x, state, weight, bias)
    wide_bias = None if bias is None else bias.double()
    wanted, wanted_last = convolution_torch.convolve(x.double(), state.double(), weight.double(), wide_bias)
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), wanted, rtol=TOLERANCES[dtype], atol=1e-6)
    torch.testing.assert_close(last.double(), wanted_last, rtol=0, atol=0)


@DTYPES
@pytest.mark.parametrize(("channels", "kernel", "with_bias"), [(7, 4, True), (300, 3, False), (128, 2, True)])
def test_convolution_step(dtype, channels, kernel, with_bias):
    draw = Draw(channels)
    x = draw.inputs(len(SLOTS), channels, dtype=dtype)
    weight, bias = draw.plain(channels, 1, kernel).to(dtype), draw.plain(channels).to(dtype) if with_bias else None
    pool = draw.pool(channels, kernel - 1)
    wanted_pool, poisoned = pool.double(), num_poisoned(pool)
    wide_bias = None if bias is None else bias.double()
    with poisoned_memory():
        y = compiled.conv_step(x, pool, SLOTS, weight, bias)
    wanted = convolution_torch.convolve_step(x.double(), wanted_pool, SLOTS, weight.double(), wide_bias)
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), wanted, rtol=TOLERANCES[dtype], atol=1e-6)
    torch.testing.assert_close(pool.double(), wanted_pool, rtol=0, atol=0, equal_nan=True)
    assert num_poisoned(pool) == poisoned


def decode_both(
    shape: Shape,
    lengths: list[int],
    *,
    scores: ScoreSpec = SCORES["plain"],
    dtype: torch.dtype = torch.float32,
    with_sinks: bool = False,
) -> None:
    """Compare `attend_decode` with `expected`, sequence by sequence."""
    generator = torch.Generator().manual_seed(sum(lengths) + shape.head_dim)
    cache = paged(shape, lengths, generator, dtype)
    q = torch.randn(len(lengths), shape.heads, shape.head_dim, generator=generator).to(dtype)
    sinks = torch.randn(shape.heads, generator=generator) if with_sinks else None
    wanted = torch.stack(
        [
            expected(q[row : row + 1], cache, row, scores, first=length - 1, sinks=sinks)[0]
            for row, length in enumerate(lengths)
        ]
    )
    for row, length in enumerate(lengths):
        forget(cache, row, length - min(length, scores.window or length))
    apart = among_poison(q.flatten(1)).unflatten(1, (shape.heads, -1))
    kv = KVCache(cache.keys, cache.values)
    with poisoned_memory():
        out = attend_decode(apart, kv, cache.tables.long(), torch.tensor(lengths), scores=scores, sinks=sinks)
    assert out.dtype == dtype
    tolerance = 2e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(out.double(), wanted.double(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("scores", SCORES.values(), ids=SCORES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_decoding(shape, scores):
    decode_both(shape, [1, 15, 16, 17, 300], scores=scores)


@pytest.mark.parametrize("lengths", [[1, 15, 16, 17, 150], [7 * TILE + 81, TILE, TILE + 1, 130]], ids=["one", "many"])
@pytest.mark.parametrize("scores", [SCORES["plain"], SCORES["window"]], ids=["plain", "window"])
def test_decoding_with_sinks_in_one_tile_and_in_many(lengths, scores):
    decode_both(Shape(3, 1, 24, 16), lengths, scores=scores, with_sinks=True)


@pytest.mark.parametrize("scores", SCORES.values(), ids=SCORES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@DTYPES
def test_prefill(shape, scores, dtype):
    """Runs that begin and end inside of tiles, over more than one; what lies before their windows is not read."""
    for first, count in ((0, 5), (120, 90)):
        generator = torch.Generator().manual_seed(first)
        cache = paged(shape, [first + count], generator, dtype)
        q = torch.randn(count, shape.heads, shape.head_dim, generator=generator).to(dtype)
        sinks = torch.randn(shape.heads)
        wanted = expected(q, cache, 0, scores, first=first, sinks=sinks)
        forget(cache, 0, max(0, first + 1 - (scores.window or first + 1)))
        apart = among_poison(q.flatten(1)).unflatten(1, (shape.heads, -1))
        with poisoned_memory():
            kv, table = KVCache(cache.keys, cache.values), cache.tables[0].long()
            out = attend_prefill(apart, kv, table, first, scores=scores, sinks=sinks)
        assert out.dtype == dtype
        tolerance = 2e-5 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(out.double(), wanted.double(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("scores", [ScoreSpec(softcap=20.0), SCORES["short window"]], ids=["capped", "short window"])
@pytest.mark.parametrize("shape", [Shape(4, 2, 80, 16), Shape(5, 5, 64, 16), Shape(12, 2, 96, 16)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_decoding_of_heads_of_all_kinds(dtype, shape, scores):
    decode_both(shape, [1, 2, 130, 300], scores=scores, dtype=dtype, with_sinks=True)


@DTYPES
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize(("outputs", "inputs"), [(131, 37), (64, 8), (5, 100), (200, 64), (70, 2500)])
def test_products_with_weights(dtype, outputs, inputs, with_bias):
    """Each row has the same bits in any company: in tall tiles and in low ones, by one thread and by more."""
    draw = Draw(outputs)
    x, weight = draw.inputs(2, 123, inputs, dtype=dtype), draw.plain(outputs, inputs).to(dtype)
    bias = draw.plain(outputs).to(dtype) if with_bias else None
    panels = linear_numba.lay_out(weight)
    with poisoned_memory(), torch.no_grad():
        y = linear_numba.linear(x, panels, bias)
        alone = [linear_numba.linear(x[i, :count], panels, bias) for i in (0, 1) for count in (1, 2, 7, 15, 25, 99)]
        apart = linear_numba.linear(among_poison(x[0]), panels, bias)
    wanted = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), wanted, rtol=TOLERANCES[dtype], atol=2e-4)
    assert torch.equal(apart, y[0])
    for i, rows in enumerate(alone):
        assert torch.equal(rows, y[i // 6, : len(rows)])


@DTYPES
@pytest.mark.parametrize(("outputs", "inputs"), [(131, 37), (70, 2500)])
def test_products_with_weights_in_8_bits(dtype, outputs, inputs):
    draw = Draw(outputs)
    x, weight = draw.inputs(1, 100, inputs, dtype=dtype)[0], draw.plain(outputs, inputs).to(dtype)
    weight[3] = 0
    weight[4] *= 1e4
    bias, panels = draw.plain(outputs).to(dtype), linear_numba.lay_out_int8(weight)
    assert panels.content.dtype == torch.int8
    kept, steps = panels.unpack(), weight.float().abs().amax(-1, keepdim=True) / 127
    # Half a step, and in bfloat16 what rounding the product with the scale takes.
    assert ((kept.float() - weight.float()).abs() <= steps * (0.51 if dtype == torch.float32 else 1.01)).all()
    assert torch.equal(panels.rows(torch.tensor([[5, 0]]))[0], kept[[5, 0]])
    with poisoned_memory(), torch.no_grad():
        y = linear_numba.linear(x, panels, bias)
        alone = [linear_numba.linear(x[:count], panels, bias) for count in (1, 2, 7, 15, 25)]
    exact = replace(panels, dtype=torch.float64, scales=panels.scales.double()).unpack()
    torch.testing.assert_close(
        y.double(), F.linear(x.double(), exact, bias.double()), rtol=TOLERANCES[dtype], atol=5e-2
    )
    assert all(torch.equal(rows, y[: len(rows)]) for rows in alone)


@DTYPES
@pytest.mark.parametrize(("outputs", "inputs"), [(131, 37), (64, 8), (1, 1)])
def test_panels_hold_every_weight_and_nothing_else(dtype, outputs, inputs):
    weight = torch.randn(outputs, inputs).to(dtype)
    panels = linear_numba.lay_out(weight)
    assert torch.equal(panels.unpack(), weight)
    chosen = torch.tensor([[0, outputs - 1], [outputs // 2, 0]])
    assert torch.equal(panels.rows(chosen), weight[chosen])
    assert panels.content.count_nonzero() == weight.count_nonzero()


FUNCTIONS = pytest.mark.parametrize("name", ["silu", "sigmoid", "softplus", "gelu", "gelu_tanh"])


@DTYPES
@FUNCTIONS
def test_functions_of_single_numbers(name, dtype):
    """Right, and the same bits in any company, on one thread and on more: rows of odd sizes, next to poison."""
    x = (7 * Draw(2).plain(700, 97)).to(dtype)
    assert x.numel() > 2 * SHARE
    x[0, :6] = torch.tensor([0.0, -0.0, 30.0, -30.0, 85.0, -85.0])
    with poisoned_memory(), torch.no_grad():
        y = getattr(ACTIVATIONS, name)(x)
        rows = [getattr(ACTIVATIONS, name)(x[i : i + 3].clone()) for i in range(0, 700, 99)]
        apart = getattr(ACTIVATIONS, name)(among_poison(x[:300]))
    wanted = getattr(PLAIN, name)(x.double())
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), wanted, rtol=1e-6 if dtype == torch.float32 else 4e-3, atol=2e-6)
    assert torch.equal(apart, y[:300])
    for i, part in zip(range(0, 700, 99), rows, strict=True):
        assert torch.equal(part, y[i : i + 3])


@DTYPES
def test_gates(dtype):
    draw = Draw(3)
    gate, up = (7 * draw.plain(700, 97)).to(dtype), draw.plain(700, 97).to(dtype)
    wanted = F.silu(gate.double()) * up.double()
    with torch.no_grad():
        apart = ACTIVATIONS.gate_silu(among_poison(gate), among_poison(up))
        alone = ACTIVATIONS.gate_silu(gate[5:6].clone(), up[5:6])
        y = ACTIVATIONS.gate_silu(gate, up)
    assert y.data_ptr() == gate.data_ptr()
    torch.testing.assert_close(y.double(), wanted, rtol=1e-6 if dtype == torch.float32 else 4e-3, atol=1e-7)
    assert torch.equal(apart, y)
    assert torch.equal(alone, y[5:6])


def test_functions_give_gradients_where_they_are_wanted():
    for name in ("silu", "sigmoid", "softplus", "gelu", "gelu_tanh"):
        x = torch.randn(5, requires_grad=True)
        getattr(ACTIVATIONS, name)(x).sum().backward()
        assert x.grad is not None
    gate = torch.randn(5, requires_grad=True)
    ACTIVATIONS.gate_silu(gate, torch.randn(5)).sum().backward()
    assert gate.grad is not None


def test_products_give_gradients_where_they_are_wanted():
    weight, x = torch.randn(6, 5, requires_grad=True), torch.randn(2, 5, requires_grad=True)
    linear_numba.linear(x, weight).sum().backward()
    assert weight.grad is not None
    wanted, x.grad = x.grad, None
    linear_numba.linear(x, linear_numba.lay_out(weight.detach())).sum().backward()
    torch.testing.assert_close(x.grad, wanted)
    with torch.no_grad():
        assert linear_numba.linear(torch.randn(0, 5), linear_numba.lay_out(weight)).shape == (0, 6)


@pytest.mark.parametrize("rows", [1, 8, 30])
@pytest.mark.parametrize("with_bias", [True, False])
def test_joined_products_are_the_same_to_the_bit(rows, with_bias):
    def make():
        torch.manual_seed(0)
        parts = [Linear(96, outputs, bias=with_bias) for outputs in (40, 5, 24)]
        for part in parts:
            part.linear = linear_numba.linear
        return parts

    apart, parts = make(), make()
    joined = Joined(parts)
    for part in apart:
        part.lay_out(linear_numba.lay_out)
    joined.lay_out(linear_numba.lay_out)
    x = torch.randn(rows, 96)
    with torch.no_grad():
        assert all(torch.equal(found, part(x)) for found, part in zip(joined(x), apart, strict=True))
    assert not any(part.weight.numel() for part in parts)


@DTYPES
@pytest.mark.parametrize("unit_offset", [True, False])
@pytest.mark.parametrize(("rows", "size"), [(3, 37), (70, 768)])
def test_norms(dtype, unit_offset, rows, size):
    """Each row has the same bits in any company."""
    draw = Draw(size)
    x, weight = draw.inputs(rows, size, dtype=dtype), draw.plain(size).to(dtype)
    with poisoned_memory():
        y = norm_numba.rms_norm(x, weight, 1e-5, unit_offset)
    assert y.dtype == dtype
    torch.testing.assert_close(y, rms_norm(x, weight, 1e-5, unit_offset), rtol=TOLERANCES[dtype], atol=1e-5)
    for row in (0, rows - 1):
        assert torch.equal(norm_numba.rms_norm(x[row : row + 1], weight, 1e-5, unit_offset)[0], y[row])


@DTYPES
@pytest.mark.parametrize(("tokens", "rotary_size"), [(1, 16), (3, 8), (70, 16), (700, 32)])
def test_rotary_positions(dtype, tokens, rotary_size):
    """Some entries of a head may stay as they are. Each token has the same bits in any company."""
    draw = Draw(tokens)
    x, angles = draw.inputs(tokens, 3, 32, dtype=dtype), draw.plain(tokens, rotary_size // 2)
    cos, sin = (torch.cat((table, table), dim=-1) for table in (angles.cos(), angles.sin()))
    with poisoned_memory():
        turned = rotate(x, cos, sin)
    assert turned.dtype == dtype
    torch.testing.assert_close(turned, apply_rotary(x, cos, sin), rtol=TOLERANCES[dtype], atol=1e-5)
    for t in (0, tokens - 1):
        assert torch.equal(rotate(x[t : t + 1], cos[t : t + 1], sin[t : t + 1])[0], turned[t])


@DTYPES
@pytest.mark.parametrize("apart", [False, True])
def test_keys_and_values_are_written_where_they_belong(dtype, apart):
    """Into blocks side by side, or each behind other memory that stays as it is."""
    draw = Draw(3)
    pools = [torch.full((7, 3 if apart else 2, 4, 2, 8), -1.0, dtype=dtype) for _ in range(2)]
    caches = [KVCache(pool[:, 0], pool[:, 1]) for pool in pools]
    keys, values = draw.inputs(6, 2, 8, dtype=dtype), draw.plain(6, 2, 8)
    slots = torch.tensor([0, 5, -1, 27, 13, 2])
    write_kv(caches[0], keys, values, slots)
    attention_torch.write_kv(caches[1], keys, values, slots)
    assert torch.equal(*pools)
    assert int((pools[0] != -1).any(dim=-1).sum()) == 5 * 2 * 2
