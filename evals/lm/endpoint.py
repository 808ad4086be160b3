"""What the endpoint is asked for lm-eval: what it can, how many tokens a text has, and the answers."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import aiohttp
from tokenizers import Tokenizer

from evals.client import ServedModel, fetch_model, open_session
from evals.config import ConfigError, RunConfig, RunStoppedError
from evals.lm.config import LmConfig
from evals.retry import come_again_s, pause
from evals.tokenizer_file import open_tokenizer
from loadtest.wire import error_message

PROBE = "a b"


class Tokens(Protocol):
    """Turns texts into what the model reads. Of a chat only the number is known, and may lack the template's own."""

    async def encode(self, session: aiohttp.ClientSession, text: str, *, special: bool = False) -> list[int]: ...

    async def count_chat(self, session: aiohttp.ClientSession, messages: Sequence[Mapping[str, str]]) -> int: ...


class FileTokens:
    """A tokenizer on this machine."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    async def encode(self, session: aiohttp.ClientSession, text: str, *, special: bool = False) -> list[int]:
        del session
        return list(self._tokenizer.encode(text, add_special_tokens=special).ids)

    async def count_chat(self, session: aiohttp.ClientSession, messages: Sequence[Mapping[str, str]]) -> int:
        return len(await self.encode(session, "\n\n".join(message["content"] for message in messages)))


class ServedTokens:
    """The endpoint's /tokenize."""

    def __init__(self, server: RunConfig) -> None:
        self._server = server

    async def encode(self, session: aiohttp.ClientSession, text: str, *, special: bool = False) -> list[int]:
        answer = await self._ask(session, {"prompt": text, "add_special_tokens": special})
        tokens = answer.get("tokens")
        if not isinstance(tokens, list):
            raise RunStoppedError(f"--tokenizer: {self._server.root_url}/tokenize gives no list of tokens")
        return tokens

    async def count_chat(self, session: aiohttp.ClientSession, messages: Sequence[Mapping[str, str]]) -> int:
        count = (await self._ask(session, {"messages": list(messages)})).get("count")
        if not isinstance(count, int):
            raise RunStoppedError(f"--tokenizer: {self._server.root_url}/tokenize does not count chats")
        return count

    async def _ask(self, session: aiohttp.ClientSession, what: Mapping[str, Any]) -> dict[str, Any]:
        return await post(session, self._server, "/tokenize", {"model": self._server.model, **what})


@dataclass(frozen=True, slots=True)
class Served:
    """limit: most tokens of prompt and answer. tokens: None where nobody counts."""

    model: ServedModel
    limit: int
    tokens: Tokens | None


async def probe(config: LmConfig) -> Served:
    """Find out what must be known before anything is asked.

    Raises:
        ConfigError: the endpoint cannot be reached, has no such model, or leaves unknown what a prompt may be or is.
    """
    async with open_session(config.server) as session:
        model = await fetch_model(session, config.server)
        limit = _limit(config, model)
        return Served(model, limit, await _tokens(config, session))


def _limit(config: LmConfig, model: ServedModel) -> int:
    most = model.max_context_tokens
    if config.max_length is None:
        if most is None:
            raise ConfigError(
                "--max-length: the endpoint does not say how many tokens its model takes; give the number"
            )
        return most
    if most is not None and config.max_length > most:
        raise ConfigError(f"--max-length {config.max_length} is more than the {most} tokens of {config.server.model}")
    return config.max_length


async def _tokens(config: LmConfig, session: aiohttp.ClientSession) -> Tokens | None:
    if config.tokenizer is not None:
        return FileTokens(open_tokenizer("--tokenizer", config.tokenizer))
    served = ServedTokens(config.server)
    try:
        if config.chat:
            await served.count_chat(session, [{"role": "user", "content": PROBE}])
        else:
            await served.encode(session, PROBE)
    except RunStoppedError as error:
        if config.truncate == "allow":
            return None
        raise ConfigError(
            f"--tokenizer: without one nobody sees whether a prompt is cut, and the endpoint has none that serves "
            f"({error}); give the file or directory of the model's, or --truncate allow"
        ) from error
    return served


async def post(session: aiohttp.ClientSession, server: RunConfig, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """The answer's body; asked again while the server says to come later or cannot be reached.

    Raises:
        RunStoppedError: it does not answer, or refuses.
    """
    url, num_failures = f"{server.root_url}{path}", 0
    while True:
        again_after_s: float | None = 0.0
        try:
            async with session.post(url, json=body) as answer:
                raw = await answer.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            problem = f"{type(error).__name__}: {error}"
        else:
            if answer.status == 200:
                return _object(url, raw)
            problem = f"status {answer.status}: {error_message(raw)}"
            again_after_s = come_again_s(answer)
        num_failures += 1
        if again_after_s is None or num_failures >= server.max_attempts:
            raise RunStoppedError(f"--endpoint {url}: {problem}")
        await pause(num_failures, again_after_s)


def _object(url: str, raw: bytes) -> dict[str, Any]:
    try:
        content = json.loads(raw)
    except ValueError as error:
        raise RunStoppedError(f"--endpoint {url} answers no JSON: {error}") from error
    if not isinstance(content, dict):
        raise RunStoppedError(f"--endpoint {url} answers no JSON object")
    return content
