"""What an engine is told at its start. Frozen; an error names the flag to change."""

from dataclasses import dataclass
from typing import Literal

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
StateDtype = Literal["float32", "bfloat16", "float16"]
Quantization = Literal["none", "int8"]
Device = Literal["auto", "cpu", "cuda"]
Policy = Literal["fair", "first-come", "shortest"]

LEAST = {
    "block_size": 1,
    "max_running": 1,
    "max_queue": 0,
    "max_queue_tokens": 1,
    "step_tokens": 1,
    "prefill_chunk": 1,
    "snapshot_every": 1,
    "max_context": 2,
    "threads": 1,
    "start_timeout_s": 1,
    "stall_timeout_s": 2,
}


class ConfigError(Exception):
    """An option has a value that cannot work; the message names its flag."""


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Options of one engine.

    state_dtype: in which recurrent states are kept between steps; all is computed in float32. quantization: of the
    matrices of weights. overlap: the next step is decided while one is computed; None: on a GPU. cuda_graphs: decode
    steps are captured once and replayed. block_size None: what the attention kernels like best. cache_bytes None:
    chosen from the free memory, of which memory_share is this engine's where several share a device. populate_cache:
    all of its memory is there before the first request, not as it is used. memory_fraction: of a GPU's memory, what
    weights, caches and steps take in all; None: most of it. max_context None: as much as the model and the cache allow.
    step_tokens: tokens that one step may compute, prefill and decode together. prefill_chunk: the most that one prompt
    takes of a step, so that a long prompt leaves room for others. max_queue_tokens: of prompts that wait, in all; None:
    no bound. prefix_cache: what was computed is kept for prompts that begin alike, as long as there is room.
    snapshot_every: tokens between the recurrent states that a long prompt leaves for that; None: chosen from their
    bytes. policy: whose turn it is, see server/queue.py. max_gap_s: how long prefills may hold up decodes and
    newcomers, in each step. host_cache_bytes: of the host's memory for what the device has no room for; None: a part of
    what is free beside a GPU, else nothing. cache_dir: where what was computed is kept for the engine's next life, at
    most cache_dir_bytes of it for each model; None: nowhere. An engine that is not ready after start_timeout_s, or that
    says nothing for stall_timeout_s, in the longest of its steps, is taken for stuck and started anew.
    """

    dtype: Dtype = "auto"
    state_dtype: StateDtype = "float32"
    quantization: Quantization = "none"
    device: Device = "auto"
    block_size: int | None = None
    cache_bytes: int | None = None
    memory_share: float = 1.0
    populate_cache: bool = False
    memory_fraction: float | None = None
    max_context: int | None = None
    max_running: int = 64
    max_queue: int = 256
    max_queue_tokens: int | None = None
    step_tokens: int = 2048
    prefill_chunk: int = 1024
    prefix_cache: bool = True
    snapshot_every: int | None = None
    host_cache_bytes: int | None = None
    cache_dir: str | None = None
    cache_dir_bytes: int = 10 << 30
    policy: Policy = "fair"
    max_gap_s: float = 0.1
    threads: int | None = None
    log_requests: bool = False
    cuda_graphs: bool = True
    overlap: bool | None = None
    start_timeout_s: float = 600.0
    stall_timeout_s: float = 300.0

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least {least}, got {value}")
        if self.max_gap_s <= 0:
            raise ConfigError(f"--max-gap-s must be more than 0, got {self.max_gap_s}")
        if not 0 < self.memory_share <= 1:
            raise ConfigError(f"memory_share must be above 0 and at most 1, got {self.memory_share}")
        if self.memory_fraction is not None and not 0 < self.memory_fraction <= 1:
            raise ConfigError(f"--memory-fraction must be above 0 and at most 1, got {self.memory_fraction}")
        if self.memory_fraction is not None and self.cache_bytes is not None:
            raise ConfigError("--memory-fraction and --cache-gib both say what the cache takes: give one of them")
        if self.cache_bytes is not None and self.cache_bytes < 1:
            raise ConfigError(f"--cache-gib must be more than 0, got {self.cache_bytes} bytes")
        self._check_tiers()
        if self.step_tokens < self.max_running:
            raise ConfigError(
                f"--step-tokens {self.step_tokens} must be at least --max-running {self.max_running}: "
                "every running sequence decodes one token per step"
            )

    def _check_tiers(self) -> None:
        if self.host_cache_bytes is not None and self.host_cache_bytes < 0:
            raise ConfigError(f"--host-cache-gib must be at least 0, got {self.host_cache_bytes} bytes")
        for flag, wanted in (("--host-cache-gib", self.host_cache_bytes), ("--cache-dir", self.cache_dir is not None)):
            if wanted and not self.prefix_cache:
                raise ConfigError(f"{flag} keeps the prefix cache, which --no-prefix-cache turns off")
        if self.cache_dir_bytes < 1:
            raise ConfigError(f"--cache-dir-gib must be more than 0, got {self.cache_dir_bytes} bytes")
