"""How long the embedded models take on a device: prefill and decode of the engine alone, in the served dtype.

python -m scripts.embedded_speed --device cuda
"""

import argparse
import random
import statistics
import time

import torch

from models.embedded import PREFIX, embedded_directory
from server.config import EngineConfig
from server.engine import Engine
from server.engine_process import build
from server.request import EngineRequest, SamplingParams

MODELS = ("transformer", "mamba")
DECODED = 64


def request(number: int, length: int, vocab_size: int, *, tokens: int) -> EngineRequest:
    rng = random.Random(number)
    ids = tuple(rng.randrange(5, vocab_size) for _ in range(length))
    return EngineRequest(f"r{number}", ids, SamplingParams(tokens, temperature=0.0, ignore_eos=True))


def seconds_of(engine: Engine, requests: list[EngineRequest]) -> float:
    for one in requests:
        engine.add_request(one)
    started_s = time.perf_counter()
    while engine.has_work:
        engine.step()
    return time.perf_counter() - started_s


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the embedded models in the engine alone.")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--context", type=int, default=2048, help="tokens of each prompt")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    config = EngineConfig(device=arguments.device, max_running=arguments.batch)
    for name in MODELS:
        engine, ready = build(name, embedded_directory(PREFIX + name), config)
        size, length, vocab_size = arguments.batch, arguments.context, ready.info.vocab_size

        def batch(tokens: int, size: int = size, length: int = length, vocab: int = vocab_size) -> list[EngineRequest]:
            return [request(number, length, vocab, tokens=tokens) for number in range(size)]

        seconds_of(engine, batch(2))  # the first run pays for what is only set up once
        prefill = statistics.median(seconds_of(engine, batch(1)) for _ in range(arguments.repeats))
        whole = statistics.median(seconds_of(engine, batch(1 + DECODED)) for _ in range(arguments.repeats))
        decode = max(whole - prefill, 1e-9)
        memory = f", {torch.cuda.max_memory_allocated() / 2**20:.0f} MiB at most" if arguments.device == "cuda" else ""
        print(
            f"{name} {ready.info.dtype}: prefill {size * length / prefill:,.0f} tokens/s, "
            f"decode {size * DECODED / decode:,.0f} tokens/s ({size} sequences of {length} tokens){memory}",
            flush=True,
        )


if __name__ == "__main__":
    main()
