"""Speed and memory of the models on this machine's CPU, side by side with transformers in one run.

    python -m scripts.bench_models                      # all, about 20 minutes on two cores
    python -m scripts.bench_models --only load --gb 2   # what loading takes in memory
    python -m scripts.bench_models --only mamba2 --batches 1 --dtypes float32

Random weights of about 100M parameters, whole prompts of random tokens, greedy, no end of sequence. Ours is the engine
with its scheduler and without its prefix cache; theirs is `generate`. Prefill is the time to one token; decode is what
further tokens take. Numbers too small for normal floats are taken for zero in both, as our server does and transformers
by itself does not: without it, the fading states of a random Mamba make both several times slower.
"""

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM, Mamba2Config, Mamba2ForCausalLM, PreTrainedModel
from transformers.utils import logging

from scripts.bench_load import measure_load
from server.config import Dtype, EngineConfig
from server.engine import Engine
from server.engine_process import build
from server.request import EngineRequest, SamplingParams

PARTS = ("load", "llama", "mamba2")
DTYPES: tuple[Dtype, ...] = ("float32", "bfloat16")
VOCAB_SIZE = 32_000


def llama() -> PreTrainedModel:
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=4,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def mamba2() -> PreTrainedModel:
    config = Mamba2Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=768,
        num_heads=24,
        head_dim=64,
        n_groups=1,
        num_hidden_layers=20,
        tie_word_embeddings=True,
    )
    return Mamba2ForCausalLM(config)


BUILDERS: dict[str, Callable[[], PreTrainedModel]] = {"llama": llama, "mamba2": mamba2}


def requests(prompts: list[list[int]], tokens: int) -> list[EngineRequest]:
    params = SamplingParams(tokens, temperature=0.0, ignore_eos=True)
    return [EngineRequest(f"r{number}", tuple(prompt), params) for number, prompt in enumerate(prompts)]


def our_seconds(engine: Engine, prompts: list[list[int]], tokens: int) -> float:
    for request in requests(prompts, tokens):
        engine.add_request(request)
    started_s = time.perf_counter()
    while engine.has_work:
        engine.step()
    return time.perf_counter() - started_s


def their_seconds(model: PreTrainedModel, prompts: list[list[int]], tokens: int) -> float:
    ids = torch.tensor(prompts)
    options: dict[str, Any] = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
    started_s = time.perf_counter()
    with torch.inference_mode():
        model.generate(ids, attention_mask=torch.ones_like(ids), eos_token_id=None, pad_token_id=0, **options)  # type: ignore[operator]
    return time.perf_counter() - started_s


def time_both(part: str, dtype: Dtype, batch: int, arguments: argparse.Namespace) -> tuple[str, ...]:
    """A row of the table: tokens per second of both, and how many times faster ours is."""
    torch.manual_seed(0)
    model = BUILDERS[part]().eval()
    rng = random.Random(0)
    prompts = [[rng.randrange(VOCAB_SIZE) for _ in range(arguments.prompt)] for _ in range(batch)]
    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(directory)
        # Every run computes the same prompts anew, and nobody waits for a first token but all for the last.
        config = EngineConfig(device="cpu", dtype=dtype, max_running=batch, prefix_cache=False, max_gap_s=60.0)
        engine, _ = build(part, Path(directory), config)
    model = model.to(getattr(torch, dtype))
    runs: dict[str, Callable[[int], float]] = {
        "ours": lambda tokens: our_seconds(engine, prompts, tokens),
        "theirs": lambda tokens: their_seconds(model, prompts, tokens),
    }
    seconds: dict[tuple[str, int], list[float]] = {}
    for run in runs.values():
        run(2)  # the first run pays for what is only set up once
    for _ in range(arguments.repeats):
        for who, run in runs.items():
            for tokens in (1, 1 + arguments.output):
                seconds.setdefault((who, tokens), []).append(run(tokens))
    prefill = {who: statistics.median(seconds[who, 1]) for who in runs}
    decode = {who: statistics.median(seconds[who, 1 + arguments.output]) - prefill[who] for who in runs}
    row = [part, dtype, str(batch)]
    for times, tokens in ((prefill, batch * arguments.prompt), (decode, batch * arguments.output)):
        row += [f"{tokens / times[who]:,.0f}" for who in runs] + [f"{times['theirs'] / times['ours']:.2f}"]
    return tuple(row)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the models beside transformers.")
    parser.add_argument("--only", default=",".join(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--gb", type=float, default=2.0, help="weights of the part `load`, in 10^9 bytes")
    parser.add_argument("--prompt", type=int, default=1024)
    parser.add_argument("--output", type=int, default=128)
    parser.add_argument("--batches", default="1,16")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    parts = arguments.only.split(",")
    if wrong := set(parts) - set(PARTS):
        parser.error(f"--only: {', '.join(sorted(wrong))} is none of {', '.join(PARTS)}")
    chosen_dtypes = [dtype for dtype in DTYPES if dtype in arguments.dtypes.split(",")]
    torch.set_flush_denormal(True)
    logging.set_verbosity_error()
    console = Console(width=140)
    if "load" in parts:
        console.print(measure_load(arguments.gb))
    table = Table(title=f"prompt {arguments.prompt}, output {arguments.output}, tokens/s, ratio = ours / transformers'")
    for column in ("model", "dtype", "batch", "prefill", "theirs", "ratio", "decode", "theirs", "ratio"):
        table.add_column(column, justify="right")
    for part in (part for part in parts if part in BUILDERS):
        for dtype in chosen_dtypes:
            for batch in arguments.batches.split(","):
                row = time_both(part, dtype, int(batch), arguments)
                console.print(*row)
                table.add_row(*row)
    console.print(table)


if __name__ == "__main__":
    main()
