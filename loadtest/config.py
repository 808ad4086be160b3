"""What one load run is asked to do: checked once, frozen, free of secrets when written down."""

import math
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from loadtest.latency import Slo

ArrivalProcess = Literal["poisson", "constant"]
NO_LIMITS = Slo()
MAX_ARRIVALS = 1_000_000
MAX_PROCESSES = 64


class LoadError(Exception):
    """Base of everything this room raises for its caller.

    LoadError
    |- ConfigError    an option is wrong; the text names the flag
    |- EndpointError  the endpoint cannot be measured: unreachable, unknown model, refused key
    """


class ConfigError(LoadError):
    pass


class EndpointError(LoadError):
    pass


@dataclass(frozen=True, slots=True)
class LoadConfig:
    """One open-loop run.

    Attributes:
        rate: arrivals per second, > 0.
        context_tokens: wanted prompt length, chat template included.
        output_tokens: max_tokens of every request.
        warmup_s: seconds at the start of the schedule, sent but not measured; duration_s comes on top.
        max_in_flight: None = uncapped, as an open loop should be. A capped request keeps its scheduled time.
        stop_timeout_s: how long unfinished requests are waited for after the last scheduled arrival.
        processes: locust workers; worker i sends arrivals i, i + processes, ...
        salt: goes into every prompt's nonce. Equal seed and salt give byte-equal requests.
    """

    endpoint: str
    model: str
    out: Path
    rate: float
    context_tokens: int
    output_tokens: int
    duration_s: float
    salt: str
    arrivals: ArrivalProcess = "poisson"
    seed: int = 0
    warmup_s: float = 0.0
    max_in_flight: int | None = None
    stop_timeout_s: float = 60.0
    slo: Slo = NO_LIMITS
    processes: int = 1
    api_key: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        _check_url(self.endpoint)
        if not self.model:
            raise ConfigError("--model must not be empty")
        _check_positive("--rate", self.rate)
        _check_positive("--duration", self.duration_s)
        _check_at_least("--warmup", self.warmup_s, 0)
        _check_at_least("--stop-timeout", self.stop_timeout_s, 0)
        _check_at_least("--context", self.context_tokens, 1)
        _check_at_least("--output", self.output_tokens, 1)
        _check_at_least("--max-in-flight", self.max_in_flight, 1)
        _check_at_least("--processes", self.processes, 1)
        if self.max_in_flight is not None and self.max_in_flight < self.processes:
            raise ConfigError(f"--max-in-flight must be at least --processes ({self.processes})")
        if self.processes > MAX_PROCESSES:
            raise ConfigError(f"--processes must be at most {MAX_PROCESSES}, got {self.processes}")
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.isprintable()):
            raise ConfigError("--api-key must be printable ASCII")
        for flag, limit in (("ttft", self.slo.ttft_s), ("tpot", self.slo.tpot_s), ("e2e", self.slo.e2e_s)):
            if limit is not None:
                _check_positive(f"--{flag}-slo", limit)
        if self.rate * self.schedule_s > MAX_ARRIVALS:
            raise ConfigError(f"--rate times --duration gives more than {MAX_ARRIVALS} arrivals")

    @property
    def schedule_s(self) -> float:
        """Length of the whole schedule, warm-up included."""
        return self.warmup_s + self.duration_s

    def to_json(self) -> dict[str, Any]:
        """Everything but the key."""
        fields = asdict(self)
        del fields["api_key"]
        return {**fields, "out": str(self.out)}


def _check_url(endpoint: str) -> None:
    """Refuse what the client could not use, or would silently use otherwise."""
    try:
        parts = urlsplit(endpoint)
        host = parts.hostname or ""
        host.encode("idna")
    except ValueError as error:
        raise ConfigError(f"--endpoint has a bad host ({error}): {endpoint!r}") from error
    if parts.username is not None or parts.password is not None:
        # Not repeated: it may hold a password.
        raise ConfigError("--endpoint must not hold a user or a password; a key goes into --api-key")
    if parts.scheme not in ("http", "https") or not host:
        raise ConfigError(f"--endpoint must look like http://host:port, got {endpoint!r}")
    if parts.query or parts.fragment or re.search(r"[^!-~]", parts.path):
        raise ConfigError(f"--endpoint must end in a host, a port or a plain path, got {endpoint!r}")
    try:
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"--endpoint has a bad port: {endpoint!r}") from error
    if port == 0:
        raise ConfigError(f"--endpoint has a bad port, 0: {endpoint!r}")


def _check_positive(flag: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(f"{flag} must be a number > 0, got {value}")


def _check_at_least(flag: str, value: float | None, limit: int) -> None:
    if value is not None and not (math.isfinite(value) and value >= limit):
        raise ConfigError(f"{flag} must be at least {limit}, got {value}")
