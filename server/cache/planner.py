"""Says what a byte budget holds of blocks and state slots, from what the layers declare. Plain integers."""

from dataclasses import dataclass

GIB = 1 << 30
LEAST_EVERY, MOST_EVERY = 64, 4096
SNAPSHOT_BYTES_PER_TOKEN = 1 << 16  # copied so many bytes for a token, a snapshot costs a percent or two of a prefill
MAX_SNAPSHOTS = 1 << 14
ARENA_ALIGNMENT = 64  # bytes, as the caches' tensors are aligned
SHOWN_LENGTHS = (1024, 8192, 32_768, 131_072)


class CacheTooSmallError(Exception):
    """The budget cannot hold even one sequence; the message shows the arithmetic."""


@dataclass(frozen=True, slots=True)
class CachePlan:
    """How the memory is used. `max_tokens` is what the blocks hold for one sequence, None where nothing grows.

    arena_bytes: where a model has blocks and states, these bytes are shared by both, in rows of block_row_bytes and
    slot_row_bytes each, which is what they hold and what it takes to align it; num_blocks and num_state_slots are then
    what there is of either at most. None: there are so many of both.
    """

    bytes_per_token: int
    bytes_per_sequence: int
    block_size: int
    num_blocks: int
    num_state_slots: int
    arena_bytes: int | None = None
    block_row_bytes: int = 0
    slot_row_bytes: int = 0

    @property
    def block_bytes(self) -> int:
        return self.bytes_per_token * self.block_size

    @property
    def max_tokens(self) -> int | None:
        return self.num_blocks * self.block_size if self.bytes_per_token else None

    @property
    def total_bytes(self) -> int:
        if self.arena_bytes is not None:
            return self.arena_bytes
        return self.num_blocks * self.block_bytes + self.num_state_slots * self.bytes_per_sequence

    def bytes_for(self, num_tokens: int) -> int:
        """What a sequence of so many tokens takes."""
        blocks = self.num_blocks_for(num_tokens)
        if self.arena_bytes is not None:
            return blocks * self.block_row_bytes + self.slot_row_bytes
        return blocks * self.block_bytes + self.bytes_per_sequence

    def num_blocks_for(self, num_tokens: int) -> int:
        """Blocks that a sequence of so many tokens needs; none where nothing grows with the context."""
        return -(-num_tokens // self.block_size) if self.bytes_per_token else 0

    def num_sequences(self, num_tokens: int) -> int:
        """How many sequences of a length the bytes hold at once, whether so many may run or not."""
        needed = self.num_blocks_for(num_tokens)
        if self.arena_bytes is not None:
            return min(self.num_state_slots, self.arena_bytes // self.bytes_for(num_tokens))
        if not self.bytes_per_sequence:
            return self.num_blocks // needed if needed else self.num_state_slots
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
    row_bytes: tuple[int, int] | None = None,
) -> CachePlan:
    """What to make of a byte budget: blocks and a place for each sequence, or slots, or both in one arena.

    Args:
        max_running: sequences that may run at once. row_bytes: what a block and a slot take in an arena.
    Raises:
        CacheTooSmallError: not one sequence with one block fits.
    """
    block_bytes = bytes_per_token * block_size
    block_row, slot_row = block_bytes, bytes_per_sequence
    shares = bool(block_bytes and bytes_per_sequence)
    if shares and row_bytes is not None:
        block_row, slot_row = row_bytes
    least = block_row + slot_row
    if shares:
        least = -(-least // ARENA_ALIGNMENT) * ARENA_ALIGNMENT
    if cache_bytes < least:
        raise CacheTooSmallError(
            f"--cache-gib {cache_bytes / GIB:.6g} ({cache_bytes:,} bytes) is too small: one sequence needs "
            f"{slot_row:,} bytes of state and {block_row:,} bytes for a block of {block_size} tokens, "
            f"{least:,} in all"
        )
    most_slots = max_running + MAX_SNAPSHOTS
    if not bytes_per_sequence:
        return CachePlan(bytes_per_token, 0, block_size, cache_bytes // block_bytes if block_bytes else 0, max_running)
    if not block_bytes:
        return CachePlan(0, bytes_per_sequence, block_size, 0, min(most_slots, cache_bytes // bytes_per_sequence))
    cache_bytes -= cache_bytes % ARENA_ALIGNMENT
    return CachePlan(
        bytes_per_token,
        bytes_per_sequence,
        block_size,
        num_blocks=(cache_bytes - slot_row) // block_row,
        num_state_slots=min(most_slots, (cache_bytes - block_row) // slot_row),
        arena_bytes=cache_bytes,
        block_row_bytes=block_row,
        slot_row_bytes=slot_row,
    )


def describe(plan: CachePlan, max_context: int, max_running: int, state_dtype: str = "float32") -> str:
    """The plan as lines that a person understands: what it is made of, and a table of what fits.

    Args:
        max_context: tokens; no longer sequences are shown. max_running: sequences.
    """
    parts = [
        *([f"{plan.num_blocks:,} blocks of {plan.block_size} tokens"] if plan.bytes_per_token else []),
        *([f"{plan.num_state_slots:,} states"] if plan.bytes_per_sequence else []),
    ]
    padding = plan.block_row_bytes - plan.block_bytes, plan.slot_row_bytes - plan.bytes_per_sequence
    aligned = f" (with {padding[0]:,} bytes per block and {padding[1]:,} per state to align them)"
    lines = [
        f"cache: {plan.total_bytes:,} bytes = "
        + (" + ".join(parts) if plan.arena_bytes is None else f"{' or '.join(parts)}, or any mixture")
        + (aligned if plan.arena_bytes is not None and any(padding) else ""),
        f"cache: {plan.bytes_per_token:,} bytes per token, {plan.bytes_per_sequence:,} bytes per sequence"
        + (f" in {state_dtype}" if plan.bytes_per_sequence else ""),
    ]
    lengths = [n for n in SHOWN_LENGTHS if n < max_context] + [max_context]
    rows = [("tokens", "bytes of one", "fit at once", "runs out first")]
    rows += [
        (f"{n:,}", f"{plan.bytes_for(n):,}", f"{plan.num_sequences(n):,}", what_runs_out(plan, n, max_running))
        for n in lengths
    ]
    widths = [max(map(len, column)) for column in list(zip(*rows, strict=True))[:3]]
    for *cells, last in rows:
        padded = "  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
        lines.append(f"cache:   {padded}  {last}")
    lines.append("cache: what does not run is kept for prompts that begin alike, as long as there is room")
    return "\n".join(lines)


def what_runs_out(plan: CachePlan, num_tokens: int, max_running: int) -> str:
    """What keeps more sequences of a length from running."""
    if plan.num_sequences(num_tokens) >= max_running:
        return f"--max-running {max_running:,}"
    if plan.arena_bytes is not None:
        blocks = plan.bytes_for(num_tokens) - plan.slot_row_bytes
        return f"bytes, {round(100 * blocks / plan.bytes_for(num_tokens))}% of them blocks"
    return "blocks" if plan.bytes_per_token else "states"
