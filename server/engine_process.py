"""The entry of an engine process: load, plan, then serve messages until told to stop or orphaned.

python -m server.engine_start --model NAME --directory DIR --config JSON --inbox FD --outbox FD
"""

import argparse
import contextlib
import logging
import math
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import msgspec
import psutil
import torch

from models.digest import checkpoint_digest
from models.errors import ModelError
from models.kernels.choose import Choice
from models.load import read_eos_token_ids
from server.cache.host import HostStore
from server.cache.lower import LowerTiers
from server.cache.pieces import fingerprint
from server.cache.planner import CachePlan, CacheTooSmallError, default_snapshot_every, describe, plan_cache
from server.cache.tiers import DiskStore
from server.config import ConfigError, EngineConfig
from server.engine import Engine
from server.holding import Holding
from server.mailbox import Mailbox, OrphanedError
from server.messages import (
    Abort,
    Add,
    AskCache,
    AskStats,
    Cache,
    ClearCache,
    Cleared,
    Failure,
    Outputs,
    Question,
    Ready,
    Stats,
    Stop,
)
from server.profiling import measure_step
from server.request import EngineInfo, EngineRequest, SamplingParams
from server.runner import DTYPES, Runner, choose_device, choose_dtype
from server.scheduler import Scheduler, SchedulerLimits
from server.sequence import Sequence as RunningSequence

HOST_BYTES_PER_TOKEN = 128  # of a prompt on its way through the processes; twice of what a million were seen to take
DEFAULT_CPU_CACHE = 2 << 30
GIB = 1 << 30
MEMORY_FRACTION = 0.9  # of a GPU, for weights, cache and steps
LINGER_MS = 4000
IDLE_POLL_MS = 500
STATS_EVERY_S = 1.0
WARM_UP_TOKENS = 4

log = logging.getLogger("fathom.engine")


def available_bytes(device: torch.device, config: EngineConfig, step_bytes: int) -> int:
    """What the cache may take when the user does not say, with the weights loaded.

    Of a GPU what they and a step leave of --memory-fraction, of the host a quarter of what they leave. Of both it is
    this engine's share: others look at the same free memory at the same time.

    Args:
        step_bytes: what the largest step takes beside the weights and the cache.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        kept = total * (1 - (config.memory_fraction or MEMORY_FRACTION))
        return max(0, int((free - kept) * config.memory_share) - step_bytes)
    left = max(0, psutil.virtual_memory().available - step_bytes)
    return min(DEFAULT_CPU_CACHE, int(left / 4 * config.memory_share))


def make_plan(runner: Runner, config: EngineConfig) -> tuple[CachePlan, str]:
    """The plan, and a line that says what a step takes where that was measured."""
    block_size = config.block_size or runner.preferred_block_size()
    cache_bytes, measured = config.cache_bytes, ""
    if cache_bytes is None:
        step_bytes = measure_step(runner, config, block_size)
        cache_bytes = available_bytes(runner.device, config, step_bytes)
        measured = f"a step of {config.step_tokens:,} tokens: {step_bytes:,} bytes beside weights and cache\n"
    plan = plan_cache(
        bytes_per_token=runner.cache_needs.bytes_per_token,
        bytes_per_sequence=runner.cache_needs.bytes_per_sequence,
        block_size=block_size,
        cache_bytes=cache_bytes,
        max_running=config.max_running,
        row_bytes=runner.row_bytes(block_size),
    )
    return plan, measured


def snapshot_every(runner: Runner, config: EngineConfig) -> int:
    return config.snapshot_every or default_snapshot_every(runner.cache_needs.bytes_per_sequence)


def max_context(runner: Runner, config: EngineConfig, plan: CachePlan | None) -> int:
    """The longest context: the least of what the user, the model and the cache allow.

    Raises:
        ConfigError: the user asks for more than the model or the cache can hold.
    """
    positions = runner.decoder.config.max_positions
    bounds = [bound for bound in (positions, plan.max_tokens if plan else None) if bound is not None]
    most = min(bounds, default=None)
    if config.max_context is None:
        # A state takes the same however long the context: what bounds it is the host, which holds the token ids. Of all
        # memory, as what is free at the moment is another number at each start.
        host = psutil.virtual_memory().total // 16 // HOST_BYTES_PER_TOKEN
        return max(1, host) if most is None else most
    if positions is not None and config.max_context > positions:
        raise ConfigError(
            f"--max-context {config.max_context:,} is more than the model's {positions:,} positions: "
            f"give at most {positions:,}"
        )
    if plan is not None and plan.max_tokens is not None and config.max_context > plan.max_tokens:
        raise ConfigError(too_long(plan, config.max_context))
    return config.max_context


def too_long(plan: CachePlan, num_tokens: int) -> str:
    """Why a sequence of so many tokens does not fit, with the arithmetic."""
    needed, state, blocks = plan.bytes_for(num_tokens), plan.bytes_for(0), plan.num_blocks_for(num_tokens)
    in_all = f", with {state:,} of state {needed:,}" if state else ""
    gib = math.ceil(needed / GIB * 1000) / 1000
    return (
        f"--max-context {num_tokens:,} does not fit into the cache: {blocks:,} blocks of {plan.block_size} tokens are "
        f"{needed - state:,} bytes{in_all}, and it has {plan.total_bytes:,}, enough for {plan.max_tokens or 0:,} "
        f"tokens: give at most that, or --cache-gib {gib:g}"
    )


def warm_up(runner: Runner, plan: CachePlan, limits: SchedulerLimits) -> None:
    """Prefill and decode once, so that no request waits for kernels to be compiled or to be loaded."""
    params = SamplingParams(WARM_UP_TOKENS // 2, temperature=0.0, ignore_eos=True)
    request = EngineRequest("warm-up", (0,) * (WARM_UP_TOKENS // 2), params)
    if plan.max_tokens is not None and plan.max_tokens < WARM_UP_TOKENS:
        return
    scheduler = Scheduler(plan, limits)  # all that it hands out it takes back
    scheduler.add(RunningSequence(request, seed=0, added_s=0.0, token_ids=list(request.token_ids)))
    while scheduler.has_work:
        batch = scheduler.schedule(0.0)
        scheduler.postprocess(batch, runner.run(batch).tokens, frozenset(), 0.0)


def capture(runner: Runner, config: EngineConfig, limits: SchedulerLimits, plan: CachePlan) -> str:
    """Have decode steps captured, where they can be; returns what came of it."""
    on_gpu = runner.device.type == "cuda"
    if not config.cuda_graphs:
        return f"not {'captured' if on_gpu else 'recorded'}: --no-cuda-graphs"
    max_context = limits.max_context if plan.bytes_per_token else 1
    if reason := runner.capture(max_running=limits.max_running, max_context=max_context):
        return f"not {'captured' if on_gpu else 'recorded'}: {reason}"
    return "captured as CUDA graphs" if on_gpu else "recorded and replayed"


def build(model: str, directory: Path, config: EngineConfig) -> tuple[Engine, Ready]:
    """Load the model, plan the cache, and describe what is served."""
    device = choose_device(config)
    if config.threads:
        torch.set_num_threads(config.threads)
    runner = Runner(
        directory,
        dtype=choose_dtype(config, device),
        device=device,
        state_dtype=DTYPES[config.state_dtype],
        quantization=config.quantization,
    )
    if device.type != "cuda" and config.memory_fraction is not None:
        raise ConfigError(
            "--memory-fraction is of a GPU's memory; on a processor --cache-gib says what the cache takes"
        )
    plan, measured = make_plan(runner, config)
    choices = runner.allocate(plan)
    limit = max_context(runner, config, plan)
    eos_token_ids = read_eos_token_ids(directory, runner.decoder.config)
    limits = SchedulerLimits(
        max_running=min(config.max_running, plan.num_state_slots),
        step_tokens=config.step_tokens,
        prefill_chunk=config.prefill_chunk,
        max_context=limit,
        snapshot_every=snapshot_every(runner, config),
        prefix_cache=config.prefix_cache,
        policy=config.policy,
        max_gap_s=config.max_gap_s,
    )
    warm_up(runner, plan, limits)
    steps = capture(runner, config, limits, plan)
    populate(runner, config)
    info = EngineInfo(
        model=model,
        kind=runner.decoder.config.kind,
        max_context_tokens=limit,
        vocab_size=runner.decoder.config.vocab_size,
        num_blocks=plan.num_blocks,
        block_size=plan.block_size,
        num_state_slots=plan.num_state_slots,
        bytes_per_token=plan.bytes_per_token,
        bytes_per_sequence=plan.bytes_per_sequence,
        eos_token_ids=eos_token_ids,
        device=str(device),
        dtype=str(runner.dtype).removeprefix("torch."),
        state_dtype=config.state_dtype,
    )
    planned = describe(plan, limit, limits.max_running, config.state_dtype)
    about = f"{measured}{planned}\nkernels: {describe_choices(choices)}\ndecode steps: {steps}"
    overlaps = device.type == "cuda" if config.overlap is None else config.overlap
    tiers = open_tiers(runner, plan, directory, config)
    engine = Engine(runner, plan, limits, eos_token_ids, tiers, overlaps=overlaps)
    return engine, Ready(info, about)


def open_tiers(runner: Runner, plan: CachePlan, directory: Path, config: EngineConfig) -> LowerTiers | None:
    """What is below the device's cache, if anything is wanted there."""
    disk = host = None
    if config.cache_dir is not None:
        # What another device computes may differ in its last bits, and with it the answer.
        weights = checkpoint_digest(directory), str(runner.dtype), config.quantization
        name = fingerprint(*weights, runner.device.type, plan.block_size, runner.cache_layout)
        disk = DiskStore(Path(config.cache_dir), name, max_bytes=config.cache_dir_bytes)
    num_bytes = config.host_cache_bytes
    if num_bytes is None:
        num_bytes = default_host_bytes(runner.device, config)
    if num_bytes:
        host = HostStore(num_bytes, is_page_locked=runner.device.type == "cuda")
        log.info("--host-cache-gib: at most %d bytes for what the device has no room for", num_bytes)
    if disk is None and host is None:
        return None
    return LowerTiers(plan, runner.rows, snapshot_every=snapshot_every(runner, config), disk=disk, host=host)


def default_host_bytes(device: torch.device, config: EngineConfig) -> int:
    """Beside a GPU a quarter of the host's memory that is free; on a processor the cache is there already."""
    if device.type != "cuda" or not config.prefix_cache:
        return 0
    return int(psutil.virtual_memory().available / 4 * config.memory_share)


def populate(runner: Runner, config: EngineConfig) -> None:
    begin_s = time.monotonic()
    there = runner.populate(whole=config.populate_cache)
    if config.populate_cache and there:
        log.info("--populate-cache: all memory of the cache is there, after %.1f s", time.monotonic() - begin_s)
    elif config.populate_cache:
        log.warning("--populate-cache: this system does not give memory before it is used")


def describe_choices(choices: Sequence[Choice]) -> str:
    """Which backend computes what; `fathom doctor` says why."""
    backends: dict[str, list[str]] = {}
    for choice in choices:
        operations = backends.setdefault(choice.backend, [])
        if choice.operation not in operations:
            operations.append(choice.operation)
    return "; ".join(f"{backend} for {', '.join(operations)}" for backend, operations in backends.items())


def handle(engine: Engine, mailbox: Mailbox, holding: Holding, message: Add | Abort | Question) -> None:
    match message:
        case Add(request):
            holding.add(request)
            engine.add_request(request)
        case Abort(request_id):
            last = engine.abort(request_id)
            if last is not None:
                mailbox.send(Outputs(holding.pass_on([(request_id, last)])[0]))
        case AskStats(number):
            mailbox.send(Stats(number, engine.stats()))
        case AskCache(number, limit):
            mailbox.send(Cache(number, engine.cache_content(limit)))
        case ClearCache(number):
            mailbox.send(Cleared(number, engine.clear_cache()))


def serve(engine: Engine, mailbox: Mailbox, *, log_requests: bool) -> None:
    """Answer messages and step the engine until told to stop.

    Raises:
        OrphanedError: the process that started this one is gone.
    """
    reported, holding = 0.0, Holding()
    while True:
        for message in mailbox.receive(0 if engine.has_work else IDLE_POLL_MS):
            if isinstance(message, Stop):
                return
            if log_requests and isinstance(message, Add):
                log.info("request %s: %d tokens", message.request.request_id, len(message.request.token_ids))
            handle(engine, mailbox, holding, message)
        if engine.has_work:
            outputs, begun = holding.pass_on(engine.step())
            begun += engine.begun
            if outputs or begun:
                mailbox.send(Outputs(outputs, begun))
        if time.monotonic() - reported > STATS_EVERY_S:
            reported = time.monotonic()
            mailbox.send(Stats(0, engine.stats()))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="One engine process; started by the server.")
    for name in ("model", "directory", "config"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("inbox", "outbox"):
        parser.add_argument(f"--{name}", type=int, required=True, help="A socket's file descriptor.")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    logging.basicConfig(level=logging.INFO, format=f"%(asctime)s [{arguments.model}] %(message)s")
    mailbox = Mailbox(arguments.inbox, arguments.outbox)
    config = msgspec.json.decode(arguments.config, type=EngineConfig)
    # A recurrent state that fades ends in numbers so small that a processor takes a hundred times longer over each.
    # Before the first parallel work: threads take it over from the one that begins them.
    torch.set_flush_denormal(True)
    try:
        engine, ready = build(arguments.model, Path(arguments.directory), config)
        mailbox.send(ready)
        with contextlib.closing(engine):
            serve(engine, mailbox, log_requests=config.log_requests)
    except (ModelError, ConfigError, CacheTooSmallError) as error:
        mailbox.send(Failure(str(error), final=True))
        return 2
    except OrphanedError:
        log.warning("the process that started this one is gone")
        return 3
    except Exception as error:
        # Our bug: the supervisor fails every open request and starts a fresh process.
        traceback.print_exc()
        mailbox.send(Failure(f"{type(error).__name__}: {error}", final=False))
        return 1
    finally:
        mailbox.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
