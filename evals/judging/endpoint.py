"""A judge at any OpenAI-compatible endpoint: three-way by the accepted answers, or by claims against the documents."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import aiohttp

from evals.client import Answer, ask, fetch_model
from evals.config import ConfigError, RunConfig
from evals.dialect import Dialect
from evals.judging.cases import Case, Opinion, Stop
from evals.judging.prompts import (
    KINDS,
    Kind,
    Messages,
    UnreadableReplyError,
    answer_messages,
    check_messages,
    prompt_digest,
    read_claims,
    read_labels,
    read_verdict,
    split_messages,
)
from evals.records import Verdict
from evals.retry import COME_AGAIN

# A model that thinks before it says one word needs room for that.
MAX_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class JudgeConfig:
    """Where the judge is, and what it is asked. api_key is sent and never stored."""

    url: str
    model: str
    kind: Kind = "answer"
    max_tokens: int = MAX_TOKENS
    concurrency: int = 4
    timeout_s: float = 300.0
    max_attempts: int = 8
    api_key: str | None = field(default=None, repr=False)

    @classmethod
    def checked(
        cls, url: str | None, model: str | None, *, kind: str = "answer", concurrency: int = 4, api_key: str | None
    ) -> Self:
        """Raises:
        ConfigError: an option is missing, or cannot be.
        """
        if url is None or model is None:
            raise ConfigError("--judge and --judge-model belong together")
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"--judge must be an http:// or https:// URL, got {url!r}")
        known = next((name for name in KINDS if name == kind), None)
        if known is None:
            raise ConfigError(f"--kind must be one of {', '.join(KINDS)}, got {kind!r}")
        if concurrency <= 0:
            raise ConfigError(f"--concurrency must be above 0, got {concurrency}")
        return cls(url, model, known, concurrency=concurrency, api_key=api_key)

    @property
    def requests(self) -> RunConfig:
        """The same in the words of the client that asks for answers; nothing is written to its directory."""
        return RunConfig(
            endpoint=self.url,
            model=self.model,
            out=Path(),
            max_tokens=self.max_tokens,
            timeout_s=self.timeout_s,
            max_attempts=self.max_attempts,
            api_key=self.api_key,
        )


class _NoReplyError(Exception):
    """The endpoint gave no whole reply; `answer` says why."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.error or "the judge's reply was cut off at its longest")
        self.answer = answer


class EndpointJudge:
    """One kind of question to one model. It keeps what the endpoint was found not to take."""

    def __init__(self, session: aiohttp.ClientSession, config: JudgeConfig) -> None:
        self.name = f"judge:{config.kind}:{config.model}:{prompt_digest(config.kind)}"
        self.reads_documents = config.kind == "claims"
        self.dialect = Dialect()
        self._session, self._config = session, config.requests

    async def check(self) -> None:
        """Raises:
        ConfigError: nothing answers there, or it does not serve the model.
        """
        try:
            await fetch_model(self._session, self._config)
        except ConfigError as error:
            told = str(error).replace("--endpoint", "--judge").replace("--model ", "--judge-model ")
            raise ConfigError(told) from error

    async def opinion(self, case: Case) -> Opinion:
        try:
            return await (self._by_claims(case) if self.reads_documents else self._by_answers(case))
        except UnreadableReplyError as error:
            return Opinion("unscored", error=str(error))
        except _NoReplyError as error:
            return Opinion("unscored", error=str(error), stop=_stop(error.answer))

    async def _by_answers(self, case: Case) -> Opinion:
        reply = await self._reply(answer_messages(case))
        return Opinion(read_verdict(reply), detail=reply)

    async def _by_claims(self, case: Case) -> Opinion:
        claims = read_claims(await self._reply(split_messages(case)))
        if not claims:
            return Opinion("abstained", detail="[]")
        labels = read_labels(await self._reply(check_messages(case, claims)), len(claims))
        return opinion_of_claims(claims, labels)

    async def _reply(self, messages: Messages) -> str:
        answer = await ask(self._session, self._config, self.dialect, messages)
        if answer.error is not None or answer.finish_reason == "length":
            raise _NoReplyError(answer)
        return answer.text


def opinion_of_claims(claims: Sequence[str], labels: Sequence[str]) -> Opinion:
    """The share of claims that the documents support; one that they do not is enough for a hallucination."""
    supported = labels.count("supported")
    detail = [{"claim": claim, "label": label} for claim, label in zip(claims, labels, strict=True)]
    verdict: Verdict = "correct" if supported == len(claims) else "hallucinated"
    return Opinion(verdict, supported / len(claims), json.dumps(detail, ensure_ascii=False))


def _stop(answer: Answer) -> Stop | None:
    """Whether the endpoint would treat all others like this one."""
    if answer.error is None:
        return None
    status = answer.refused_status
    return "refused" if status is not None and 400 <= status < 500 and status not in COME_AGAIN else "unanswered"
