"""Splits a byte budget into blocks and state slots, from what the layers declare. Plain integers."""

from dataclasses import dataclass

GIB = 1 << 30
LEAST_EVERY, MOST_EVERY = 64, 4096
SNAPSHOT_BYTES_PER_TOKEN = 1 << 16  # copied so many bytes for a token, a snapshot costs a percent or two of a prefill
MAX_SNAPSHOTS = 1 << 14
SHOWN_LENGTHS = (1024, 8192, 32_768, 131_072)


class CacheTooSmallError(Exception):
    """The budget cannot hold even one sequence; the message shows the arithmetic."""


@dataclass(frozen=True, slots=True)
class CachePlan:
    """How the memory is split. `max_tokens` is what the blocks hold for one sequence, None where nothing grows."""

    bytes_per_token: int
    bytes_per_sequence: int
    block_size: int
    num_blocks: int
    num_state_slots: int

    @property
    def block_bytes(self) -> int:
        return self.bytes_per_token * self.block_size

    @property
    def max_tokens(self) -> int | None:
        return self.num_blocks * self.block_size if self.bytes_per_token else None

    @property
    def total_bytes(self) -> int:
        return self.num_blocks * self.block_bytes + self.num_state_slots * self.bytes_per_sequence

    def num_blocks_for(self, num_tokens: int) -> int:
        """Blocks that a sequence of so many tokens needs; none where nothing grows with the context."""
        return -(-num_tokens // self.block_size) if self.bytes_per_token else 0

    def num_sequences(self, num_tokens: int) -> int:
        """How many sequences of a length fit at once."""
        needed = self.num_blocks_for(num_tokens)
        return min(self.num_state_slots, self.num_blocks // needed) if needed else self.num_state_slots


def default_snapshot_every(bytes_per_sequence: int) -> int:
    """Tokens between the snapshots of a long prompt: few enough that they cost little beside computing the tokens."""
    every = LEAST_EVERY
    while every < MOST_EVERY and every * SNAPSHOT_BYTES_PER_TOKEN < bytes_per_sequence:
        every *= 2
    return every


def plan_cache(
    *,
    bytes_per_token: int,
    bytes_per_sequence: int,
    block_size: int,
    cache_bytes: int,
    max_running: int,
    snapshot_every: int,
) -> CachePlan:
    """Give every sequence that may run its state, then the rest to blocks and to further slots for snapshots.

    Where a model has both, there is a snapshot for every `snapshot_every` tokens that the blocks hold.

    Args:
        max_running: sequences that may run at once.
    Raises:
        CacheTooSmallError: not one sequence with one block fits.
    """
    block_bytes = bytes_per_token * block_size
    least = bytes_per_sequence + block_bytes
    if cache_bytes < least:
        raise CacheTooSmallError(
            f"--cache-gib {cache_bytes / GIB:.6g} ({cache_bytes:,} bytes) is too small: one sequence needs "
            f"{bytes_per_sequence:,} bytes of state and {block_bytes:,} bytes for a block of {block_size} tokens, "
            f"{least:,} in all"
        )
    slots = max_running
    if bytes_per_sequence:
        # At most half the budget goes to running states where blocks need the other half; one block always remains.
        share = min(cache_bytes // 2, cache_bytes - block_bytes) if block_bytes else cache_bytes
        slots = max(1, min(max_running, share // bytes_per_sequence))
        left = cache_bytes - slots * bytes_per_sequence - block_bytes
        slots += min(MAX_SNAPSHOTS, left // (bytes_per_sequence + bytes_per_token * snapshot_every))
    num_blocks = (cache_bytes - slots * bytes_per_sequence) // block_bytes if block_bytes else 0
    return CachePlan(bytes_per_token, bytes_per_sequence, block_size, num_blocks, slots)


def describe(plan: CachePlan, max_context: int, max_running: int, state_dtype: str = "float32") -> str:
    """The plan as a few lines that a person understands, for sequences of at most `max_context` tokens."""
    kept = f" in {state_dtype}" if plan.bytes_per_sequence else ""
    lines = [
        f"cache: {plan.total_bytes:,} bytes = {plan.num_blocks:,} blocks of {plan.block_size} tokens "
        f"({plan.block_bytes:,} bytes each) + {plan.num_state_slots:,} state slots "
        f"({plan.bytes_per_sequence:,} bytes each)",
        f"cache: {plan.bytes_per_token:,} bytes per token, {plan.bytes_per_sequence:,} bytes per sequence{kept}",
    ]
    lengths = [n for n in SHOWN_LENGTHS if n <= max_context] or [max_context]
    fits = [f"{plan.num_sequences(n):,} of {n:,} tokens" for n in lengths if plan.num_sequences(n)]
    lines.append(
        f"cache: sequences that fit at once: {', '.join(fits) or f'none of {lengths[0]:,} tokens'}; "
        f"{min(max_running, plan.num_state_slots):,} run at a time (--max-running), "
        "the rest of the room is for what may be asked again"
    )
    return "\n".join(lines)
