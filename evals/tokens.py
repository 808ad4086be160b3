"""How many tokens a document takes in a prompt, counted by the tokenizer of the model that is asked."""

import math

import aiohttp

from evals.config import ConfigError, RunConfig
from evals.prompts import render_document
from evals.records import Document
from loadtest.wire import error_message

SERVED, ESTIMATED = "served tokenizer", "estimate: bytes / 3"
# Texts are counted behind a blank line, as they stand in a prompt: many tokenizers treat a text's begin differently.
ANCHOR = "a\n\n"


class TokenCounter:
    """Counts through the endpoint's /tokenize, each document once. `source` says where the counts come from.

    An endpoint without /tokenize gets an estimate that rather counts too many tokens than too few, for English.
    """

    def __init__(self, session: aiohttp.ClientSession, config: RunConfig) -> None:
        self._session = session
        self._config = config
        self._anchor = 0
        self._counts: dict[str, int] = {}
        self.source = SERVED

    async def start(self) -> None:
        """Find out whether the endpoint counts.

        Raises:
            ConfigError: it cannot be reached, or refuses.
        """
        count = await self._ask(ANCHOR)
        if count is None:
            self.source = ESTIMATED
        else:
            self._anchor = count

    async def count(self, document: Document) -> int:
        """Tokens of the document's rendering, behind another one."""
        if document.id not in self._counts:
            text = render_document(document)
            counted = None if self.source == ESTIMATED else await self._ask(ANCHOR + text)
            self._counts[document.id] = (
                math.ceil(len(text.encode()) / 3) if counted is None else max(1, counted - self._anchor)
            )
        return self._counts[document.id]

    async def _ask(self, text: str) -> int | None:
        body = {"model": self._config.model, "prompt": text, "add_special_tokens": False}
        url = f"{self._config.root_url}/tokenize"
        try:
            async with self._session.post(url, json=body) as answer:
                if answer.status in (404, 405, 501):
                    return None
                raw = await answer.read()
                if answer.status != 200:
                    raise ConfigError(f"--endpoint {url} answers {answer.status}: {error_message(raw)}")
                content = await answer.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise ConfigError(f"--endpoint {url}: {type(error).__name__}: {error}") from error
        count = content.get("count") if isinstance(content, dict) else None
        return count if isinstance(count, int) else None
