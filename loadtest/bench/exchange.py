"""What contenders are asked and what they answer, whichever way they are spoken to."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from loadtest.bench.child import Child
from loadtest.latency import StreamTimes


class ContenderError(Exception):
    """A contender does not start, refuses, answers too little, or died; the message says which."""


class CutError(Exception):
    """A contender was stopped because it took too long; it has to be started again."""

    def __init__(self, after_s: float) -> None:
        super().__init__(f"stopped after {after_s:.0f} s")
        self.after_s = after_s


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt, as ids and as the text that is cut into them (None where there is none), and how much to answer."""

    tokens: tuple[int, ...]
    text: str | None
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Answer:
    """One whole answer.

    Attributes:
        num_tokens: tokens of the answer: as the server counts them, else as they were made.
        ids: the answer's tokens; of a server, as its text is cut.
        cached_tokens: tokens of the prompt that were not computed, where the server tells.
    """

    times: StreamTimes
    num_tokens: int
    ids: tuple[int, ...]
    cached_tokens: int | None = None


class Contender(Protocol):
    """Whoever is raced: started once for several workloads, stopped while others are timed."""

    @property
    def child(self) -> Child | None: ...

    def start(self) -> None:
        """Come up, ready to answer. Raises ContenderError."""

    def ask(self, questions: Sequence[Question], *, concurrency: int, limit_s: float) -> list[Answer]:
        """Answers in the order of the questions, so many at once. Raises ContenderError and CutError."""

    def tune(self, questions: Sequence[Question], *, concurrency: int, limit_s: float) -> None:
        """Warm up with questions like those to come, and find the best setting for them."""
