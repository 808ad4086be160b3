"""What an engine process makes of its options before it serves: the cache's share of the memory, and what it tells."""

import contextlib
import gc
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from tiny_models import KINDS, write_tiny_model

from server.config import ConfigError, EngineConfig
from server.engine_process import DEFAULT_CPU_CACHE, HOST_BYTES_PER_TOKEN, available_bytes, build
from server.profiling import largest_step, measure_step
from server.request import EngineRequest, SamplingParams
from server.runner import Runner

MIB = 1 << 20


@pytest.fixture
def host_memory(monkeypatch: pytest.MonkeyPatch):
    """Sets the host's available bytes."""
    return lambda available: monkeypatch.setattr(
        psutil, "virtual_memory", lambda: SimpleNamespace(available=available, total=available)
    )


def test_engines_that_share_a_gpu_share_its_memory(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (60_000, 80_000))
    gpu = torch.device("cuda")
    # A tenth of all is left alone, and what a step takes.
    assert available_bytes(gpu, EngineConfig(), 1_000) == 60_000 - 8_000 - 1_000
    assert available_bytes(gpu, EngineConfig(memory_fraction=0.5), 1_000) == 60_000 - 40_000 - 1_000
    # Both ask before either has allocated.
    assert available_bytes(gpu, EngineConfig(memory_share=1 / 2), 1_000) == 26_000 - 1_000
    assert available_bytes(gpu, EngineConfig(memory_fraction=0.2), 1_000) == 0


def test_engines_share_the_hosts_memory(host_memory):
    cpu = torch.device("cpu")
    host_memory(800 * MIB)
    whole, quarter = EngineConfig(), EngineConfig(memory_share=1 / 4)
    assert (available_bytes(cpu, whole, 0), available_bytes(cpu, quarter, 0)) == (200 * MIB, 50 * MIB)
    assert available_bytes(cpu, whole, 80 * MIB) == 180 * MIB
    host_memory(1 << 40)
    assert available_bytes(cpu, quarter, 0) == DEFAULT_CPU_CACHE


def test_a_context_without_positions_is_bounded_by_the_hosts_memory(tmp_path, host_memory):
    host_memory(1024 * MIB)
    _, ready = build(
        "tiny", write_tiny_model("mamba", tmp_path), EngineConfig(device="cpu", threads=1, cache_bytes=MIB)
    )
    assert ready.info.max_context_tokens == 64 * MIB // HOST_BYTES_PER_TOKEN


@pytest.mark.parametrize("share", [1.0, 0.25])
def test_the_cache_takes_the_engines_share_of_what_a_step_leaves(tmp_path, host_memory, share):
    host_memory(1024 * MIB)
    config = EngineConfig(device="cpu", threads=1, memory_share=share, step_tokens=512)
    _, ready = build("tiny", write_tiny_model("transformer", tmp_path), config)
    measured, *cache, kernels, graphs = ready.plan.splitlines()
    found = re.fullmatch("a step of 512 tokens: ([0-9,]+) bytes beside weights and cache", measured)
    step_bytes = int(found[1].replace(",", ""))
    num_blocks = int((1024 * MIB - step_bytes) / 4 * share) // 4096
    assert ready.info.num_blocks == num_blocks
    # The model has 4,096 positions: of longer sequences there is nothing to tell.
    assert [line.split()[1:4:2] for line in cache[3:-1]] == [
        ["1,024", f"{num_blocks // 64:,}"],
        ["4,096", f"{num_blocks // 256:,}"],
    ]
    assert kernels == "kernels: numba for linear, norm, activations, attention"
    assert graphs == "decode steps: recorded and replayed"


def test_states_in_half_the_bytes(tmp_path):
    directory = write_tiny_model("mamba", tmp_path)
    built = {}
    for dtype in ("float32", "bfloat16"):
        config = EngineConfig(
            device="cpu", threads=1, cache_bytes=MIB, cache_dir=str(tmp_path / "c"), state_dtype=dtype
        )
        engine, ready = build("tiny", directory, config)
        engine.close()
        built[dtype] = ready.info
        assert f"bytes per sequence in {dtype}\n" in ready.plan
        assert ready.info.state_dtype == dtype
    wide, narrow = built.values()
    assert narrow.bytes_per_sequence < wide.bytes_per_sequence
    assert narrow.num_state_slots > wide.num_state_slots
    # What one has left on the disk is nothing to the other.
    assert len(list((tmp_path / "c").iterdir())) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_weights_in_8_bits(tmp_path, kind):
    directory, tokens = write_tiny_model(kind, tmp_path), {}
    for quantization in ("none", "int8"):
        config = EngineConfig(device="cpu", threads=1, cache_dir=str(tmp_path / "c"), quantization=quantization)
        engine, _ = build("tiny", directory, config)
        engine.add_request(EngineRequest("a", (1, 2, 3), SamplingParams(40, temperature=0.0, ignore_eos=True)))
        outputs = []
        while engine.has_work:
            outputs += [token for _, output in engine.step() for token in output.token_ids]
        engine.close()
        tokens[quantization] = outputs
        held = {module.panels.content.dtype for module in engine._runner.decoder.modules() if has_panels(module)}
        assert held == {torch.int8 if quantization == "int8" else torch.float32}
    assert tokens["int8"][0] == tokens["none"][0]
    # What one has computed is nothing to the other.
    assert len(list((tmp_path / "c").iterdir())) == 2


def has_panels(module):
    return getattr(module, "panels", None) is not None


def test_weights_in_8_bits_where_no_kernel_reads_them(tmp_path):
    config = EngineConfig(device="cpu", dtype="float16", quantization="int8")
    with pytest.raises(ConfigError, match=r"--quantization int8: only by the kernels in numba.* not in float16"):
        build("tiny", write_tiny_model("transformer", tmp_path), config)


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_step_takes_is_measured(tmp_path, kind):
    """A layer that takes 200 MiB more is found out."""
    runner = Runner(write_tiny_model(kind, tmp_path), dtype=torch.float32, device=torch.device("cpu"))
    config = EngineConfig(device="cpu", step_tokens=256, prefill_chunk=64, max_running=16)
    least = measure_step(runner, config, 16)
    assert least < 150 * MIB
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        runner.decoder.layers[0].register_forward_hook(lambda *_: print(torch.ones(50 * MIB).sum()))
        assert measure_step(runner, config, 16) > 150 * MIB


def test_the_largest_step():
    step = largest_step(2048, longest=1024, most=64, block_size=16)
    assert step.num_tokens == 2048
    assert [part.num_tokens for part in step.parts][:2] == [1024, 1024 // 63]
    assert len(step.parts) == 64
    assert all(part.samples and len(part.sequence.block_table) == 64 for part in step.parts)
    # Where there are few tokens there are few sequences.
    assert [part.num_tokens for part in largest_step(16, longest=8, most=64, block_size=4).parts] == [1, *[2] * 7]
    assert [part.num_tokens for part in largest_step(40, longest=16, most=1, block_size=4).parts] == [16]


def test_a_context_that_cannot_fit_is_refused_with_the_arithmetic(tmp_path):
    directory = write_tiny_model("hybrid", tmp_path)
    config = EngineConfig(device="cpu", threads=1, cache_bytes=1_000_000, max_context=4000)
    with pytest.raises(ConfigError) as raised:
        build("tiny", directory, config)
    message = str(raised.value)
    assert message.startswith("--max-context 4,000 does not fit into the cache: 250 blocks of 16 tokens are 1,024,000 ")
    found = re.search(r"with ([0-9,]+) of state ([0-9,]+), and it has 1,000,000, enough for ([0-9,]+) tokens", message)
    state, needed, most = (int(number.replace(",", "")) for number in found.groups())
    assert needed == 1_024_000 + state
    assert most == (1_000_000 - state) // 4096 * 16
    enough = round(float(message.rpartition("--cache-gib ")[2]) * (1 << 30))
    _, ready = build("tiny", directory, replace(config, cache_bytes=enough))
    assert ready.info.max_context_tokens == 4000
    build("tiny", directory, replace(config, max_context=most))
    with pytest.raises(ConfigError, match="--max-context 5,000 is more than the model's 4,096 positions"):
        build("tiny", directory, replace(config, max_context=5000))


@pytest.mark.skipif(sys.platform != "linux", reason="the system gives no memory before it is used")
@pytest.mark.parametrize("kind", KINDS)
def test_the_cache_takes_its_memory_at_once_where_that_is_wanted(tmp_path, caplog, kind):
    directory, taken = write_tiny_model(kind, tmp_path), []
    for whole in (False, True):
        config = EngineConfig(device="cpu", threads=1, cache_bytes=90 * MIB, populate_cache=whole)
        before = psutil.Process().memory_info().rss
        with caplog.at_level("INFO", "fathom.engine"):
            engine, _ = build("tiny", directory, config)
        taken.append(psutil.Process().memory_info().rss - before)
        engine.close()
        del engine, _
        gc.collect()
    assert taken[1] > 85 * MIB > 60 * MIB > taken[0]
    assert "--populate-cache: all memory of the cache is there" in caplog.text


def test_a_part_of_a_gpu_is_refused_where_there_is_none(tmp_path):
    with pytest.raises(ConfigError, match="--memory-fraction is of a GPU's memory"):
        build("tiny", write_tiny_model("mamba", tmp_path), EngineConfig(device="cpu", memory_fraction=0.5))
    with pytest.raises(ConfigError, match="give one of them"):
        EngineConfig(memory_fraction=0.5, cache_bytes=MIB)
    with pytest.raises(ConfigError, match=r"--memory-fraction must be above 0 and at most 1, got 1\.5"):
        EngineConfig(memory_fraction=1.5)


@pytest.mark.parametrize("share", [0.0, 1.1])
def test_a_share_is_more_than_nothing_and_not_more_than_all(share):
    with pytest.raises(ConfigError, match="memory_share must be above 0 and at most 1"):
        EngineConfig(memory_share=share)
