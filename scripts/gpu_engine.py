"""Whether options that must not change an answer change none on a device, and what 16 bits of state change.

    python -m scripts.gpu_engine --out runs/engine                                  # on a GPU
    python -m scripts.gpu_engine --out runs/engine --size toy --device cpu          # a minute, on any machine
    python -m scripts.gpu_engine --out runs/engine --only arena,states

overlap: steps decided while one is computed, against one after the other, and that against float32 on the processor.
arena: keys, values and states of a hybrid in one buffer, against each in its own, by every backend of attention.
states: recurrences whose states are kept in 16 bits: as far from float32 ones as on the processor. host: what comes
back from the host's memory, against what was computed. Models are small and random. Every check is in engine.jsonl as
soon as it is done; the exit code is 1 where one failed.
"""

import argparse
import gc
import json
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import torch
from rich.console import Console

from scripts.gpu_bench import failures
from scripts.gpu_caches import arena_checks, state_checks
from scripts.gpu_checks import CHECKS_FILE, Check, Place, checks_page, read_checks
from scripts.gpu_models import SIZES
from scripts.random_models import KINDS, write_random_model
from server.cache.costs import Costs
from server.cache.host import HostStore
from server.cache.lower import LowerTiers
from server.config import Dtype, EngineConfig
from server.engine import Engine
from server.engine_process import build, make_plan
from server.request import EngineRequest, SamplingParams
from server.runner import DTYPES, Runner
from server.scheduler import SchedulerLimits

CPU = torch.device("cpu")
NUM_REQUESTS = 12
HOST_PROMPTS = 12
HOST_TOKENS = 700  # of each
HOST_CACHE = 12 << 20  # bytes of the device's cache, which has room for less than half of the prompts


def options(place: Place, dtype: Dtype, *, overlap: bool) -> EngineConfig:
    return EngineConfig(
        dtype=dtype,
        device="cuda" if place.device.type == "cuda" else "cpu",
        cache_bytes=128 << 20,
        host_cache_bytes=0,
        max_context=2048,
        max_running=8,
        step_tokens=256,
        prefill_chunk=128,
        max_gap_s=60.0,  # chunks do not hang on how fast the device is
        overlap=overlap,
    )


def requests(vocab_size: int) -> list[EngineRequest]:
    """Prompts and answers of many lengths, some that begin alike; every third is drawn, with a seed."""
    rng = random.Random(5)
    shared = [rng.randrange(vocab_size) for _ in range(150)]
    made = []
    for number in range(NUM_REQUESTS):
        own = [rng.randrange(vocab_size) for _ in range(rng.randrange(1, 300))]
        temperature = 0.8 if number % 3 == 2 else 0.0
        params = SamplingParams(1 + 7 * number % 40, temperature=temperature, seed=number, ignore_eos=True)
        made.append(EngineRequest(f"r{number}", tuple(shared * (number % 2) + own), params))
    return made


def answers(directory: Path, config: EngineConfig) -> tuple[dict[str, list[int]], str]:
    """Tokens of each request, half of which come while the others are computed; and what the engine runs on."""
    engine, ready = build("checked", directory, config)
    found: dict[str, list[int]] = {}

    def step() -> None:
        for request_id, output in engine.step():
            found.setdefault(request_id, []).extend(output.token_ids)

    asked = requests(ready.info.vocab_size)
    for request in asked[::2]:
        engine.add_request(request)
    for _ in range(5):
        step()
    for request in asked[1::2]:
        engine.add_request(request)
    while engine.has_work:
        step()
    engine.close()
    return found, ready.plan.splitlines()[-2].removeprefix("kernels: ")


def same(mine: dict[str, list[int]], others: dict[str, list[int]], *, greedy: bool = False) -> tuple[int, int]:
    """How many requests have the same tokens, of how many; greedy: of those alone that draw nothing."""
    names = [f"r{number}" for number in range(NUM_REQUESTS) if not greedy or number % 3 != 2]
    return sum(mine[name] == others[name] for name in names), len(names)


def overlap_checks(place: Place) -> Iterator[Check]:
    for kind, directory in place.checkpoints.items():
        for dtype in place.dtypes:
            apart, backends = answers(directory, options(place, dtype, overlap=False))
            free()
            over, _ = answers(directory, options(place, dtype, overlap=True))
            free()
            equal, count = same(over, apart)
            is_exact = dtype == "float32"
            passed = equal == count if is_exact else None
            told = f"{equal} of {count} answers the same"
            yield Check(kind, f"--overlap, {dtype}", "--no-overlap", told, passed, backends)
            if is_exact and place.device.type != "cpu":
                processor = replace(place, device=CPU)
                exact, _ = answers(directory, options(processor, dtype, overlap=False))
                equal, count = same(apart, exact, greedy=True)
                told = f"{equal} of {count} answers the same"
                # Scans of libraries may round float32 to fewer bits, which may once make another token likeliest.
                passed = equal == count if kind == "transformer" else None
                yield Check(kind, dtype, "the processor", told, passed, backends)


def with_host(directory: Path, config: EngineConfig, device: torch.device) -> Engine:
    """An engine that takes back whatever the host has, however soon it could be computed."""
    runner = Runner(directory, dtype=DTYPES[config.dtype], device=device)
    plan, _ = make_plan(runner, config)
    runner.allocate(plan)
    store = HostStore(1 << 30, is_page_locked=device.type == "cuda")
    tiers = LowerTiers(plan, runner.rows, snapshot_every=256, host=store, costs=Costs(host_rate=1e18))
    limits = SchedulerLimits(
        max_running=min(config.max_running, plan.num_state_slots),
        step_tokens=config.step_tokens,
        prefill_chunk=config.prefill_chunk,
        max_context=1024,
        snapshot_every=256,
    )
    return Engine(runner, plan, limits, (), tiers, overlaps=bool(config.overlap))


def ask(engine: Engine, name: str, prompt: tuple[int, ...]) -> tuple[list[int], int]:
    """Tokens of an answer, and how many of the prompt's were found."""
    engine.add_request(EngineRequest(name, prompt, SamplingParams(8, temperature=0.0, ignore_eos=True)))
    tokens, cached = list[int](), 0
    while engine.has_work:
        for _, output in engine.step():
            tokens += output.token_ids
            cached = output.usage.cached_tokens if output.usage else cached
    return tokens, cached


def host_checks(place: Place) -> Iterator[Check]:
    for kind, directory in place.checkpoints.items():
        for overlap in (False, True) if place.size == "full" else (True,):
            config = replace(options(place, "float32", overlap=overlap), cache_bytes=HOST_CACHE)
            engine, rng = with_host(directory, config, place.device), random.Random(6)
            prompts = [tuple(rng.randrange(512) for _ in range(HOST_TOKENS)) for _ in range(HOST_PROMPTS)]
            first = [ask(engine, f"a{number}", prompt)[0] for number, prompt in enumerate(prompts)]
            again = [ask(engine, f"b{number}", prompt) for number, prompt in enumerate(prompts)]
            stats = engine.stats()
            engine.close()
            equal = sum(tokens == wanted for (tokens, _), wanted in zip(again, first, strict=True))
            told = (
                f"{equal} of {len(prompts)} answers the same, {stats.host_hits} with what came back: "
                f"{stats.host_bytes_read >> 20} MiB in {1e3 * stats.host_read_s:.1f} ms"
            )
            passed = equal == len(prompts) and stats.host_hits > 0
            what = f"the host's memory{', --overlap' if overlap else ''}"
            yield Check(kind, what, "what was computed", told, passed)
            del engine
            free()


CHECKS: dict[str, Callable[[Place], Iterator[Check]]] = {
    "overlap": overlap_checks,
    "arena": arena_checks,
    "states": state_checks,
    "host": host_checks,
}


def free() -> None:
    """Give back what an engine held, before the next takes as much."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def checked(name: str, place: Place) -> Iterator[Check]:
    """A part's checks; where it cannot go on, a failed one that says why."""
    try:
        yield from CHECKS[name](place)
    except failures() as error:
        first_line = (str(error) or repr(error)).strip().splitlines()[0]
        yield Check("", name, "", f"failed: {first_line[:200]}", passed=False)


def main() -> int:
    parser = argparse.ArgumentParser(description="Check what the engine's options change on a device.")
    parser.add_argument("--out", type=Path, required=True, help=f"directory for {CHECKS_FILE}")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--size", choices=tuple(SIZES), default="full", help="toy: what only shows that all runs")
    parser.add_argument("--only", default=",".join(CHECKS), help=f"some of {','.join(CHECKS)}")
    arguments = parser.parse_args()
    parts = arguments.only.split(",")
    if wrong := set(parts) - set(CHECKS):
        parser.error(f"--only: {', '.join(sorted(wrong))} is none of {', '.join(CHECKS)}")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device here")
    arguments.out.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as directory,
        (arguments.out / CHECKS_FILE).open("a", encoding="utf-8") as file,
    ):
        models = {kind: write_random_model(kind, Path(directory) / kind) for kind in KINDS}
        place = Place(torch.device(arguments.device), models, arguments.size)
        for part in parts:
            for check in checked(part, place):
                file.write(json.dumps(asdict(check)) + "\n")
                file.flush()
    checks = read_checks(arguments.out)
    Console(width=160).print(checks_page(checks).rich())
    failed = sum(check.passed is False for check in checks)
    print(f"{len(checks)} checks, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
