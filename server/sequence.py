"""The engine's state for one completion, and the parts of a step that are made of such. Plain integers, no torch."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from server.cache.blocks import RowCopy
from server.cache.runs import Run, Tokens
from server.request import EngineRequest, Logprobs

Table = NDArray[np.int64]


@dataclass(slots=True, eq=False)
class Sequence:
    """The engine's state for one completion. Times are seconds on the engine's monotonic clock.

    `num_computed` counts the tokens whose keys, values and state are remembered; the rest of `token_ids` is
    still to be computed. A decoding sequence lacks exactly its newest token.

    number: in the order of arrival. num_cached: tokens of the prompt that it did not compute, but found in the prefix
    index when it first ran. num_shared: positions whose keys and values others have written; computed again they are
    not written again. run: the index's run that it goes on from, pinned, while it runs. tokens: what `as_array` made
    last. table: what `as_table` made last, to be forgotten by who changes a block that is in it. wanted: after how many
    tokens it shall leave snapshots, in order. taken: those that this step leaves, and where. num_marks_kept: how many
    of the request's marks are held already. pieces: the names of its tokens' runs on the disk, those that are computed.
    is_looked_up: the tiers below were asked for it since it waits. kept_piece: what it will go on from in the
    host's memory, after it was preempted. num_unknown: tokens that are sampled, but not read back yet, and so are
    not in `token_ids`. num_scored: tokens of the prompt after which the next one's log-probability is told already,
    where that is wanted. ends: the tokens that would end it.
    """

    request: EngineRequest
    seed: int
    added_s: float
    token_ids: list[int]
    number: int = 0
    num_computed: int = 0
    block_table: list[int] = field(default_factory=list)
    state_slot: int | None = None
    num_cached: int = 0
    num_shared: int = 0
    run: Run | None = None
    tokens: Tokens | None = None
    table: Table | None = None
    wanted: list[int] = field(default_factory=list)
    taken: list[tuple[int, int]] = field(default_factory=list)
    num_marks_kept: int = 0
    pieces: list[str] = field(default_factory=list)
    is_looked_up: bool = False
    kept_piece: str = ""
    started_s: float | None = None
    first_token_s: float | None = None
    peak_bytes: int = 0
    num_unknown: int = 0
    num_scored: int = 0
    ends: tuple[int, ...] = ()

    def as_array(self) -> Tokens:
        """Its token ids so far, as the prefix index compares them; made once, and longer as there are more."""
        known = 0 if self.tokens is None else len(self.tokens)
        if self.tokens is None or known < len(self.token_ids):
            more = np.array(self.token_ids[known:], np.int32)
            self.tokens = more if self.tokens is None else np.concatenate((self.tokens, more))
        return self.tokens

    def as_table(self) -> Table:
        """(blocks,) int64, its block table; made once, and longer as there are more."""
        known = 0 if self.table is None else len(self.table)
        if self.table is None or known < len(self.block_table):
            more = np.array(self.block_table[known:], np.int64)
            self.table = more if self.table is None else np.concatenate((self.table, more))
        return self.table

    @property
    def request_id(self) -> str:
        return self.request.request_id

    @property
    def num_prompt(self) -> int:
        return len(self.request.token_ids)

    @property
    def num_generated(self) -> int:
        """Those that are known."""
        return len(self.token_ids) - self.num_prompt

    @property
    def num_tokens(self) -> int:
        """All of them, those among them that are not known yet."""
        return len(self.token_ids) + self.num_unknown

    @property
    def num_remaining(self) -> int:
        return self.num_tokens - self.num_computed

    @property
    def num_to_score(self) -> int:
        """Tokens of the prompt after which the next one's log-probability is wanted: all but its last, or none."""
        return 0 if self.request.params.prompt_logprobs is None else self.num_prompt - 1

    @property
    def num_usable(self) -> int:
        """How many of its first tokens it may find computed: the last one's logits are always wanted, and so are those
        of a prompt that is scored, from where it is not.
        """
        return len(self.token_ids) - 1 if self.num_scored >= self.num_to_score else self.num_scored

    @property
    def decodes(self) -> bool:
        """All but the newest token is computed: the next step is a decode step."""
        return self.num_computed > 0 and self.num_remaining == 1


@dataclass(frozen=True, slots=True)
class ScheduledSequence:
    """A part of one step: compute `num_tokens` from `num_computed` on; `samples` if that reaches the newest token.

    snapshots: after how many tokens of the sequence its state is copied into which slot, in order.
    """

    sequence: Sequence
    num_tokens: int
    samples: bool
    snapshots: tuple[tuple[int, int], ...] = ()

    @property
    def begins(self) -> bool:
        """Whether it is the first part of a sequence that had to wait, or one like it after a preemption."""
        return self.sequence.num_computed == self.sequence.num_cached

    @property
    def scored(self) -> range:
        """The positions among them that score the prompt's next token."""
        sequence = self.sequence
        start, stop = sequence.num_computed, sequence.num_computed + self.num_tokens
        return range(max(start, sequence.num_scored), min(stop, sequence.num_to_score))


@dataclass(frozen=True, slots=True)
class ScheduledBatch:
    """One step: first the copies, one after the other, then the parts, all at once.

    copies: of blocks and of state slots. The parts' sequences know their blocks and slots by where these are after
    the copies. extents: beyond how many blocks and slots, in the order in which they are handed out, all are free.
    """

    parts: tuple[ScheduledSequence, ...]
    copies: tuple[RowCopy, ...] = ()
    extents: tuple[int, int] = (0, 0)

    @property
    def num_tokens(self) -> int:
        return sum(part.num_tokens for part in self.parts)


@dataclass(frozen=True, slots=True)
class StepResult:
    """What came of a step, by request id: tokens of the parts that sample, and log-probabilities for who wants them.

    prompt_logprobs: of the tokens after the positions that a part scores.
    """

    tokens: dict[str, int]
    logprobs: dict[str, Logprobs] = field(default_factory=dict)
    prompt_logprobs: dict[str, Logprobs] = field(default_factory=dict)
