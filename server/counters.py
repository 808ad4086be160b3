"""What a scheduler has done since its start."""

from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    preemptions: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generation_tokens: int = 0
    finished: int = 0
    aborted: int = 0
    expired: int = 0
