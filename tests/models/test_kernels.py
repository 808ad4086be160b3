"""The rule that chooses backends, and the backends behind the interface where this machine can run them."""

import sys
from dataclasses import replace
from types import ModuleType

import pytest
import torch
from paged_driver import BLOCK_SIZE, PagedDriver
from reference_models import BUILDERS

from models.batch import ForwardBatch
from models.cache import KVCache
from models.config import ScoreSpec
from models.kernels import attention_torch, environment
from models.kernels.bind import KERNELS, MAKERS, bind
from models.kernels.choose import CANDIDATES, LARGE_BLOCK, SMALL_BLOCK, Need, choose, preferred_block_size
from models.kernels.environment import PACKAGES, Environment, Package, probe, probe_package
from models.kernels.flash_backends import flash_attn_attend, flash_window, varlen_attend

ABSENT = Package(None, "not installed")
THERE = Package("1.0", None)
CPU = Environment("cpu", "CPU", None, "2.13.0", True, {})
COMPILED = replace(CPU, packages={"numba": THERE})
BARE_GPU = Environment("cuda", "H200", (9, 0), "2.11.0", False, {"triton": THERE})
NEW_TORCH = replace(BARE_GPU, torch_version="2.13.0", has_paged_varlen=True)
FULL = replace(NEW_TORCH, packages=dict.fromkeys(("triton", "flash-attn", "mamba-ssm", "causal-conv1d"), THERE))
USUAL = Need("bfloat16", LARGE_BLOCK, head_dim=128, width=4)


@pytest.mark.parametrize(
    ("environment", "attention", "others"),
    [
        (CPU, "torch", {"SSD scan": "torch", "SSD step": "torch", "selective scan": "torch", "convolution": "torch"}),
        (COMPILED, "numba", {"SSD scan": "numba", "SSD step": "numba", "delta scan": "numba", "convolution": "numba"}),
        (BARE_GPU, "triton", {"SSD scan": "torch", "SSD step": "triton", "selective scan": "triton"}),
        (NEW_TORCH, "varlen_attn", {"delta step": "triton", "convolution": "torch", "convolution step": "triton"}),
        (FULL, "flash-attn", {"SSD scan": "mamba-ssm", "convolution": "causal-conv1d", "delta scan": "torch"}),
    ],
    ids=["cpu", "cpu with numba", "bare GPU", "new torch", "all packages"],
)
def test_the_rule(environment, attention, others):
    assert choose("attention", environment, USUAL).backend == attention
    assert {name: choose(name, environment, USUAL).backend for name in others} == others


@pytest.mark.parametrize(
    ("change", "backend", "reason"),
    [
        ({"dtype": "float32"}, "triton", "not in float32"),
        ({"sinks": True}, "triton", "knows no attention sinks"),
        ({"head_dim": 512}, "triton", "head_dim 512 is above 256"),
        ({"head_dim": 100}, "triton", "no multiple of 8"),
        ({"block_size": 16}, "triton", "needs --block-size to be a multiple of 256, not 16"),
        ({"softcap": True}, "flash-attn", None),
    ],
)
def test_what_flash_attention_cannot_do(change, backend, reason):
    choice = choose("attention", FULL, replace(USUAL, **change))
    assert choice.backend == backend
    assert reason is None or reason in dict(choice.passed_over)["flash-attn"]


def test_an_absent_package_says_how_to_get_it():
    assert (
        dict(choose("attention", NEW_TORCH, USUAL).passed_over)["flash-attn"] == "not installed: pip install flash-attn"
    )
    broken = replace(FULL, packages={**FULL.packages, "mamba-ssm": Package("2.3", "import mamba_ssm fails: no x.so")})
    assert dict(choose("SSD scan", broken, USUAL).passed_over)["mamba-ssm"] == "import mamba_ssm fails: no x.so"


def test_what_compiled_kernels_for_a_processor_cannot_do():
    choice = choose("SSD step", COMPILED, replace(USUAL, dtype="float16"))
    assert choice.backend == "torch"
    assert dict(choice.passed_over)["numba"] == "computes in float32 or bfloat16, not in float16"
    assert dict(choose("attention", CPU, USUAL).passed_over)["numba"] == "not installed: pip install numba"
    narrow = replace(USUAL, state_dtype="float16")
    assert choose("SSD step", COMPILED, narrow).backend == "numba"
    choice = choose("SSD step", replace(COMPILED, converts_half=False), narrow)
    assert choice.backend == "torch"
    assert dict(choice.passed_over)["numba"].endswith("float16, which --state-dtype asks for")
    on_gpu = replace(BARE_GPU, packages={"numba": THERE})
    assert dict(choose("delta scan", on_gpu, USUAL).passed_over)["numba"] == "needs a processor"


def test_plain_torch_serves_everywhere():
    assert {candidates[-1][0] for candidates in CANDIDATES.values()} == {"torch"}
    nothing = replace(BARE_GPU, packages={})
    assert {choose(operation, nothing, USUAL).backend for operation in CANDIDATES} == {"torch"}


@pytest.mark.parametrize(
    ("name", "environment", "size"),
    [
        ("llama-tied", FULL, LARGE_BLOCK),
        ("llama-tied", BARE_GPU, SMALL_BLOCK),
        ("llama-tied", CPU, SMALL_BLOCK),
        ("mamba2-tied", FULL, SMALL_BLOCK),
        ("gpt-oss", FULL, SMALL_BLOCK),
    ],
)
def test_preferred_block_size(pairs, name, environment, size):
    layers = pairs(name).ours.config.layers
    if name == "llama-tied":
        layers = [replace(layer, mixer=replace(layer.mixer, head_dim=64)) for layer in layers]
    assert preferred_block_size(layers, environment, "bfloat16") == size


COMPILED_NAMES = ("llama-tied", "gemma2", "gpt-oss", "mamba-tied", "mamba2-untied-biased", "qwen3-next", "falcon-h1")


@pytest.mark.parametrize("name", COMPILED_NAMES)
@pytest.mark.parametrize("backend", ["triton", "numba"])
def test_a_model_on_compiled_kernels(pairs, name, backend):
    """Prefill in pieces, decode in company: the logits that plain torch gives."""
    assert name in BUILDERS
    pair = pairs(name)
    device = pair.ours.embedding.weight.device
    if backend == "numba" and device.type != "cpu":
        pytest.skip("for processors")
    works = [{0: [5, 6, 7, 8, 9], 1: [3]}, {0: [4], 1: [8, 2, 6]}, {0: [1], 1: [7]}, {1: [9], 2: [2, 3]}]
    environment = COMPILED if backend == "numba" else replace(BARE_GPU, device=device.type)
    found = {}
    for who, machine in (("torch", CPU), (backend, environment)):
        choices = bind(pair.ours, machine, torch.float32, BLOCK_SIZE)
        assert {choice.backend for choice in choices} <= {who, "torch"}
        driver = PagedDriver(pair.ours, 3, 12, machine)
        found[who] = [torch.cat(list(driver.step(work).values())) for work in works]
    for ours, reference in zip(found[backend], found["torch"], strict=True):
        torch.testing.assert_close(ours, reference, atol=1e-4, rtol=1e-4)


def paged_batch(block_size=4):
    """Two decodes and a chunk of three over scattered blocks, poisoned where nothing is written; the reference."""
    generator = torch.Generator().manual_seed(3)
    shape = (12, block_size, 2, 8)
    cache = KVCache(torch.randn(shape, generator=generator), torch.randn(shape, generator=generator))
    starts, contexts = torch.tensor([0, 1, 4, 5]), torch.tensor([6, 2, 10])
    tables = torch.tensor([[7, 2, -1], [9, 0, -1], [1, 11, 4]])
    rows = int(starts[-1])
    unused = torch.zeros(rows, dtype=torch.int64)
    batch = ForwardBatch(unused, unused, starts, contexts, tables, unused, unused[:3], unused[:1])
    return torch.randn(rows, 6, 8, generator=generator), cache, batch


def dense_by_tables(q, cache, starts, lengths, *, tables, scale, window, softcap):
    """What a paged kernel must compute, read off its own arguments one query at a time, in float64."""
    out = torch.empty_like(q)
    repeat = q.shape[1] // cache[0].shape[2]
    for i, length in enumerate(lengths.tolist()):
        first, last = int(starts[i]), int(starts[i + 1])
        mine = [x[tables[i].long()].flatten(0, 1)[:length].double().repeat_interleave(repeat, 1) for x in cache]
        for row in range(first, last):
            position = length - (last - row)
            begin = 0 if window[0] < 0 else max(0, position - window[0])
            k, v = (x[begin : position + 1 + window[1]] for x in mine)
            logits = torch.einsum("hd,thd->ht", q[row].double(), k) * (scale or q.shape[-1] ** -0.5)
            logits = torch.tanh(logits / softcap) * softcap if softcap else logits
            out[row] = torch.einsum("ht,thd->hd", logits.softmax(-1), v).to(q.dtype)
    return out


def stand_in_flash_attn():
    """A module with the two functions of flash-attn that are called, which only exist for a GPU."""

    def varlen(q, *cache, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale, causal, **rest):
        assert causal
        assert max_seqlen_q == int(cu_seqlens_q.diff().max())
        assert max_seqlen_k == int(cu_seqlens_k.diff().max())
        how = {"tables": rest["block_table"], "window": rest["window_size"], "softcap": rest["softcap"]}
        return dense_by_tables(q, cache, cu_seqlens_q, cu_seqlens_k.diff(), scale=softmax_scale, **how)

    def with_kvcache(q, *cache, cache_seqlens, softmax_scale, causal, **rest):
        assert causal
        starts = torch.arange(len(q) + 1)
        how = {"tables": rest["block_table"], "window": rest["window_size"], "softcap": rest["softcap"]}
        return dense_by_tables(q[:, 0], cache, starts, cache_seqlens, scale=softmax_scale, **how)[:, None]

    module = ModuleType("flash_attn")
    module.flash_attn_varlen_func, module.flash_attn_with_kvcache = varlen, with_kvcache
    return module


def stand_in_varlen():
    def varlen_attn(*arguments, scale, window_size, enable_gqa, seqused_k, block_table):
        q, keys, values, cu_q, cu_k, max_q, max_k = arguments
        assert cu_k is None
        assert enable_gqa
        assert (max_q, max_k >= int(seqused_k.max())) == (int(cu_q.diff().max()), True)
        assert block_table.dtype == seqused_k.dtype == cu_q.dtype == torch.int32
        how = {"tables": block_table, "scale": scale, "window": window_size, "softcap": None}
        return dense_by_tables(q, (keys, values), cu_q, seqused_k, **how)

    module = ModuleType("varlen")
    module.varlen_attn = varlen_attn
    return module


@pytest.mark.parametrize("scores", [ScoreSpec(), ScoreSpec(window=5, scale=0.3), ScoreSpec(softcap=2.0)])
@pytest.mark.parametrize("decodes_only", [True, False])
@pytest.mark.parametrize("library", ["flash-attn", "varlen_attn"])
def test_what_flash_kernels_are_asked(library, decodes_only, scores):
    """Lengths, tables and windows reach the library so that it computes what plain torch does."""
    if library == "varlen_attn" and scores.softcap:
        pytest.skip("the rule never gives it a soft cap")
    q, cache, batch = paged_batch()
    if decodes_only:
        keep = [0, 2]
        q = q[[0, 4]]
        batch = replace(
            batch,
            token_ids=batch.token_ids[:2],
            query_start=torch.arange(3),
            context_lens=batch.context_lens[keep],
            block_tables=batch.block_tables[keep],
        )
    made = flash_attn_attend(stand_in_flash_attn()) if library == "flash-attn" else varlen_attend(stand_in_varlen())
    ours = made(q, cache, batch, scores=scores, sinks=None)
    reference = attention_torch.attend(q, cache, batch, scores=scores, sinks=None)
    torch.testing.assert_close(ours, reference, atol=1e-5, rtol=1e-5)


def test_windows_of_flash_attention_count_what_is_left_of_a_query():
    assert flash_window(ScoreSpec()) == (-1, 0)
    assert flash_window(ScoreSpec(window=1)) == (0, 0)


def test_probing_a_processor_loads_nothing():
    environment = probe(torch.device("cpu"))
    assert not environment.is_gpu
    assert "mamba_ssm" not in sys.modules


def test_mamba_ssm_without_its_extension_is_found(tmp_path, monkeypatch):
    """Its own import fails then; its Triton kernels need nothing of it."""
    folder = tmp_path / "mamba_ssm" / "ops" / "triton"
    folder.mkdir(parents=True)
    (tmp_path / "mamba_ssm" / "__init__.py").write_text("import there_is_no_such_extension")
    (folder / "ssd_combined.py").write_text("def mamba_chunk_scan_combined(): ...")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(environment, "version", lambda _: "2.3.2")
    for name in list(sys.modules):
        if name.partition(".")[0] == "mamba_ssm":
            monkeypatch.delitem(sys.modules, name)
    try:
        assert probe_package("mamba-ssm", PACKAGES["mamba-ssm"]) == Package("2.3.2", None)
        (folder / "ssd_combined.py").unlink()
        for name in [name for name in sys.modules if name.startswith("mamba_ssm.")]:
            del sys.modules[name]
        problem = probe_package("mamba-ssm", PACKAGES["mamba-ssm"]).problem
        assert problem == "its import fails: No module named 'mamba_ssm.ops.triton.ssd_combined'"
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "mamba_ssm"]:
            del sys.modules[name]


@pytest.mark.parametrize("operation", CANDIDATES)
def test_every_backend_of_the_rule_is_somewhere(operation):
    for backend, _ in CANDIDATES[operation]:
        key = (operation, backend)
        assert (key in KERNELS) + (key in MAKERS) == (backend != "torch")
