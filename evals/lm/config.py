"""What a run of lm-eval's tasks is told. Frozen; an error names the option to change."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from evals.config import ConfigError, RunConfig

Truncate = Literal["refuse", "allow"]
TRUNCATE: tuple[Truncate, ...] = ("refuse", "allow")


@dataclass(frozen=True, slots=True)
class LmConfig:
    """lm-eval's tasks on one endpoint.

    server: whom to ask, how patiently, and where results go; its other fields are not used. chat: ask for chats, not
    for completions. limit: documents of each task; None: all. max_length: of prompt and answer, in tokens; None: what
    the endpoint says. tokenizer: file or directory; None: the endpoint's. truncate: allow cuts the begin of a prompt
    that is too long. prefix_token: id of that before a text which has nothing before it; None: what the tokenizer puts
    there. batch_size: prompts in a request.
    """

    server: RunConfig
    tasks: tuple[str, ...]
    chat: bool = False
    limit: int | None = None
    num_fewshot: int | None = None
    include_paths: tuple[Path, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int = 1
    max_length: int | None = None
    tokenizer: str | None = None
    truncate: Truncate = "refuse"
    prefix_token: int | None = None

    def __post_init__(self) -> None:
        if not self.tasks or not all(self.tasks):
            raise ConfigError("--tasks must be names with commas between them")
        if self.truncate not in TRUNCATE:
            raise ConfigError(f"--truncate must be one of {', '.join(TRUNCATE)}, got {self.truncate!r}")
        for option, value, least in (
            ("--limit", self.limit, 1),
            ("--num-fewshot", self.num_fewshot, 0),
            ("--batch", self.batch_size, 1),
            ("--max-length", self.max_length, 2),
            ("--prefix-token", self.prefix_token, 0),
        ):
            if value is not None and value < least:
                raise ConfigError(f"{option} must be at least {least}, got {value}")
        if self.chat and self.batch_size > 1:
            raise ConfigError("--batch: a chat request holds one chat; leave it out, or ask for --completions")
        for path in self.include_paths:
            if not path.is_dir():
                raise ConfigError(f"--include-path {path} is no directory")

    @property
    def noted(self) -> dict[str, Any]:
        """What decides the results, to stand beside them."""
        return {
            "mode": "chat" if self.chat else "completions",
            "limit": self.limit,
            "num_fewshot": self.num_fewshot,
            "metadata": dict(self.metadata),
            "tokenizer": self.tokenizer or "the endpoint's",
            "truncate": self.truncate,
            "prefix_token": self.prefix_token,
        }


def parse_metadata(text: str | None) -> dict[str, Any]:
    """Raises:
    ConfigError: no JSON object.
    """
    try:
        content = json.loads(text or "{}")
    except ValueError as error:
        raise ConfigError(f"--metadata is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"--metadata must be a JSON object, got {text}")
    return content
