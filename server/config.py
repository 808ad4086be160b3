"""What an engine is told at its start. Frozen; an error names the flag to change."""

from dataclasses import dataclass
from typing import Literal

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Device = Literal["auto", "cpu", "cuda"]


class ConfigError(Exception):
    """An option has a value that cannot work; the message names its flag."""


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Options of one engine.

    cache_bytes None: chosen from the free memory. max_context None: as much as the model and the cache allow.
    step_tokens: tokens that one step may compute, prefill and decode together. prefill_chunk: the most that one
    prompt takes of a step, so that a long prompt leaves room for others.
    """

    dtype: Dtype = "auto"
    device: Device = "auto"
    block_size: int = 16
    cache_bytes: int | None = None
    max_context: int | None = None
    max_running: int = 64
    max_queue: int = 256
    step_tokens: int = 2048
    prefill_chunk: int = 1024
    threads: int | None = None
    log_requests: bool = False

    def __post_init__(self) -> None:
        for flag, least in {
            "block_size": 1,
            "max_running": 1,
            "max_queue": 0,
            "step_tokens": 1,
            "prefill_chunk": 1,
            "cache_bytes": 1,
            "max_context": 2,
            "threads": 1,
        }.items():
            value = getattr(self, flag)
            if value is not None and value < least:
                raise ConfigError(f"--{flag.replace('_', '-')} must be at least {least}, got {value}")
        if self.step_tokens < self.max_running:
            raise ConfigError(
                f"--step-tokens {self.step_tokens} must be at least --max-running {self.max_running}: "
                "every running sequence decodes one token per step"
            )
