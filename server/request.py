"""What a client asks for and what the engine answers: the records that cross the process border."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import msgspec
import numpy as np

Tier = Literal["device", "host", "disk"]
FinishReason = Literal["stop", "length", "abort", "timeout"]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one completion is generated. top_k 0, top_p 1 and min_p 0 are off; temperature 0 is greedy.

    `seed` None lets the engine draw one. Generation ends at the model's end-of-sequence tokens (unless
    `ignore_eos`), at `stop_token_ids`, or after `max_tokens`; with 0 of them the prompt is computed and nothing else.

    logprobs, prompt_logprobs: of how many of the likeliest tokens beside each generated one, and each of the prompt but
    the first, the log-probability is told; None: not even of those themselves.

    presence_penalty, frequency_penalty, repetition_penalty, logit_bias: as in models/penalties.py; 0, 0, 1 and () are
    off. min_tokens: as many come before anything but max_tokens and the context may end it.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    min_tokens: int = 0

    @property
    def penalizes(self) -> bool:
        """Whether what was there already changes what comes."""
        return bool(self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1)

    @property
    def adjusts(self) -> bool:
        """Whether it is sampled from other logits than the model's."""
        return self.penalizes or bool(self.logit_bias or self.min_tokens)

    def __post_init__(self) -> None:
        if self.max_tokens < 0:
            raise ValueError(f"max_tokens must be at least 0, got {self.max_tokens}")
        if not self.max_tokens and self.logprobs is not None:
            raise ValueError("without a token there is nothing that logprobs could tell of")


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """cache_salt: only requests of the same salt find what others have computed. tenant: who asks; tenants share what
    there is fairly. priority: the lower, the earlier. timeout_s: how long after its arrival it is no longer wanted.
    marks: after how many tokens the state is to be kept for others, ascending; mark_ttl_s: for how long, each.
    whole: its tokens are wanted all at once, when it ends.
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
    whole: bool = False

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
class TokenLogprob:
    """A token's log-probability, where it stands among all (1: the likeliest), and the likeliest in its place."""

    token_id: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...] = ()


class Logprobs(msgspec.Struct, frozen=True, array_like=True):
    """Of n tokens in turn, as the bytes of arrays, so that a long prompt's cost little on their way.

    token_ids, ranks: (n,) int32. values: (n,) float32. top_ids: (n, num_top) int32, top_values the same of float32.
    """

    num_top: int
    token_ids: bytes
    values: bytes
    ranks: bytes
    top_ids: bytes
    top_values: bytes

    def __len__(self) -> int:
        return len(self.token_ids) // 4

    def entries(self) -> list[TokenLogprob]:
        ids, values, ranks = (
            np.frombuffer(content, dtype).tolist()
            for content, dtype in ((self.token_ids, np.int32), (self.values, np.float32), (self.ranks, np.int32))
        )
        shape = len(self), self.num_top
        top_ids = np.frombuffer(self.top_ids, np.int32).reshape(shape).tolist()
        top_values = np.frombuffer(self.top_values, np.float32).reshape(shape).tolist()
        tops = (tuple(zip(*each, strict=True)) for each in zip(top_ids, top_values, strict=True))
        return [TokenLogprob(*each) for each in zip(ids, values, ranks, tops, strict=True)]


def join_logprobs(parts: Sequence[Logprobs]) -> Logprobs:
    """Those of one text whose parts came one after the other, all with as many of the likeliest."""
    return Logprobs(
        parts[0].num_top,
        *(
            b"".join(getattr(part, name) for part in parts)
            for name in ("token_ids", "values", "ranks", "top_ids", "top_values")
        ),
    )


class TokenOutput(msgspec.Struct, frozen=True, omit_defaults=True):
    """New tokens of one sequence; the last one carries a finish reason and the usage.

    logprobs: of these tokens, and of the one that ended the completion. prompt_logprobs: of the prompt's next tokens.
    """

    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    usage: SequenceUsage | None = None
    logprobs: Logprobs | None = None
    prompt_logprobs: Logprobs | None = None


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
