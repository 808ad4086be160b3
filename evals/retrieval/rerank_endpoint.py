"""A reranker behind HTTP, by the interface that vLLM, Jina, Cohere and others share.

POST {"model", "query", "documents", "top_n"} -> {"results": [{"index", "relevance_score"}, ...]}
"""

import random
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import httpx2

from evals.config import ConfigError
from evals.records import Document
from evals.retrieval.ranking import text_of
from evals.retry import COME_AGAIN, FIRST_BACKOFF_S, MAX_BACKOFF_S

TIMEOUT_S = 120.0
MAX_ATTEMPTS = 6  # take eight seconds
SHOWN = 200  # characters of an answer that says nothing else


class RerankEndpoint:
    """model: its name there; None where the server has but one. api_key is sent and never stored."""

    def __init__(self, url: str, model: str | None = None, api_key: str | None = None) -> None:
        self._url, self._model = url, model
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        place = urlsplit(url)
        # Without a query or a user, which may be secrets.
        self.name = f"{place.scheme}://{place.netloc.rpartition('@')[2]}{place.path}" + (f" {model}" if model else "")

    def scores(self, question: str, documents: Sequence[Document]) -> list[float]:
        """Raises:
        ConfigError: nobody answers, or something else than one score for each document.
        """
        body: dict[str, Any] = {"query": question, "documents": [text_of(document) for document in documents]}
        body |= {"top_n": len(documents)} | ({"model": self._model} if self._model else {})
        answer = self._post(body)
        try:
            content = answer.json()
            scores = {int(one["index"]): float(one["relevance_score"]) for one in content["results"]}
        except (ValueError, KeyError, TypeError) as error:
            shape = '{"results": [{"index", "relevance_score"}]}'
            raise ConfigError(f"--reranker: {self.name} does not answer {shape}: {answer.text[:SHOWN]}") from error
        if scores.keys() != set(range(len(documents))):
            raise ConfigError(f"--reranker: {self.name} gives {len(documents)} documents {len(scores)} scores")
        return [scores[place] for place in range(len(documents))]

    def _post(self, body: dict[str, Any]) -> httpx2.Response:
        """Sent again while the server says to come later."""
        for attempt in range(1, MAX_ATTEMPTS + 1):
            try:
                answer = httpx2.post(self._url, json=body, headers=self._headers, timeout=TIMEOUT_S, trust_env=False)
            except (httpx2.HTTPError, httpx2.InvalidURL, UnicodeError) as error:
                raise ConfigError(f"--reranker: {self.name} does not answer: {error}") from error
            if answer.status_code == httpx2.codes.OK:
                return answer
            if answer.status_code not in COME_AGAIN:
                break
            time.sleep(_pause_s(attempt, answer.headers.get("Retry-After", "")))
        told = f"{answer.status_code}: {answer.text[:SHOWN]}"
        raise ConfigError(f"--reranker: {self.name} answers {told}")


def _pause_s(num_failures: int, wanted: str) -> float:
    backoff_s = min(FIRST_BACKOFF_S * 2.0 ** (num_failures - 1), MAX_BACKOFF_S) * random.uniform(0.5, 1.5)
    return max(backoff_s, float(wanted)) if wanted.isdigit() else backoff_s
