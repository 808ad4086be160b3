"""What an engine process makes of its options before it serves: the cache's share of the memory, and what it tells."""

from types import SimpleNamespace

import psutil
import pytest
import torch
from tiny_models import write_tiny_model

from server.config import ConfigError, EngineConfig
from server.engine_process import DEFAULT_CPU_CACHE, available_bytes, build

MIB = 1 << 20


@pytest.fixture
def host_memory(monkeypatch: pytest.MonkeyPatch):
    """Sets the host's available bytes."""
    return lambda available: monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=available))


def test_engines_that_share_a_gpu_share_its_memory(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (80_000, 81_000))
    gpu = torch.device("cuda")
    assert available_bytes(gpu, 1.0) == 68_000
    # Both ask before either has allocated.
    assert available_bytes(gpu, 1 / 2) == 34_000


def test_engines_share_the_hosts_memory(host_memory):
    cpu = torch.device("cpu")
    host_memory(800 * MIB)
    assert (available_bytes(cpu, 1.0), available_bytes(cpu, 1 / 4)) == (200 * MIB, 50 * MIB)
    host_memory(1 << 40)
    assert available_bytes(cpu, 1 / 4) == DEFAULT_CPU_CACHE


@pytest.mark.parametrize(("options", "num_blocks"), [({}, 4096), ({"memory_share": 0.25}, 1024)])
def test_the_cache_takes_the_engines_share(tmp_path, host_memory, options, num_blocks):
    host_memory(64 * MIB)
    _, ready = build(
        "tiny", write_tiny_model("transformer", tmp_path), EngineConfig(device="cpu", threads=1, **options)
    )
    assert ready.info.num_blocks == num_blocks  # of 4,096 bytes
    # The model has 4,096 positions: of longer sequences there is nothing to tell.
    *cache, kernels, graphs = ready.plan.splitlines()
    assert [line.split()[1:4:2] for line in cache[3:-1]] == [
        ["1,024", f"{num_blocks // 64}"],
        ["4,096", f"{num_blocks // 256}"],
    ]
    assert kernels == "kernels: numba for linear, attention"
    assert graphs == "decode steps: not captured: there is no GPU"


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


@pytest.mark.parametrize("share", [0.0, 1.1])
def test_a_share_is_more_than_nothing_and_not_more_than_all(share):
    with pytest.raises(ConfigError, match="memory_share must be above 0 and at most 1"):
        EngineConfig(memory_share=share)
