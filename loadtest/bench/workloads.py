"""What contenders are asked, and which figures are read off their answers. Seconds in, rates out; no I/O.

Every run has prompts of its own, the same for all contenders, so that no prefix cache helps where none is meant to.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from loadtest.bench.exchange import Answer, Question
from loadtest.bench.vocabulary import Words
from loadtest.latency import tpot_s, ttft_s

Lengths = Literal["same", "mixed", "shared", "nested"]
QUESTION_TOKENS = 32
SHORTEST_MIXED = 16  # parts of the longest prompt
BUDGETS = 8
WARM_SHARE = 4


@dataclass(frozen=True, slots=True)
class Figure:
    """One number of a workload: its name, its unit, and how it comes about; more is better unless it is a time."""

    name: str
    unit: str
    read: Callable[[Sequence[Answer]], float]

    @property
    def is_time(self) -> bool:
        return self.unit == "s"


@dataclass(frozen=True, slots=True)
class Workload:
    """Attributes:
    prompt: tokens of the longest prompt, or of the beginning that all share.
    output: tokens of every answer.
    requests: how many there are; so many at once are `concurrency`.
    lengths: all alike; spread evenly over their logarithms; a shared beginning with different questions; or ever
        longer beginnings of one text before one question.
    """

    name: str
    title: str
    prompt: int
    output: int
    figures: tuple[Figure, ...]
    requests: int = 1
    concurrency: int = 1
    lengths: Lengths = "same"

    @property
    def long(self) -> bool:
        """Meant for one long context at a time, and for a prefix cache."""
        return self.lengths in ("shared", "nested")

    @property
    def context(self) -> int:
        """Most tokens of one prompt and its answer."""
        return self.prompt + self.output + (QUESTION_TOKENS if self.long else 0)

    def questions(self, words: Words, seed: str) -> list[Question]:
        rng = random.Random(f"{self.name}:{seed}")
        prompts = {"same": self._same, "mixed": self._mixed, "shared": self._shared, "nested": self._nested}
        return [Question(ids, words.text(ids), self.output) for ids in prompts[self.lengths](words, rng)]

    def warm_up(self) -> "Workload":
        """The same with shorter prompts and answers."""
        fewer = min(self.requests, 4) if self.long else self.requests
        prompt = max(self.prompt // WARM_SHARE, SHORTEST_MIXED)
        return replace(self, prompt=prompt, output=max(1, min(8, self.output)), requests=fewer)

    def _same(self, words: Words, rng: random.Random) -> list[tuple[int, ...]]:
        return [words.draw(rng, self.prompt) for _ in range(self.requests)]

    def _mixed(self, words: Words, rng: random.Random) -> list[tuple[int, ...]]:
        """The same lengths in every run, from the longest's sixteenth part to the longest, in a random order."""
        powers = [number / max(1, self.requests - 1) for number in range(self.requests)]
        lengths = [round(self.prompt * SHORTEST_MIXED ** (power - 1)) for power in powers]
        rng.shuffle(lengths)
        return [words.draw(rng, length) for length in lengths]

    def _shared(self, words: Words, rng: random.Random) -> list[tuple[int, ...]]:
        beginning = words.draw(rng, self.prompt)
        return [beginning + words.draw(rng, QUESTION_TOKENS) for _ in range(self.requests)]

    def _nested(self, words: Words, rng: random.Random) -> list[tuple[int, ...]]:
        context, question = words.draw(rng, self.prompt), words.draw(rng, QUESTION_TOKENS)
        budgets = [self.prompt >> shift for shift in reversed(range(self.requests))]
        return [context[:budget] + question for budget in budgets]


def span_s(answers: Sequence[Answer]) -> float:
    """From the first request to the last token."""
    return max(answer.times.token_times_s[-1] for answer in answers) - min(answer.times.sent_s for answer in answers)


def _first_token(answers: Sequence[Answer]) -> float:
    return ttft_s(answers[0].times) or math.nan


def _one_stream(answers: Sequence[Answer]) -> float:
    per_token_s = tpot_s(answers[0].times, answers[0].num_tokens)
    return 1 / per_token_s if per_token_s else math.nan


def _all_streams(answers: Sequence[Answer]) -> float:
    return sum(answer.num_tokens for answer in answers) / span_s(answers)


def workloads(*, quick: bool) -> dict[str, Workload]:
    """All of them by name; quick ones are a sixteenth as long."""
    part = 16 if quick else 1
    long, few, fewer = 8192 // part, max(8, 32 // part), max(8, 24 // part)
    prefill = Figure("prefill", "tok/s", lambda answers: 2048 // part / _first_token(answers))
    decode = Figure("decode", "tok/s", _one_stream)
    rate = Figure("output", "tok/s", _all_streams)
    seconds = Figure("time", "s", span_s)
    every = [
        Workload("single", "one stream, prompt of {prompt:,}", 2048 // part, few, (prefill, decode)),
        Workload("short", "one stream, prompt of {prompt:,}", 32, few, (decode,)),
        Workload("batch8", "8 at once, prompts of {prompt:,}", 16, fewer, (rate,), 8, 8),
        Workload("batch16", "16 at once, prompts of {prompt:,}", 16, fewer, (rate,), 16, 16),
        Workload("mixed", "16 at once, prompts up to {prompt:,}", 2048 // part, 128 // part, (rate,), 16, 16, "mixed"),
        Workload(
            "shared", "{requests} questions on one {prompt:,}", long, max(1, 16 // part), (seconds,), 32, 1, "shared"
        ),
        Workload("sweep", "{requests} budgets up to {prompt:,}", long, 1, (seconds,), BUDGETS, 1, "nested"),
    ]
    return {workload.name: workload for workload in every}
