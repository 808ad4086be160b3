"""What one evaluation run is told. Frozen; an error names the option to change."""

import math
from dataclasses import dataclass, field
from pathlib import Path

from evals.endpoints import CHAT, Endpoint, parse_endpoint
from evals.records import (
    CACHE_STATES,
    CONDITIONS,
    ENERGIES,
    ORDERS,
    PERMISSIONS,
    UNITS,
    WITHOUT_LENGTH,
    CacheState,
    Condition,
    Energy,
    Order,
    Permission,
    Unit,
)

MINILM = "minilm"  # the small model that a package brings
DEFAULT_BUDGETS = (0, 256, 512, 1024, 2048, 4096)
DEFAULT_TEMPERATURE = 0.7
MAX_DRAWS, MAX_TEMPERATURE = 100, 2.0
NO_RERANKER, RERANK_DEPTH = "none", 50


class ConfigError(Exception):
    """An option has a value that cannot work, or does not fit what the output directory already holds."""


class RunStoppedError(ConfigError):
    """Asking began and cannot go on; what was answered until then is in the store."""


class EndpointLostError(RunStoppedError):
    """Nobody answers any more at an address that did answer."""


@dataclass(frozen=True, slots=True)
class RerankSettings:
    """reranker: "none", a cross-encoder (a directory, or a name on the Hub), or an endpoint's URL. depth: how many of
    the first documents it puts in order. model: its name at the endpoint. api_key is sent and never stored.
    """

    reranker: str = NO_RERANKER
    depth: int = RERANK_DEPTH
    model: str | None = None
    api_key: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.depth <= 0:
            raise ConfigError(f"--rerank-depth must be above 0, got {self.depth}")
        if self.model and not self.is_endpoint:
            raise ConfigError(f"--reranker-model names a model at an endpoint; --reranker is {self.reranker!r}")

    @property
    def is_endpoint(self) -> bool:
        return self.reranker.startswith(("http://", "https://"))


@dataclass(frozen=True, slots=True)
class RunConfig:
    """One model on one dataset.

    endpoint: see evals/endpoints.py.
    budgets: most of documents, ascending, in `unit`; 0 asks without documents. conditions: see evals/conditions.py.
    order: of the documents. depth: where what supports the answer stands, from 0 to 1; None: another place for each
    question, all evenly. retriever, retriever_model, rerank, index_cache: see evals/retrieval. cache: cold has the
    server recompute every prompt. num_questions: how many of the dataset's questions, from its first. max_attempts: how
    often a request that the server could not take is sent; eight take half a minute, in which an engine that died is
    back. logprobs: of the answers' tokens are asked for. draws: how many further answers to each prompt, at
    `temperature`; see evals/draws.py.
    concurrency: questions asked at once; adaptive: the most of them, fewer where the endpoint takes no more.
    shard: which part of the questions of how many, from 1 on.
    scrape_interval_s: between two looks at the server's /metrics, 0 for none. energy: whether this machine's GPUs are
    the ones that answer; auto: where the endpoint is this machine.
    api_key is sent and never stored.
    """

    endpoint: str
    model: str
    out: Path
    budgets: tuple[int, ...] = DEFAULT_BUDGETS
    unit: Unit = "tokens"
    conditions: tuple[Condition, ...] = ("natural",)
    order: Order = "rank"
    depth: float | None = None
    permissions: tuple[Permission, ...] = ("must_answer",)
    retriever: str = "bm25"
    retriever_model: str = MINILM
    rerank: RerankSettings = field(default_factory=RerankSettings)
    index_cache: Path | None = None
    cache: CacheState = "warm"
    seed: int = 0
    num_questions: int = 200
    max_tokens: int = 32
    concurrency: int = 4
    adaptive: bool = False
    shard: tuple[int, int] = (1, 1)
    timeout_s: float = 300.0
    max_attempts: int = 8
    scrape_interval_s: float = 1.0
    energy: Energy = "auto"
    logprobs: bool = False
    draws: int = 0
    temperature: float = DEFAULT_TEMPERATURE
    api_key: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        try:
            parse_endpoint(self.endpoint)
        except ValueError as error:
            raise ConfigError(f"--endpoint {error}") from error
        if not self.budgets or min(self.budgets) < 0 or list(self.budgets) != sorted(set(self.budgets)):
            raise ConfigError(f"--budgets must be ascending whole numbers from 0, each once, got {self.budgets}")
        self._check_choices()
        if not 0 <= self.draws <= MAX_DRAWS:
            raise ConfigError(f"--draws must be from 0 to {MAX_DRAWS}, got {self.draws}")
        if not 0 < self.temperature <= MAX_TEMPERATURE:
            raise ConfigError(
                f"--temperature must be above 0 and at most {MAX_TEMPERATURE:g}, got {self.temperature:g}"
            )
        if self.target.replayed is not None and (self.draws or self.logprobs):
            raise ConfigError("--draws and --logprobs ask a server for more; --endpoint replay:FILE asks nobody")
        for option, value in {
            "--n": self.num_questions,
            "--max-tokens": self.max_tokens,
            "--concurrency": self.concurrency,
            "--timeout": self.timeout_s,
            "--max-attempts": self.max_attempts,
        }.items():
            if value <= 0:
                raise ConfigError(f"{option} must be above 0, got {value}")
        if not 0 <= self.scrape_interval_s < math.inf:
            raise ConfigError(f"--scrape-interval must be 0 or more seconds, got {self.scrape_interval_s:g}")

    def _check_choices(self) -> None:
        for option, values, known in (
            ("--permission", self.permissions, PERMISSIONS),
            ("--condition", self.conditions, CONDITIONS),
            ("--unit", (self.unit,), UNITS),
            ("--order", (self.order,), ORDERS),
            ("--cache", (self.cache,), CACHE_STATES),
            ("--energy", (self.energy,), ENERGIES),
        ):
            if not values or any(value not in known for value in values):
                raise ConfigError(f"{option} must be one of {', '.join(known)}, got {', '.join(values) or 'none'}")
        if not 1 <= self.shard[0] <= self.shard[1]:
            raise ConfigError(f"--shard must be from 1/n to n/n, got {self.shard[0]}/{self.shard[1]}")
        if self.shard[1] > self.num_questions > 0:
            raise ConfigError(f"--shard: {self.shard[1]} parts are more than the {self.num_questions} questions of --n")
        if self.depth is not None and not 0 <= self.depth <= 1:
            raise ConfigError(f"--depth must be from 0 to 1, got {self.depth:g}")
        if self.budgets == (0,) and any(condition not in (*WITHOUT_LENGTH, "natural") for condition in self.conditions):
            raise ConfigError("--budgets 0 leaves no room for documents, which the --condition has")

    def budgets_of(self, condition: Condition) -> tuple[int, ...]:
        """At which budgets a condition is asked; one without a length at 0."""
        return (0,) if condition in WITHOUT_LENGTH else tuple(budget for budget in self.budgets if budget > 0)

    @property
    def asked_conditions(self) -> tuple[Condition, ...]:
        """Those that were wanted, and that without documents where there is a budget of 0."""
        wanted = {*self.conditions, *(["closed"] if 0 in self.budgets else [])}
        return tuple(condition for condition in CONDITIONS if condition in wanted and self.budgets_of(condition))

    def has_part_in(self, number: int) -> bool:
        """Whether the question of that number is in this shard."""
        part, num_parts = self.shard
        return number % num_parts == part - 1

    @property
    def target(self) -> Endpoint:
        return parse_endpoint(self.endpoint)

    @property
    def root_url(self) -> str:
        """The server's address without the protocol's own prefix."""
        return self.target.root_url

    @property
    def api_url(self) -> str:
        return self.target.chat_url.removesuffix(CHAT)
