"""The body of a chat request, in the words that the endpoint takes.

OpenAI-compatible servers differ in a few fields. What one of them refuses by name is left out, or named otherwise,
for the rest of the run; what was changed is told to the reader of the figures.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from evals.config import RunConfig
from evals.endpoints import NO_STREAM_OPTIONS, NO_TEMPERATURE, OTHER_LIMIT

REFUSALS = frozenset({400, 422})

NO_DRAW_TEMPERATURE = "--temperature left out, as the endpoint takes none: draws are at its own"
NO_SEED = "seed left out, as the endpoint refuses it: other draws each time"
NO_LOGPROBS = "logprobs left out, as the endpoint refuses it: answers have no log probabilities"

_UNSUPPORTED = re.compile(
    r"unsupported|(?:not|n't)[ _](?:be )?(?:support|permit|allow|accept|recogni|known|implement|valid|available)"
    r"|unrecogni|unknown|unexpected|forbidden|deprecated|extra (?:input|field)|only the default|no longer"
    r"|invalid (?:parameter|argument|field)|instead",
    re.IGNORECASE,
)
# Such a complaint is about the number: by another name it would be as wrong.
_WRONG_SIZE = re.compile(r"exceed|too (?:large|long|high|many|big|small)|at most|context length", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a request asks for beside its messages.

    salt: by which the server tells this prompt's prefixes from all others that it keeps. seed: of an answer that is
    drawn at the run's temperature; None: the greedy one.
    """

    salt: str | None = None
    seed: int | None = None

    @property
    def is_drawn(self) -> bool:
        return self.seed is not None


GREEDY = Wanted()


class Dialect:
    """What one endpoint does not take, as was known before or is found. `changes` says it in words; requests under
    way at once share it.
    """

    def __init__(self, known: Sequence[str] = ()) -> None:
        self.changes: list[str] = list(known)

    def body(self, config: RunConfig, messages: Sequence[dict[str, str]], wanted: Wanted = GREEDY) -> dict[str, Any]:
        limit = "max_completion_tokens" if OTHER_LIMIT in self.changes else "max_tokens"
        body: dict[str, Any] = {
            "model": config.model,
            "messages": list(messages),
            limit: config.max_tokens,
            "stream": True,
        }
        if wanted.salt is not None:
            body["cache_salt"] = wanted.salt
        if _no_temperature(wanted) not in self.changes:
            body["temperature"] = config.temperature if wanted.is_drawn else 0
        if wanted.is_drawn and NO_SEED not in self.changes:
            body["seed"] = wanted.seed
        if config.logprobs and NO_LOGPROBS not in self.changes:
            body["logprobs"] = True
        if NO_STREAM_OPTIONS not in self.changes:
            body["stream_options"] = {"include_usage": True}
        return body

    def learn(self, refusal: bytes, wanted: Wanted = GREEDY) -> None:
        """Take note of what a 400 or 422 refuses by name, of a request that asked for `wanted`.

        Of temperatures one may be refused and another taken: the draws' is tried whatever became of 0.
        """
        sentences = list(complaints(refusal))
        refused = [sentence for sentence in sentences if _UNSUPPORTED.search(sentence)]
        found = {
            NO_STREAM_OPTIONS: any(_names(sentence, "stream_options") for sentence in sentences),
            OTHER_LIMIT: any(
                _names(sentence, "max_tokens") and not _WRONG_SIZE.search(sentence) for sentence in refused
            ),
            _no_temperature(wanted): any(_names(sentence, "temperature") for sentence in refused),
            NO_SEED: wanted.is_drawn and any(_names(sentence, "seed") for sentence in refused),
            NO_LOGPROBS: any(_names(sentence, "logprobs") for sentence in refused),
        }
        self.changes += [change for change, holds in found.items() if holds and change not in self.changes]


def _no_temperature(wanted: Wanted) -> str:
    return NO_DRAW_TEMPERATURE if wanted.is_drawn else NO_TEMPERATURE


def complaints(refusal: bytes) -> Iterator[str]:
    """The sentences of an error body of any shape, without what it repeats of the request."""
    try:
        content = json.loads(refusal)
    except ValueError:
        content = refusal.decode("utf-8", errors="replace")
    for text in _texts(content):
        yield from re.split(r"(?<=[.;!])\s+", text)


def _texts(content: object) -> Iterator[str]:
    """One text for each error: the field's name before the message, where they stand apart."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        for part in content:
            yield from _texts(part)
    elif isinstance(content, dict):
        # Not "input": there FastAPI's validation repeats the request, every field of it.
        own = [content[key] for key in ("param", "loc", "code", "type", "message", "msg") if content.get(key)]
        yield " ".join(" ".join(map(str, part)) if isinstance(part, list) else str(part) for part in own)
        for key in ("error", "detail", "errors"):
            yield from _texts(content.get(key))


def _names(sentence: str, field: str) -> bool:
    return re.search(rf"(?<!\w){field}(?!\w)", sentence) is not None
