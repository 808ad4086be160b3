"""What one evaluation run is told. Frozen; an error names the option to change."""

from dataclasses import dataclass, field
from pathlib import Path

from evals.records import (
    CACHE_STATES,
    CONDITIONS,
    ORDERS,
    PERMISSIONS,
    UNITS,
    WITHOUT_LENGTH,
    CacheState,
    Condition,
    Order,
    Permission,
    Unit,
)

DEFAULT_BUDGETS = (0, 256, 512, 1024, 2048, 4096)


class ConfigError(Exception):
    """An option has a value that cannot work, or does not fit what the output directory already holds."""


class RunStoppedError(ConfigError):
    """Asking began and cannot go on; what was answered until then is in the store."""


class EndpointLostError(RunStoppedError):
    """Nobody answers any more at an address that did answer."""


@dataclass(frozen=True, slots=True)
class RunConfig:
    """One model on one dataset.

    budgets: most of documents, ascending, in `unit`; 0 asks without documents. conditions: see evals/conditions.py.
    order: of the documents. depth: where what supports the answer stands, from 0 to 1; None: another place for each
    question, all evenly. retriever, retriever_model, index_cache: see evals/retrieval. cache: cold has the server
    recompute every prompt. num_questions: how many of the dataset's
    questions, from its first. max_attempts: how often a request that the server could not take is sent; eight take
    half a minute, in which an engine that died is back. concurrency: questions asked at once; adaptive: the most of
    them, fewer where the endpoint takes no more. shard: which part of the questions of how many, from 1 on.
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
    retriever_model: str = "minilm"
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
    api_key: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not self.endpoint.startswith(("http://", "https://")):
            raise ConfigError(f"--endpoint must be an http:// or https:// URL, got {self.endpoint!r}")
        if not self.budgets or min(self.budgets) < 0 or list(self.budgets) != sorted(set(self.budgets)):
            raise ConfigError(f"--budgets must be ascending whole numbers from 0, each once, got {self.budgets}")
        self._check_choices()
        for option, value in {
            "--n": self.num_questions,
            "--max-tokens": self.max_tokens,
            "--concurrency": self.concurrency,
            "--timeout": self.timeout_s,
            "--max-attempts": self.max_attempts,
        }.items():
            if value <= 0:
                raise ConfigError(f"{option} must be above 0, got {value}")

    def _check_choices(self) -> None:
        for option, values, known in (
            ("--permission", self.permissions, PERMISSIONS),
            ("--condition", self.conditions, CONDITIONS),
            ("--unit", (self.unit,), UNITS),
            ("--order", (self.order,), ORDERS),
            ("--cache", (self.cache,), CACHE_STATES),
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
    def root_url(self) -> str:
        """The server's address without the protocol's own prefix."""
        return self.endpoint.rstrip("/").removesuffix("/v1").rstrip("/")

    @property
    def api_url(self) -> str:
        return f"{self.root_url}/v1"
