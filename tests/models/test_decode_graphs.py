"""Decode steps on the fixed, padded inputs that CUDA graphs are captured with: what the decoder gives by itself."""

from dataclasses import replace

import pytest
import torch
from paged_driver import BLOCK_SIZE, PagedDriver

from models.cache import simple_caches
from models.decode_graphs import DecodeGraphs, batch_sizes, why_no_graphs
from models.kernels.bind import bind
from models.kernels.choose import Choice, choices_for
from models.kernels.environment import Environment, Package, probe

# On a machine without a GPU Triton's kernels are interpreted.
GPU = Environment("cuda", "H200", (9, 0), "2.11.0", False, {"triton": Package("3.7", None)})
NAMES = ("llama-tied", "gemma3", "mamba-tied", "mamba2-tied", "qwen3-5", "falcon-h1", "zamba2")
CAPACITY, MAX_TOKENS = 5, 12


@pytest.fixture(params=NAMES)
def driver(request, pairs, device):
    pair = pairs(request.param)
    environment = replace(GPU, device=device.type)
    yield PagedDriver(pair.ours, CAPACITY, MAX_TOKENS, environment)
    bind(pair.ours, probe(device), torch.float32, BLOCK_SIZE)


def graphs_of(driver):
    with torch.inference_mode():
        graphs = DecodeGraphs(driver.decoder, driver.caches, largest=CAPACITY, max_blocks=-(-MAX_TOKENS // BLOCK_SIZE))
        if driver.device.type == "cuda":
            graphs.prepare()
            assert graphs.captured == batch_sizes(CAPACITY)
    return graphs


def contents(driver):
    return [
        {field: getattr(cache, field).clone() for field in cache.__slots__} for cache in simple_caches(driver.caches)
    ]


def test_padded_steps_equal_plain_ones(driver):
    """Batches of 3, 1 and 4 in inputs for 4, 1 and 4; the plain step goes first, from a snapshot."""
    graphs = graphs_of(driver)
    driver.step({0: [5, 6, 7, 8, 9], 1: [3, 3], 2: [4, 1, 2, 6, 7, 2], 3: [1]})
    for work in ({2: [4], 0: [1], 1: [7]}, {1: [9]}, {0: [2], 3: [8], 2: [5], 1: [6]}):
        before = [
            {field: getattr(cache, field).clone() for field in cache.__slots__}
            for cache in simple_caches(driver.caches)
        ]
        plain, lengths = driver.step(work), list(driver.lengths)
        after = [
            {field: getattr(cache, field).clone() for field in cache.__slots__}
            for cache in simple_caches(driver.caches)
        ]
        for cache, saved in zip(simple_caches(driver.caches), before, strict=True):
            for field, tensor in saved.items():
                getattr(cache, field).copy_(tensor)
        for sequence in work:
            driver.lengths[sequence] -= 1
        assert graphs.takes(driver.batch(work))
        padded = driver.step(work, graphs.run)
        assert driver.lengths == lengths
        for sequence, logits in plain.items():
            torch.testing.assert_close(padded[sequence], logits, atol=1e-5, rtol=1e-5)
        # Padding has written nothing anywhere.
        for cache, saved in zip(simple_caches(driver.caches), after, strict=True):
            for field, tensor in saved.items():
                torch.testing.assert_close(getattr(cache, field), tensor, atol=1e-5, rtol=1e-5, equal_nan=True)


def test_only_steps_of_single_tokens_are_taken(driver):
    graphs = graphs_of(driver)
    assert not graphs.takes(driver.batch({0: [5, 6]}))
    assert not graphs.takes(driver.batch({0: [5]}))  # fresh: a former state must not be read
    driver.step({0: [5, 6], 1: [2]})
    assert graphs.takes(driver.batch({0: [5], 1: [1]}))
    assert not graphs.takes(driver.batch({0: [5], 1: [1, 2]}))


@pytest.mark.parametrize(
    ("largest", "sizes"), [(1, [1]), (2, [1, 2]), (4, [1, 2, 4]), (8, [1, 2, 4, 8]), (20, [1, 2, 4, 8, 16, 20])]
)
def test_batch_sizes(largest, sizes):
    assert batch_sizes(largest) == sizes


@pytest.mark.parametrize(
    ("name", "environment", "reason"),
    [
        ("llama-tied", GPU, None),
        ("mamba2-tied", GPU, None),
        ("mixtral", GPU, "experts are chosen by the host"),
        ("llama-tied", replace(GPU, packages={}), "attention runs in plain torch"),
    ],
)
def test_why_no_graphs(pairs, name, environment, reason):
    decoder = pairs(name).ours
    choices: tuple[Choice, ...] = choices_for(decoder.config.layers, environment, "bfloat16", 16)
    assert why_no_graphs(decoder, choices) == reason
