"""What one evaluation run is told. Frozen; an error names the option to change."""

from dataclasses import dataclass, field
from pathlib import Path

from evals.records import PERMISSIONS, Permission

DEFAULT_BUDGETS = (0, 256, 512, 1024, 2048, 4096)


class ConfigError(Exception):
    """An option has a value that cannot work, or does not fit what the output directory already holds."""


class RunStoppedError(ConfigError):
    """Asking began and cannot go on; what was answered until then is in the store."""


@dataclass(frozen=True, slots=True)
class RunConfig:
    """One model on one dataset.

    budgets: most tokens of documents, ascending; 0 asks without documents. num_questions: how many of the dataset's
    questions, from its first. max_attempts: how often a request that the server could not take is sent; eight take
    half a minute, in which an engine that died is back.
    api_key is sent and never stored.
    """

    endpoint: str
    model: str
    out: Path
    budgets: tuple[int, ...] = DEFAULT_BUDGETS
    permissions: tuple[Permission, ...] = ("must_answer",)
    num_questions: int = 200
    max_tokens: int = 32
    concurrency: int = 4
    timeout_s: float = 300.0
    max_attempts: int = 8
    api_key: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not self.endpoint.startswith(("http://", "https://")):
            raise ConfigError(f"--endpoint must be an http:// or https:// URL, got {self.endpoint!r}")
        if not self.budgets or min(self.budgets) < 0 or list(self.budgets) != sorted(set(self.budgets)):
            raise ConfigError(f"--budgets must be ascending whole numbers from 0, each once, got {self.budgets}")
        unknown = [permission for permission in self.permissions if permission not in PERMISSIONS]
        if unknown or not self.permissions:
            raise ConfigError(f"--permission must be one of {', '.join(PERMISSIONS)}, got {self.permissions}")
        for option, value in {
            "--n": self.num_questions,
            "--max-tokens": self.max_tokens,
            "--concurrency": self.concurrency,
            "--timeout": self.timeout_s,
            "--max-attempts": self.max_attempts,
        }.items():
            if value <= 0:
                raise ConfigError(f"{option} must be above 0, got {value}")

    @property
    def root_url(self) -> str:
        """The server's address without the protocol's own prefix."""
        return self.endpoint.rstrip("/").removesuffix("/v1").rstrip("/")

    @property
    def api_url(self) -> str:
        return f"{self.root_url}/v1"
