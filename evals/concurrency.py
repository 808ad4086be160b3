"""How many requests are under way at once: a fixed number, or as many as the endpoint was found to take.

Adaptive, it is additive increase and multiplicative decrease: what the endpoint refuses or drops halves the number;
a round of answers that were not much slower than those of the best round adds one. Knows no HTTP: whoever asks says
how it went.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

FIRST, MOST = 4, 64  # of an adaptive number
MIN_ROUND = 8  # answers that are looked at together: they are of prompts of several lengths
SLOWER = 1.5  # times the best round's mean: more requests at once would only wait


@dataclass(slots=True)
class Turn:
    """One request that may be sent. `refused`: the endpoint was too busy for it or went away; set by the asker.

    pause_s: for how long the endpoint wants to be left alone. round: of the number of requests that it was sent under.
    """

    round: int
    refused: bool = False
    pause_s: float = 0.0
    answered: bool = False


class Concurrency:
    """Owns the number. `questions` are begun and requests are sent only while fewer than that are under way.

    A question holds its place over all its requests: so its contexts follow each other, and a prefix cache pays.
    """

    def __init__(self, most: int, *, adaptive: bool = False) -> None:
        self.most, self.adaptive = most, adaptive
        self.limit = min(FIRST, most) if adaptive else most
        self.num_requests, self.largest = 0, 0
        self._sum = 0
        self._questions = self._requests = 0
        self._changed = asyncio.Condition()
        self._open_at_s = 0.0
        self._round, self._answers, self._seconds = 0, 0, 0.0
        self._best_s: float | None = None

    @property
    def mean(self) -> float | None:
        """Requests under way when one more was sent, itself counted; None before any was."""
        return self._sum / self.num_requests if self.num_requests else None

    @contextlib.asynccontextmanager
    async def question(self) -> AsyncIterator[None]:
        async with self._changed:
            await self._changed.wait_for(lambda: self._questions < self.limit)
            self._questions += 1
        try:
            yield
        finally:
            async with self._changed:
                self._questions -= 1
                self._changed.notify_all()

    @contextlib.asynccontextmanager
    async def request(self) -> AsyncIterator[Turn]:
        """Wait for a turn. Where the endpoint named a time to come again, all wait for it."""
        turn = await self._begin()
        begun_s = asyncio.get_running_loop().time()
        try:
            yield turn
        finally:
            took_s = asyncio.get_running_loop().time() - begun_s
            async with self._changed:
                self._requests -= 1
                self._learn(turn, took_s)
                self._changed.notify_all()

    async def _begin(self) -> Turn:
        clock = asyncio.get_running_loop().time
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: self._requests < self.limit)
                wait_s = self._open_at_s - clock()
                if wait_s <= 0:
                    self._requests += 1
                    self.num_requests += 1
                    self._sum += self._requests
                    self.largest = max(self.largest, self._requests)
                    return Turn(self._round)
            await asyncio.sleep(wait_s)

    def _learn(self, turn: Turn, took_s: float) -> None:
        if turn.pause_s > 0:
            self._open_at_s = max(self._open_at_s, asyncio.get_running_loop().time() + turn.pause_s)
        if not self.adaptive:
            return
        # Requests of one round that are refused together say it once.
        if turn.refused and turn.round == self._round:
            self._begin_round(max(1, self.limit // 2))
        elif turn.answered and turn.round == self._round:
            self._answers += 1
            self._seconds += took_s
            if self._answers >= max(MIN_ROUND, self.limit):
                self._end_round()

    def _end_round(self) -> None:
        mean_s = self._seconds / self._answers
        self._best_s = mean_s if self._best_s is None else min(self._best_s, mean_s)
        grows = mean_s <= SLOWER * self._best_s
        self._begin_round(min(self.most, self.limit + 1) if grows else self.limit)

    def _begin_round(self, limit: int) -> None:
        self.limit = limit
        self._round += 1
        self._answers, self._seconds = 0, 0.0
