"""What a client asks for and what the engine answers: the records that cross the process border."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

Tier = Literal["device", "host", "disk"]
FinishReason = Literal["stop", "length", "abort", "timeout"]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one completion is generated. top_k 0, top_p 1 and min_p 0 are off; temperature 0 is greedy.

    `seed` None lets the engine draw one. Generation ends at the model's end-of-sequence tokens (unless
    `ignore_eos`), at `stop_token_ids`, or after `max_tokens`.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {self.max_tokens}")


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """cache_salt: only requests of the same salt find what others have computed. tenant: who asks; tenants share what
    there is fairly. priority: the lower, the earlier. timeout_s: how long after its arrival it is no longer wanted.
    marks: after how many tokens the state is to be kept for others, ascending; mark_ttl_s: for how long, each.
    """

    request_id: str
    token_ids: tuple[int, ...]
    params: SamplingParams
    cache_salt: str = ""
    tenant: str = ""
    priority: int = 0
    timeout_s: float | None = None
    marks: tuple[int, ...] = ()
    mark_ttl_s: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.token_ids:
            raise ValueError("a request needs at least one token to start from")
        if len(self.marks) != len(self.mark_ttl_s):
            raise ValueError(f"{len(self.marks)} marks, but times for {len(self.mark_ttl_s)}")
        if any(after <= before for before, after in pairwise((0, *self.marks))):
            raise ValueError(f"marks must be positive and ascend, got {self.marks}")


@dataclass(frozen=True, slots=True)
class SequenceUsage:
    """What one finished sequence took: tokens, seconds per phase, and bytes of cache.

    `kv_bytes` and `state_bytes` are held at the end; `peak_bytes` is the largest sum of both at any time.
    """

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    queue_s: float
    prefill_s: float
    decode_s: float
    kv_bytes: int
    state_bytes: int
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class TokenOutput:
    """New tokens of one sequence; the last one carries a finish reason and the usage."""

    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None
    usage: SequenceUsage | None


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine serves and how much fits, known once it is ready."""

    model: str
    kind: str
    max_context_tokens: int
    vocab_size: int
    num_blocks: int
    block_size: int
    num_state_slots: int
    bytes_per_token: int
    bytes_per_sequence: int
    eos_token_ids: tuple[int, ...]
    device: str
    dtype: str
    state_dtype: str = "float32"


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """One end of what is kept for prompts that begin alike, and all that leads to it from the first token on.

    hits: sequences that were the same at least up to its middle and did not compute all of that. age_s: since it was
    last used so far, or left. tier: where it is; what is on the device is not shown again below it.
    """

    tokens: int
    kv_bytes: int
    state_bytes: int
    num_snapshots: int
    hits: int
    age_s: float
    tier: Tier = "device"


@dataclass(frozen=True, slots=True)
class CacheContent:
    """num_cached_blocks: kept, and held by no running sequence. host_..., disk_...: pieces and bytes of the tiers
    below. entries: the latest of num_entries.
    """

    num_blocks: int
    num_cached_blocks: int
    block_bytes: int
    num_slots: int
    num_snapshots: int
    slot_bytes: int
    host_pieces: int
    host_bytes: int
    disk_pieces: int
    disk_bytes: int
    num_entries: int
    entries: tuple[CacheEntry, ...]


@dataclass(frozen=True, slots=True)
class CacheFreed:
    """What clearing the cache has given back."""

    num_blocks: int
    kv_bytes: int
    num_snapshots: int
    state_bytes: int


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Where an engine stands. Counts of requests and tokens are totals since its process started.

    Blocks and slots are free that no sequence holds; cached_blocks and snapshots are those among them that are kept for
    who begins alike. fit_...: sequences of 8,192 tokens, or of the longest context if that is less, and of the longest,
    that memory has room for at once; ..._now: beside those that run, if all that is kept for others went.
    cached_tokens: of prompts, found instead of computed. host_..., disk_...: of the tiers below: pieces and bytes that
    are there; pieces that came, and that were left out; sequences that went on from what was read while they waited,
    bytes read, and the seconds that took.
    """

    num_running: int = 0
    num_waiting: int = 0
    free_blocks: int = 0
    num_blocks: int = 0
    free_state_slots: int = 0
    num_state_slots: int = 0
    cached_blocks: int = 0
    snapshots: int = 0
    num_preemptions: int = 0
    cached_tokens: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    finished: int = 0
    aborted: int = 0
    fit_8k: int = 0
    fit_8k_now: int = 0
    fit_longest: int = 0
    fit_longest_now: int = 0
    disk_pieces: int = 0
    disk_bytes: int = 0
    disk_writes: int = 0
    disk_writes_skipped: int = 0
    disk_hits: int = 0
    disk_bytes_read: int = 0
    disk_read_s: float = 0.0
    host_pieces: int = 0
    host_bytes: int = 0
    host_writes: int = 0
    host_writes_skipped: int = 0
    host_hits: int = 0
    host_bytes_read: int = 0
    host_read_s: float = 0.0
    expired: int = 0
    steps: int = 0
