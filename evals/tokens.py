"""How many tokens a document takes in a prompt, counted by the tokenizer of the model that is asked."""

import contextlib
import json
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import aiohttp

from evals.config import ConfigError, EndpointLostError, RunConfig
from evals.prompts import render_document, render_question
from evals.records import ESTIMATED, SERVED, Document
from evals.retry import come_again_s, pause
from loadtest.wire import error_message

# Texts are counted behind a blank line, as they stand in a prompt: many tokenizers treat a text's begin differently.
ANCHOR = "a\n\n"
NOT_IMPLEMENTED = 501


class DocumentCounter(Protocol):
    """Tells how many tokens a document takes, rendered behind another one."""

    async def count(self, document: Document) -> int: ...

    async def count_all(self, documents: Sequence[Document]) -> int: ...


def estimate(text: str) -> int:
    """Rather too many tokens than too few, for English."""
    return math.ceil(len(text.encode()) / 3)


class TextCounter:
    """Counts by a function of texts, each document once: a tokenizer that is at hand, or the estimate."""

    def __init__(self, count_text: Callable[[str], int]) -> None:
        self._count_text = count_text
        self._counts: dict[str, int] = {}

    @classmethod
    def of_tokenizer(cls, num_tokens: Callable[[str], int]) -> "TextCounter":
        anchor = num_tokens(ANCHOR)
        return cls(lambda text: max(1, num_tokens(ANCHOR + text) - anchor))

    async def count(self, document: Document) -> int:
        if document.id not in self._counts:
            self._counts[document.id] = self._count_text(render_document(document))
        return self._counts[document.id]

    async def count_all(self, documents: Sequence[Document]) -> int:
        return sum([await self.count(document) for document in documents])


class TokenCounter:
    """Counts through the endpoint's /tokenize, each document once. `source` says where the counts come from.

    An endpoint without /tokenize gets an estimate that rather counts too many tokens than too few, for English.
    """

    def __init__(self, session: aiohttp.ClientSession, config: RunConfig) -> None:
        self._session = session
        self._config = config
        self._url = config.target.tokenize_url
        self._anchor = 0
        self._counts: dict[str, int] = {}
        self._questions: dict[str, int] = {}
        self._counts_chats = True
        self.source = SERVED

    async def start(self) -> None:
        """Find out whether the endpoint counts.

        Raises:
            ConfigError: it cannot be reached, or fails.
        """
        count = None if self._url is None else await self._ask({"prompt": ANCHOR, "add_special_tokens": False})
        if count is None:
            self.source = ESTIMATED
        else:
            self._anchor = count

    async def count(self, document: Document) -> int:
        """Tokens of the document's rendering, behind another one.

        Raises:
            ConfigError: the endpoint counted before and does no longer.
        """
        if document.id not in self._counts:
            self._counts[document.id] = await self._count_text(render_document(document))
        return self._counts[document.id]

    async def count_question(self, question: str) -> int:
        """Tokens of the question as it stands behind documents.

        Raises:
            ConfigError: the endpoint counted before and does no longer.
        """
        if question not in self._questions:
            self._questions[question] = await self._count_text(render_question(question))
        return self._questions[question]

    async def count_all(self, documents: Sequence[Document]) -> int:
        """Tokens of all of them together."""
        known = self._counts
        return sum([known[each.id] if each.id in known else await self.count(each) for each in documents])

    async def count_chat(self, messages: Sequence[dict[str, str]]) -> int:
        """Tokens of a whole chat: with the model's template where /tokenize takes chats, else of the texts alone."""
        texts = await self._count_text("\n\n".join(message["content"] for message in messages))
        if self.source == ESTIMATED or not self._counts_chats:
            return texts
        chat = None
        # A server that knows no chats may refuse them in any way, or overlook the field and count nothing.
        with contextlib.suppress(ConfigError):
            chat = await self._ask({"messages": list(messages)})
        self._counts_chats = bool(chat)
        return max(texts, chat or 0)

    async def _count_text(self, text: str) -> int:
        if self.source == ESTIMATED:
            return estimate(text)
        counted = await self._ask({"prompt": ANCHOR + text, "add_special_tokens": False})
        if counted is None:
            # An estimate among counts would be a budget of two measures.
            raise ConfigError(f"--endpoint {self._url} counts no longer: it did when the run began")
        return max(1, counted - self._anchor)

    async def _ask(self, what: dict[str, Any]) -> int | None:
        """A count, or None where the endpoint gives none; asked again while it says to come later."""
        assert self._url is not None
        num_failures = 0
        while True:
            again_after_s: float | None = 0.0
            nobody = False
            try:
                async with self._session.post(self._url, json={"model": self._config.model, **what}) as answer:
                    raw = await answer.read()
            except (aiohttp.ClientError, TimeoutError) as error:
                problem = f"{type(error).__name__}: {error}"
                nobody = isinstance(error, aiohttp.ClientConnectionError)
            else:
                if answer.status == 200:
                    return _read_count(raw)
                again_after_s = come_again_s(answer)
                if again_after_s is None and (answer.status < 500 or answer.status == NOT_IMPLEMENTED):
                    return None
                problem = f"answers {answer.status}: {error_message(raw)}"
            num_failures += 1
            if again_after_s is None or num_failures == self._config.max_attempts:
                raise (EndpointLostError if nobody else ConfigError)(f"--endpoint {self._url} {problem}")
            await pause(num_failures, again_after_s)


def _read_count(raw: bytes) -> int | None:
    try:
        content = json.loads(raw)
    except ValueError:
        return None
    count = content.get("count") if isinstance(content, dict) else None
    return count if isinstance(count, int) else None
