"""Texts as tokens, each asked for once and many at a time."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import TypeVar

import aiohttp

from evals.client import open_session
from evals.config import ConfigError, RunConfig
from evals.lm.endpoint import Tokens

T = TypeVar("T")


class Encoder:
    """Owns what was encoded. Called from code that is not asynchronous, and that asks for one text after the other:
    `fetch` has them ready.
    """

    def __init__(self, tokens: Tokens, server: RunConfig) -> None:
        self._tokens, self._server = tokens, server
        self._encoded: dict[str, list[int]] = {}

    def fetch(self, texts: Iterable[str]) -> None:
        missing = [text for text in dict.fromkeys(texts) if text not in self._encoded]
        found = asyncio.run(self._each(missing, lambda session, text: self._tokens.encode(session, text)))
        self._encoded.update(zip(missing, found, strict=True))

    def encode(self, text: str) -> list[int]:
        if text not in self._encoded:
            self.fetch([text])
        return list(self._encoded[text])

    def first_token(self) -> int | None:
        """That before a text which has nothing before it; None where the tokenizer puts none there."""
        [tokens] = asyncio.run(self._each([""], lambda session, text: self._tokens.encode(session, text, special=True)))
        return tokens[0] if tokens else None

    def count_chats(self, chats: Iterable[str]) -> dict[str, int]:
        """Tokens of each list of messages, written as JSON."""
        known = list(dict.fromkeys(chats))
        found = asyncio.run(self._each(known, lambda session, chat: self._tokens.count_chat(session, json.loads(chat))))
        return dict(zip(known, found, strict=True))

    async def _each(self, texts: Sequence[str], ask: Callable[[aiohttp.ClientSession, str], Awaitable[T]]) -> list[T]:
        async with open_session(self._server) as session:
            return await each([partial(ask, session, text) for text in texts], self._server.concurrency)


async def each(
    calls: Sequence[Callable[[], Awaitable[T]]], concurrency: int, told: Callable[[], object] = lambda: None
) -> list[T]:
    """The results of all calls, in their order, so many at once. The first that fails ends the others.

    told: called as each is done.
    """
    waiting, found = iter(enumerate(calls)), dict[int, T]()

    async def worker() -> None:
        for place, call in waiting:
            found[place] = await call()
            told()

    try:
        async with asyncio.TaskGroup() as workers:
            for _ in range(min(concurrency, len(calls))):
                workers.create_task(worker())
    except ExceptionGroup as group:
        # Workers that fail together fail of one cause: the first says it.
        stopping, others = group.split(ConfigError)
        if stopping is None or others is not None:
            raise
        raise stopping.exceptions[0] from stopping
    return [found[place] for place in range(len(calls))]
