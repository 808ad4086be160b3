"""What a decode step costs on this machine's processor: its kernels, and everything else.

    python -m scripts.bench_steps                                          # all, about four minutes on two cores
    python -m scripts.bench_steps --models llama --dtypes float32 --batches 1

Random weights of published sizes, called as the engine calls them, without engine and sampling. A step's time is the
median over steps without any instrument; then every compiled kernel is timed in further steps, and what a step takes
beyond them is the rest. GB/s are the weights' bytes, each read once, over the step's time.
"""

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from models.batch import ForwardBatch
from models.cache import CacheShape, LayerCache, allocate_caches
from models.config import ModelConfig
from models.decoder import Decoder
from models.families import family_of
from models.kernels import attention_numba, linear_numba, norm_numba, recurrent_numba, runs_numba
from models.kernels.bind import bind
from models.kernels.environment import probe

BLOCK_SIZE = 16
CPU = torch.device("cpu")
MODULES = (linear_numba, norm_numba, attention_numba, recurrent_numba, runs_numba)
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 768,
    "hidden_act": "silu",
    "intermediate_size": 2048,
    "max_position_embeddings": 4096,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "num_key_value_heads": 12,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "vocab_size": 32_000,
}
MAMBA2 = {
    "architectures": ["Mamba2ForCausalLM"],
    "hidden_size": 768,
    "num_hidden_layers": 24,
    "num_heads": 24,
    "head_dim": 64,
    "n_groups": 1,
    "chunk_size": 256,
    "hidden_act": "silu",
    "rms_norm": True,
    "state_size": 128,
    "conv_kernel": 4,
    "expand": 2,
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
    "vocab_size": 50_288,
}
MAMBA = {
    "architectures": ["MambaForCausalLM"],
    "hidden_size": 768,
    "intermediate_size": 1536,
    "num_hidden_layers": 24,
    "state_size": 16,
    "conv_kernel": 4,
    "expand": 2,
    "time_step_rank": 48,
    "hidden_act": "silu",
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
    "vocab_size": 50_280,
}
CONFIGS: dict[str, dict[str, Any]] = {"llama": LLAMA, "mamba2": MAMBA2, "mamba": MAMBA}


def random_decoder(name: str, dtype: torch.dtype) -> Decoder:
    """A decoder of that size with small random weights and the compiled kernels."""
    config: ModelConfig = family_of(CONFIGS[name]["architectures"][0]).read_config(CONFIGS[name])
    torch.manual_seed(0)
    decoder = Decoder(config)
    with torch.no_grad():
        for parameter in decoder.parameters():
            if parameter.dim() >= 2:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
    decoder = decoder.to(dtype).eval().requires_grad_(False)
    bind(decoder, probe(CPU), dtype, BLOCK_SIZE)
    return decoder


class Steps:
    """Decode steps of a batch whose sequences all have so many tokens behind them."""

    def __init__(self, decoder: Decoder, batch: int, depth: int, dtype: torch.dtype) -> None:
        blocks = -(-(depth + 1) // BLOCK_SIZE)
        self._decoder, self._batch, self._depth = decoder, batch, depth
        shape = CacheShape(num_blocks=batch * blocks, block_size=BLOCK_SIZE, num_state_slots=batch)
        self._caches: list[LayerCache] = allocate_caches(decoder.config, shape, dtype=dtype, device=CPU)
        self._tables = torch.arange(batch * blocks).view(batch, blocks)

    def run(self) -> None:
        rows, depth = torch.arange(self._batch), self._depth
        batch = ForwardBatch(
            token_ids=rows + 7,
            positions=torch.full((self._batch,), depth),
            query_start=torch.arange(self._batch + 1),
            context_lens=torch.full((self._batch,), depth),
            block_tables=self._tables,
            slot_mapping=self._tables[:, depth // BLOCK_SIZE] * BLOCK_SIZE + depth % BLOCK_SIZE,
            state_slots=rows,
            logit_rows=rows,
        )
        self._decoder(batch, self._caches)


class Clock:
    """Seconds and calls of each kernel."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)

    def timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            start_s = time.perf_counter()
            result = call(*arguments)
            self.seconds[name] += time.perf_counter() - start_s
            self.calls[name] += 1
            return result

        return run


@contextmanager
def kernels_timed(clock: Clock) -> Iterator[None]:
    """Every compiled function that Python calls is timed; those that they call in turn are compiled already."""
    kept = []
    for module in MODULES:
        for name, value in list(vars(module).items()):
            if hasattr(value, "compiled") and value.__module__ == module.__name__:
                kept.append((module, name, value))
                setattr(module, name, clock.timed(name.strip("_"), value))
    yield
    for module, name, value in kept:
        setattr(module, name, value)


def median_s(call: Callable[[], None], seconds: float) -> float:
    times: list[float] = []
    deadline_s = time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < deadline_s:
        start_s = time.perf_counter()
        call()
        times.append(time.perf_counter() - start_s)
    return statistics.median(times)


def measure(name: str, dtype: torch.dtype, batches: list[int], arguments: argparse.Namespace) -> list[list[str]]:
    """A row for each batch size."""
    decoder, rows = random_decoder(name, dtype), []
    read = [p for p_name, p in decoder.named_parameters() if decoder.head is None or p_name != "embedding.weight"]
    weight_bytes = sum(parameter.nbytes for parameter in read)
    for batch in batches:
        steps, clock = Steps(decoder, batch, arguments.depth, dtype), Clock()
        for _ in range(3):
            steps.run()
        step_s = median_s(steps.run, arguments.seconds)
        with kernels_timed(clock):
            count = 10
            for _ in range(count):
                steps.run()
        kernels_s, calls = sum(clock.seconds.values()) / count, sum(clock.calls.values()) // count
        detail = ", ".join(
            f"{kernel} {seconds / count * 1e3:.2f} ({clock.calls[kernel] // count})"
            for kernel, seconds in sorted(clock.seconds.items(), key=lambda item: -item[1])
        )
        rows.append([
            name, str(dtype).removeprefix("torch."), str(batch), f"{step_s * 1e3:.2f}", f"{kernels_s * 1e3:.2f}",
            f"{(step_s - kernels_s) * 1e3:.2f}", str(calls), f"{batch / step_s:,.0f}",
            f"{weight_bytes / step_s / 1e9:.1f}", detail,
        ])  # fmt: skip
    return rows


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description="Time decode steps, and the kernels in them.")
    parser.add_argument("--models", default=",".join(CONFIGS))
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--batches", default="1,8,16")
    parser.add_argument("--depth", type=int, default=64, help="tokens that each sequence has behind it")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each figure")
    arguments = parser.parse_args()
    torch.set_flush_denormal(True)
    table = Table(title=f"decode steps, {arguments.depth} tokens behind, ms; kernels: ms (calls)")
    for column in ("model", "dtype", "batch", "step", "kernels", "rest", "calls", "tokens/s", "GB/s", "by kernel"):
        table.add_column(column, justify="right")
    batches = [int(batch) for batch in arguments.batches.split(",")]
    for name in arguments.models.split(","):
        for dtype in arguments.dtypes.split(","):
            for row in measure(name, getattr(torch, dtype), batches, arguments):
                table.add_row(*row)
    Console(width=180).print(table)


if __name__ == "__main__":
    main()
