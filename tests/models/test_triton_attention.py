"""The attention kernels in Triton against softmaxes written out in float64; what they must not read is NaN."""

import pytest
import torch
from attention_cases import SCORES, SHAPES, Shape, expected, forget, paged
from devices import DEVICES
from poison import among_poison, poisoned_memory, skip_unless_triton_runs_on

from models.cache import KVCache
from models.config import ScoreSpec
from models.kernels import attention_torch

pytest.importorskip("triton", reason="triton has no build for this machine")

from models.kernels import attention_triton
from models.kernels.attention_triton import attend_decode, attend_prefill, write_kv

TOLERANCES = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}


@pytest.fixture(params=DEVICES)
def device(request) -> torch.device:
    device = torch.device(request.param)
    skip_unless_triton_runs_on(device)
    return device


def decode_both(
    shape: Shape,
    lengths: list[int],
    device: torch.device,
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
    wanted = [
        expected(q[row : row + 1], cache, row, scores, first=length - 1, sinks=sinks)[0]
        if length
        else torch.zeros_like(q[row])
        for row, length in enumerate(lengths)
    ]
    for row, length in enumerate(lengths):
        forget(cache, row, length - min(length, scores.window or length))
        if not length:
            q[row] = float("nan")
    on_device = [tensor.to(device) for tensor in (cache.keys, cache.values, cache.tables, torch.tensor(lengths).int())]
    with poisoned_memory():
        out = attend_decode(
            among_poison(q.to(device).flatten(1)).unflatten(1, (shape.heads, -1)),
            *on_device,
            scores=scores,
            sinks=None if sinks is None else sinks.to(device),
        )
    assert out.dtype == dtype
    tolerance = TOLERANCES[dtype]
    torch.testing.assert_close(out.cpu().double(), torch.stack(wanted).double(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("scores", SCORES.values(), ids=SCORES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_decoding(device, shape, scores):
    decode_both(shape, [1, 15, 0, 16, 17, 300], device, scores=scores)


@pytest.mark.parametrize("lengths", [[0, 1, 15, 16, 17, 150], [2900, 130, 0]], ids=["one part", "many parts"])
@pytest.mark.parametrize("scores", [SCORES["plain"], SCORES["window"]], ids=["plain", "window"])
def test_decoding_with_sinks_in_one_part_and_in_many(device, lengths, scores):
    decode_both(Shape(3, 1, 24, 16), lengths, device, scores=scores, with_sinks=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_decoding_in_half_precision(device, dtype):
    decode_both(Shape(4, 2, 80, 16), [1, 300, 0], device, scores=ScoreSpec(softcap=20.0), dtype=dtype, with_sinks=True)


def test_decoding_one_sequence_whose_queries_lie_apart(device):
    """Entries of a head need not be neighbours, as in a transposed tensor."""
    generator = torch.Generator().manual_seed(0)
    cache = paged(SHAPES["one key head"], [33], generator)
    q = torch.randn(1, 128, 8, generator=generator).transpose(1, 2)
    on_device = [tensor.to(device) for tensor in (q, cache.keys, cache.values, cache.tables)]
    out = attend_decode(*on_device, torch.tensor([33], device=device), scores=ScoreSpec())
    wanted = expected(q, cache, 0, ScoreSpec(), first=32)
    torch.testing.assert_close(out.cpu().double(), wanted, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("device", DEVICES[1:], indirect=True)
def test_a_captured_decode_step_reads_what_its_inputs_have_become(device):
    cache = paged(SHAPES["groups of 3, odd size"], [300, 20], torch.Generator().manual_seed(0))
    q = torch.randn(2, 6, 24, device=device)
    keys, values, tables = (tensor.to(device) for tensor in (cache.keys, cache.values, cache.tables))
    lengths = torch.tensor([5, 0], dtype=torch.int32, device=device)
    attend_decode(q, keys, values, tables, lengths, scores=ScoreSpec())  # a kernel cannot be compiled in a capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = attend_decode(q, keys, values, tables, lengths, scores=ScoreSpec())
    q.normal_()
    lengths.copy_(torch.tensor(cache.lengths))
    graph.replay()
    for row, length in enumerate(cache.lengths):
        wanted = expected(q[row : row + 1].cpu(), cache, row, ScoreSpec(), first=length - 1)[0]
        torch.testing.assert_close(out[row].cpu().double(), wanted, rtol=2e-5, atol=2e-5)


def prefill_both(
    shape: Shape,
    new: list[tuple[int, int]],
    device: torch.device,
    *,
    scores: ScoreSpec = SCORES["plain"],
    dtype: torch.dtype = torch.float32,
    with_sinks: bool = False,
) -> None:
    """Compare `attend_prefill` with `expected` for sequences of (positions before, new tokens); then two rows more."""
    generator = torch.Generator().manual_seed(len(new) + shape.head_dim)
    lengths, counts = [context + count for context, count in new], [count for _, count in new]
    cache = paged(shape, lengths, generator, dtype)
    starts = torch.tensor([0, *counts]).cumsum(0)
    q = torch.randn(sum(counts) + 2, shape.heads, shape.head_dim, generator=generator).to(dtype)
    sinks = torch.randn(shape.heads, generator=generator) if with_sinks else None
    wanted = torch.zeros(q.shape, dtype=torch.float64)
    for row, (context, count) in enumerate(new):
        mine = slice(int(starts[row]), int(starts[row + 1]))
        if count:
            wanted[mine] = expected(q[mine], cache, row, scores, first=context, sinks=sinks)
        forget(cache, row, max(0, context + 1 - (scores.window or context + 1)))
    q[sum(counts) :] = float("nan")
    tensors = (cache.keys, cache.values, cache.tables, starts.int(), torch.tensor(lengths).int())
    with poisoned_memory():
        out = attend_prefill(
            among_poison(q.to(device).flatten(1)).unflatten(1, (shape.heads, -1)),
            *(tensor.to(device) for tensor in tensors),
            max_query=max(counts),
            scores=scores,
            sinks=None if sinks is None else sinks.to(device),
        )
    assert out.dtype == dtype
    tolerance = TOLERANCES[dtype]
    torch.testing.assert_close(out.cpu().double(), wanted, rtol=tolerance, atol=tolerance)


MIXED = [(0, 1), (0, 17), (5, 0), (15, 2), (16, 20), (297, 3), (299, 1)]


@pytest.mark.parametrize("scores", SCORES.values(), ids=SCORES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_prefill_of_a_mixed_batch(device, shape, scores):
    prefill_both(shape, MIXED, device, scores=scores)


@pytest.mark.parametrize("scores", [SCORES["scaled and capped"], SCORES["window"]], ids=["capped", "window"])
@pytest.mark.parametrize("new", [[(40, 5)], [(0, 20), (2, 7)], [(130, 90), (0, 1)]], ids=["short", "middle", "long"])
def test_prefill_with_sinks_in_half_precision_whatever_its_length(device, scores, new):
    """Each length gives the program another number of rows."""
    prefill_both(Shape(6, 2, 32, 16), new, device, scores=scores, dtype=torch.bfloat16, with_sinks=True)


def test_prefill_finds_its_sequence_among_more_than_are_looked_at_together(device):
    num_sequences = attention_triton.SEARCH.value + 1
    new = [(row % 3, int(row % 10 == 8)) for row in range(num_sequences)]
    prefill_both(Shape(1, 1, 16, 16), new, device)


def test_a_group_larger_than_a_programs_rows(device):
    prefill_both(Shape(20, 1, 16, 16), [(3, 2)], device)
    decode_both(Shape(20, 1, 16, 16), [5], device)


@pytest.mark.parametrize(
    ("dtypes", "tolerance"),
    [
        ((torch.float32, torch.float32), 0),
        ((torch.bfloat16, torch.bfloat16), 0),
        ((torch.float32, torch.bfloat16), 2**-7),  # the interpreter rounds some the other way
    ],
    ids=["float32", "bfloat16", "float32 to bfloat16"],
)
@pytest.mark.parametrize(("kv_heads", "head_dim"), [(3, 24), (8, 160)])
def test_writing_keys_and_values(device, dtypes, tolerance, kv_heads, head_dim):
    dtype, cache_dtype = dtypes
    generator = torch.Generator().manual_seed(head_dim)
    fused = torch.randn(5, 3 * kv_heads * head_dim, generator=generator).to(device, dtype)
    _, new_keys, new_values = (part.unflatten(1, (kv_heads, head_dim)) for part in fused.chunk(3, dim=1))
    slots = torch.tensor([17, -1, 0, 31, -1], device=device)
    shape = (3, 16, kv_heads, head_dim)
    ours, reference = (
        KVCache(*(torch.full(shape, float("nan"), dtype=cache_dtype, device=device) for _ in range(2)))
        for _ in range(2)
    )
    write_kv(ours.keys, ours.values, new_keys, new_values.transpose(1, 2).contiguous().transpose(1, 2), slots)
    attention_torch.write_kv(reference, new_keys, new_values, slots)
    torch.testing.assert_close(ours.keys, reference.keys, rtol=tolerance, atol=0, equal_nan=True)
    torch.testing.assert_close(ours.values, reference.values, rtol=tolerance, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("programs", "positions", "splits"),
    [
        (1, 100, 1),  # too short to be divided
        (8, 1 << 20, 128),  # never more than the second kernel looks at
        (8, 8192, 64),  # as many as are worth their start
        (512, 8192, 2),  # nearly enough without
        (4096, 8192, 1),
        (4096, 1 << 17, 16),  # a long one must not keep a full GPU waiting
    ],
)
def test_contexts_are_divided_to_fill_the_gpu(programs, positions, splits):
    assert attention_triton._num_splits(programs, positions, 132) == splits


def test_what_does_not_fit_is_refused(device):
    cached = torch.zeros(2, 16, 2, 8, device=device)
    tables, lengths = torch.zeros(1, 1, dtype=torch.int32, device=device), torch.ones(1, dtype=torch.int32)
    for q, keys, values, message in (
        (torch.zeros(1, 3, 8), cached, cached, r"queries \(1, 3, 8\) do not fit"),
        (torch.zeros(1, 4, 9), cached, cached, r"queries \(1, 4, 9\) do not fit"),
        (torch.zeros(1, 4, 8), cached, cached.bfloat16(), "differ"),
        (torch.zeros(1, 4, 8), *[cached.transpose(1, 2).contiguous().transpose(1, 2)] * 2, "not contiguous"),
    ):
        with pytest.raises(ValueError, match=message):
            attend_decode(q.to(device), keys, values, tables, lengths.to(device), scores=ScoreSpec())
    with pytest.raises(ValueError, match=r"new keys \(1, 2, 9\) do not fit"):
        write_kv(cached, cached, *[torch.zeros(1, 2, 9, device=device)] * 2, torch.zeros(1, device=device).long())
