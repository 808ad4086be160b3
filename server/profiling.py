"""What a step takes beside weights and cache, measured before the cache is sized: the torch half of the planner."""

import contextlib
from pathlib import Path

import psutil
import torch

from server.cache.planner import CachePlan
from server.config import EngineConfig
from server.request import EngineRequest, SamplingParams
from server.runner import Runner
from server.sequence import ScheduledBatch, ScheduledSequence, Sequence

# Products with weights that a processor may spend on it: a second at most.
CPU_OPERATIONS = 2e10
LEAST_TOKENS = 16
SAMPLED = SamplingParams(1, temperature=1.0, top_p=0.9, top_k=50, min_p=0.01, seed=0)


def measure_step(runner: Runner, config: EngineConfig, block_size: int) -> int:
    """Bytes that the largest step takes beside weights and cache: `step_tokens` tokens, as many sampled as may run.

    It computes one prompt's longest chunk, and shares the rest among the others, over a cache of one state and of the
    longest chunk's blocks. A processor computes fewer tokens where a step would take long, and what they took grows
    with their number.

    The runner's cache is afterwards this small one.
    """
    num_tokens = config.step_tokens
    if runner.device.type == "cpu":
        # Experts among them that a token does not use: too few tokens then, not too many.
        size = sum(parameter.numel() for parameter in runner.decoder.parameters())
        num_tokens = min(num_tokens, max(LEAST_TOKENS, int(CPU_OPERATIONS / (2 * size))))
    batch = largest_step(num_tokens, longest=config.prefill_chunk, most=config.max_running, block_size=block_size)
    needs = runner.cache_needs
    num_blocks = len(batch.parts[0].sequence.block_table) if needs.bytes_per_token else 0
    if not num_blocks:
        for part in batch.parts:
            part.sequence.block_table.clear()
    runner.allocate(CachePlan(needs.bytes_per_token, needs.bytes_per_sequence, block_size, num_blocks, 1))
    # Once before it counts: what is compiled and loaded stays, and is no part of a step.
    runner.run(ScheduledBatch((_part(2, batch.parts[0].sequence.block_table),)))
    taken = _on_gpu(runner, batch) if runner.device.type == "cuda" else _on_cpu(runner, batch)
    return taken * config.step_tokens // batch.num_tokens


def largest_step(num_tokens: int, *, longest: int, most: int, block_size: int) -> ScheduledBatch:
    """A prompt of at most `longest` tokens and at most `most - 1` others, all of which sample; all share their rows."""
    first = max(1, min(longest, num_tokens - 2 * (most - 1)))
    sizes = [first]
    rest, others = num_tokens - first, most - 1
    while rest >= 2 and others:
        sizes.append(min(longest, max(2, rest // others)))
        rest, others = rest - sizes[-1], others - 1
    table = list(range(-(-max(sizes) // block_size)))
    return ScheduledBatch(tuple(_part(size, table) for size in sizes))


def _part(num_tokens: int, table: list[int]) -> ScheduledSequence:
    request = EngineRequest("profile", (0,) * num_tokens, SAMPLED)
    sequence = Sequence(request, 0, 0.0, [0] * num_tokens, block_table=list(table), state_slot=0)
    return ScheduledSequence(sequence, num_tokens, True)


def _on_gpu(runner: Runner, batch: ScheduledBatch) -> int:
    torch.cuda.synchronize(runner.device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(runner.device)
    before = torch.cuda.memory_allocated(runner.device)
    runner.run(batch)
    torch.cuda.synchronize(runner.device)
    peak = torch.cuda.max_memory_allocated(runner.device)
    torch.cuda.empty_cache()
    return peak - before


def _on_cpu(runner: Runner, batch: ScheduledBatch) -> int:
    """How much higher the process's memory stood than before, where the system says; else nothing."""
    with contextlib.suppress(OSError):
        # The highest that it stood so far is forgotten.
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before, highest = psutil.Process().memory_info().rss, _highest()
    runner.run(batch)
    return max(0, _highest() - max(before, highest))


def _highest() -> int:
    """The most bytes that this process has held in memory; 0 where the system does not say."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0
