"""`fathom serve`: the command line of the server."""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
import uvicorn
import uvloop

from server.api.app import create_app
from server.checkpoints import CheckpointOptions
from server.config import ConfigError, Device, Dtype, EngineConfig, Policy, Quantization, StateDtype
from server.engine_child import child_environment
from server.hosting import HostedModel, host_models
from server.process import EngineError

MIB = 1 << 20
GIB = 1 << 30
START_GRACE_S = 5.0  # a life that loads for too long is ended a little late, and then says why
EXIT_CONFIG = 2
EXIT_ENGINE = 1


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Options of the HTTP side."""

    host: str
    port: int
    api_keys: tuple[str, ...]
    max_body_bytes: int
    start_timeout_s: float
    drain_s: int
    access_log: bool

    def __post_init__(self) -> None:
        if any(not key.strip() for key in self.api_keys):
            raise ConfigError("--api-key must not be empty")


Models = Annotated[
    list[str],
    typer.Argument(
        metavar="MODEL...",
        help="embedded:transformer, embedded:mamba, DIRECTORY, ORG/NAME or ORG/NAME@REVISION of the Hugging Face Hub; "
        "NAME= before one of the latter serves it under that name.",
    ),
]
Revision = Annotated[
    str | None, typer.Option(help="Branch, tag or commit of the models from the Hub that name none. Default: main.")
]
GenerationConfigOption = Annotated[
    Literal["auto", "none"],
    typer.Option(help="auto: sampling defaults by the model's generation_config.json. none: the API's own."),
]
Host = Annotated[str, typer.Option(help="Address to bind.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="Port to bind; 0 takes a free one.")]
ApiKeys = Annotated[
    list[str] | None,
    typer.Option(
        "--api-key",
        envvar="FATHOM_API_KEY",
        help="Require this bearer key. Given several times, each is a tenant of its own (in the variable: by spaces).",
    ),
]
DtypeOption = Annotated[Dtype, typer.Option(help="auto: bfloat16 on a GPU, float32 on a CPU.")]
StateDtypeOption = Annotated[
    StateDtype, typer.Option(help="Recurrent states between steps. Half the bytes cost quality: docs/cache.md.")
]
QuantizationOption = Annotated[
    Quantization, typer.Option(help="int8, on a CPU: weights in 8 bits, a scale for each output. docs/kernels.md.")
]
DeviceOption = Annotated[Device, typer.Option(help="auto: a GPU where there is one.")]
CacheGib = Annotated[float | None, typer.Option(help="Each model's cache, in GiB. Default: a share of what is free.")]
MemoryFraction = Annotated[
    float | None, typer.Option(help="On a GPU: of its memory, for weights, caches and steps. Default: 0.9.")
]
PopulateCache = Annotated[
    bool,
    typer.Option(help="On a CPU, take all of the cache's memory at the start and not as it is used."),
]
HostCacheGib = Annotated[
    float | None,
    typer.Option(
        help="Host memory for what each model's device has no room for, in GiB. Default: a share beside a GPU, else 0."
    ),
]
BlockSize = Annotated[int | None, typer.Option(help="Tokens per KV block. Default: what the kernels like best.")]
MaxContext = Annotated[int | None, typer.Option(help="Longest prompt and completion together. Default: what fits.")]
MaxRunning = Annotated[int, typer.Option(help="Sequences computed at once, per model.")]
MaxQueue = Annotated[int, typer.Option(help="Requests that may wait beyond those; more get 429.")]
MaxQueueTokens = Annotated[
    int | None, typer.Option(help="Prompt tokens that may wait in all; more get 429. Default: no bound.")
]
StepTokens = Annotated[int, typer.Option(help="Most tokens that one step computes.")]
PrefillChunk = Annotated[int, typer.Option(help="Most tokens that one prompt takes of a step.")]
PrefixCache = Annotated[bool, typer.Option(help="Keep what was computed for prompts that begin alike.")]
SnapshotEvery = Annotated[
    int | None, typer.Option(help="Tokens between the states that a long prompt leaves. Default: by their bytes.")
]
CacheDir = Annotated[
    Path | None, typer.Option(help="Keep the prefix cache here, so that it is there after a restart. Default: off.")
]
CacheDirGib = Annotated[float, typer.Option(help="Most that each model's part of --cache-dir takes, in GiB.")]
PolicyOption = Annotated[Policy, typer.Option(help="Whose turn it is. fair: who had fewest tokens, by API key.")]
MaxGap = Annotated[float, typer.Option(help="Seconds that a step's prefills may hold up answers in progress.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads per model. Default: the cores, shared by the models.")]
MaxBodyMib = Annotated[int, typer.Option(min=1, help="Largest request body, in MiB.")]
StartTimeout = Annotated[float, typer.Option(min=1, help="Seconds that loading may take.")]
StallTimeout = Annotated[
    float, typer.Option(min=2, help="An engine silent for so many seconds is restarted; its longest step takes less.")
]
Drain = Annotated[int, typer.Option(min=0, help="Seconds that open requests get at shutdown.")]
CudaGraphs = Annotated[
    bool,
    typer.Option(
        help="Capture decode steps once and replay them: on a GPU as CUDA graphs, on a processor as lists of calls."
    ),
]
Overlap = Annotated[
    bool | None,
    typer.Option("--overlap/--no-overlap", help="Decide the next step while one is computed. Default: on a GPU."),
]
LogRequests = Annotated[bool, typer.Option(help="Log every request that reaches an engine.")]
AccessLog = Annotated[bool, typer.Option(help="Log every HTTP request.")]


DoctorModel = Annotated[str | None, typer.Argument(metavar="[MODEL]", help="As for serve; its choices are shown.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print it as JSON.")]


@contextlib.contextmanager
def config_errors() -> Iterator[None]:
    """Says which option cannot be, and ends."""
    try:
        yield
    except ConfigError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(EXIT_CONFIG) from error


@config_errors()
def serve(
    models: Models,
    *,
    revision: Revision = None,
    generation_config: GenerationConfigOption = "auto",
    host: Host = "127.0.0.1",
    port: Port = 8000,
    api_keys: ApiKeys = None,
    dtype: DtypeOption = "auto",
    state_dtype: StateDtypeOption = "float32",
    quantization: QuantizationOption = "none",
    device: DeviceOption = "auto",
    cache_gib: CacheGib = None,
    memory_fraction: MemoryFraction = None,
    populate_cache: PopulateCache = False,
    host_cache_gib: HostCacheGib = None,
    block_size: BlockSize = None,
    max_context: MaxContext = None,
    max_running: MaxRunning = 64,
    max_queue: MaxQueue = 256,
    max_queue_tokens: MaxQueueTokens = None,
    step_tokens: StepTokens = 2048,
    prefill_chunk: PrefillChunk = 1024,
    prefix_cache: PrefixCache = True,
    snapshot_every: SnapshotEvery = None,
    cache_dir: CacheDir = None,
    cache_dir_gib: CacheDirGib = 10.0,
    policy: PolicyOption = "fair",
    max_gap_s: MaxGap = 0.1,
    threads: Threads = None,
    max_body_mib: MaxBodyMib = 64,
    start_timeout_s: StartTimeout = 600.0,
    stall_timeout_s: StallTimeout = 300.0,
    drain_s: Drain = 30,
    cuda_graphs: CudaGraphs = True,
    overlap: Overlap = None,
    log_requests: LogRequests = False,
    access_log: AccessLog = True,
) -> None:
    """Serve models behind an OpenAI-compatible API; each has an engine process of its own."""
    engine = EngineConfig(
        **number_options(dtype, state_dtype, quantization),
        device=device,
        block_size=block_size,
        max_context=max_context,
        max_running=max_running,
        max_queue=max_queue,
        max_queue_tokens=max_queue_tokens,
        step_tokens=step_tokens,
        prefill_chunk=prefill_chunk,
        prefix_cache=prefix_cache,
        snapshot_every=snapshot_every,
        **memory_options(cache_gib, memory_fraction, host_cache_gib, cache_dir, cache_dir_gib, populate=populate_cache),
        policy=policy,
        max_gap_s=max_gap_s,
        **step_options(threads, cuda_graphs, overlap, num_models=len(models)),
        **watch_options(log_requests, start_timeout_s, stall_timeout_s),
    )
    http = ServerConfig(host, port, tuple(api_keys or ()), max_body_mib * MIB, start_timeout_s, drain_s, access_log)
    raise typer.Exit(host_and_serve(models, engine, CheckpointOptions(revision, generation_config == "auto"), http))


def number_options(dtype: Dtype, state_dtype: StateDtype, quantization: Quantization) -> dict[str, Any]:
    """In how many bits numbers are kept."""
    return {"dtype": dtype, "state_dtype": state_dtype, "quantization": quantization}


def memory_options(
    cache_gib: float | None,
    fraction: float | None,
    host_gib: float | None,
    directory: Path | None,
    disk_gib: float,
    *,
    populate: bool,
) -> dict[str, Any]:
    """The options of the cache and of the tiers below it, as EngineConfig has them."""
    return {
        "cache_bytes": None if cache_gib is None else round(cache_gib * GIB),
        "memory_fraction": fraction,
        "populate_cache": populate,
        "host_cache_bytes": None if host_gib is None else round(host_gib * GIB),
        "cache_dir": None if directory is None else str(directory.expanduser().resolve()),
        "cache_dir_bytes": round(disk_gib * GIB),
    }


def step_options(threads: int | None, graphs: bool, overlap: bool | None, *, num_models: int) -> dict[str, Any]:
    """How steps are computed, beside those of the other models on this machine."""
    return {
        "threads": threads or max(1, (os.cpu_count() or 1) // num_models),
        "cuda_graphs": graphs,
        "overlap": overlap,
        "memory_share": 1 / num_models,
    }


def watch_options(log_requests: bool, start_s: float, stall_s: float) -> dict[str, Any]:
    """What is told of an engine, and when it is taken for stuck."""
    return {"log_requests": log_requests, "start_timeout_s": start_s, "stall_timeout_s": stall_s}


def host_and_serve(models: list[str], engine: EngineConfig, options: CheckpointOptions, config: ServerConfig) -> int:
    """Find the models and serve them until a signal; returns the exit code.

    Raises:
        ConfigError: a model, the address or the cache directory cannot be had.
    """
    configure_logging()
    with contextlib.ExitStack() as bound:
        listener = bound.enter_context(bind(config.host, config.port))
        make_cache_directory(engine.cache_dir)
        hosted = host_models(models, engine, options, created_s=int(time.time()))
        bound.pop_all()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run_server(hosted, config, listener))


def make_cache_directory(directory: str | None) -> None:
    """Here and not in an engine, so that it is told at once.

    Raises:
        ConfigError: it cannot be made.
    """
    if directory is not None:
        try:
            os.makedirs(directory, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--cache-dir {directory} cannot be made: {error.strerror}") from error


def configure_logging() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    # The Hub's client would tell of each of its requests, and of everything else twice.
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    logging.getLogger("huggingface_hub").propagate = False


def doctor(
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="As for serve. Default: a usual model.")
    ] = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Show hardware and packages, which backend each operation uses and why, and what would make it faster."""
    # A process of its own: the command line stays quick because it loads no torch.
    words = [*(["--json"] if as_json else []), *(["--", model] if model else [])]
    process = subprocess.run([sys.executable, "-P", "-m", "server.doctor", *words], env=child_environment())
    raise typer.Exit(process.returncode)


def bind(host: str, port: int) -> socket.socket:
    """A socket, bound before anything is fetched or loaded, so that a taken port is told at once.

    Raises:
        ConfigError: the address cannot be bound.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise ConfigError(f"--host {host} --port {port} cannot be bound: {error.strerror or error}") from error
    return listener


async def run_server(hosted: dict[str, HostedModel], config: ServerConfig, listener: socket.socket) -> int:
    """Serve until a signal; returns the exit code."""
    app = create_app(hosted, api_keys=config.api_keys, max_body_bytes=config.max_body_bytes)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="info" if config.access_log else "warning",
            access_log=config.access_log,
            timeout_graceful_shutdown=config.drain_s,
        )
    )
    # uvicorn hands a signal on once it has shut down; by then it has done its work.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    announcing = asyncio.create_task(_announce(hosted, config, listener, server))
    await server.serve(sockets=[listener])
    announcing.cancel()
    return EXIT_ENGINE if announcing.done() and not announcing.cancelled() and announcing.result() else 0


async def _announce(
    hosted: dict[str, HostedModel], config: ServerConfig, listener: socket.socket, server: uvicorn.Server
) -> bool:
    """Say when every engine serves; shut down and return True if one never will."""
    for name, model in hosted.items():
        try:
            info = await model.engine.wait_ready(config.start_timeout_s + START_GRACE_S)
        except EngineError as error:
            typer.echo(f"error: {name}: {error}", err=True)
            server.should_exit = True
            return True
        typer.echo(f"{name}: {info.kind}, {info.dtype} on {info.device}; {model.engine.plan}")
    # What is there by now stays: searched for what nobody needs, it would hold up all streams each time.
    gc.collect()
    gc.freeze()
    typer.echo(f"ready: {address_of(listener)} models={','.join(hosted)}")
    return False


def address_of(listener: socket.socket) -> str:
    """The URL under which a bound socket is reached."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
