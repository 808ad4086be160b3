"""The engine's state for one completion, and the parts of a step that are made of such. Plain integers, no torch."""

from dataclasses import dataclass, field

from server.request import EngineRequest


@dataclass(slots=True, eq=False)
class Sequence:
    """The engine's state for one completion. Times are seconds on the engine's monotonic clock.

    `num_computed` counts the tokens whose keys, values and state are remembered; the rest of `token_ids` is
    still to be computed. A decoding sequence lacks exactly its newest token.
    """

    request: EngineRequest
    seed: int
    added_s: float
    token_ids: list[int]
    num_computed: int = 0
    block_table: list[int] = field(default_factory=list)
    state_slot: int | None = None
    started_s: float | None = None
    first_token_s: float | None = None
    peak_bytes: int = 0

    @property
    def request_id(self) -> str:
        return self.request.request_id

    @property
    def num_prompt(self) -> int:
        return len(self.request.token_ids)

    @property
    def num_generated(self) -> int:
        return len(self.token_ids) - self.num_prompt

    @property
    def num_remaining(self) -> int:
        return len(self.token_ids) - self.num_computed

    @property
    def decodes(self) -> bool:
        """All but the newest token is computed: the next step is a decode step."""
        return self.num_remaining == 1 and self.num_computed > 0


@dataclass(frozen=True, slots=True)
class ScheduledSequence:
    """A part of one step: compute `num_tokens` from `num_computed` on; `samples` if that reaches the newest token."""

    sequence: Sequence
    num_tokens: int
    samples: bool


@dataclass(frozen=True, slots=True)
class ScheduledBatch:
    parts: tuple[ScheduledSequence, ...]

    @property
    def num_tokens(self) -> int:
        return sum(part.num_tokens for part in self.parts)
