"""What a scheduler, and a tier below the device, have done since their start."""

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


@dataclass(slots=True)
class TierStats:
    """pieces, bytes: there are now. skipped: of writes. hits: sequences that went on from what was read while they
    waited. read_s: seconds of who read.
    """

    pieces: int = 0
    bytes: int = 0
    writes: int = 0
    skipped: int = 0
    hits: int = 0
    bytes_read: int = 0
    read_s: float = 0.0
