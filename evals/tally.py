"""How a run goes: what was asked, what failed, and when it makes no sense to ask any more."""

from dataclasses import dataclass, field

from evals.config import ConfigError, EndpointLostError, RunConfig
from evals.retry import MAX_FIRST_REFUSALS, is_hopeless
from evals.sample import Sampled

# So many samples in a row, each after all its attempts, mean that nobody will be there for the next one either.
MAX_UNANSWERED = 5


@dataclass(frozen=True, slots=True)
class RunResult:
    """How one run went. `asked` leaves out what the store held already; `failed` are rows with an error; `left_out`
    are those for which the question has no context: no gold to give, or none that fits into the budget; `unrecorded`
    those of which a file of recorded answers has none. `draws` were asked beside them, of which `failed_draws` have an
    error.
    """

    total: int
    asked: int
    failed: int
    first_error: str | None
    kind: str
    counting: str
    left_out: int = 0
    unrecorded: int = 0
    draws: int = 0
    failed_draws: int = 0


@dataclass(slots=True)
class Tally:
    """Counts one run's samples; `finished` has those that the store held already."""

    total: int = 0
    finished: int = 0
    asked: int = 0
    failed: int = 0
    left_out: int = 0
    unrecorded: int = 0
    unanswered: int = 0
    first_error: str | None = None
    last_error: str | None = None
    first_refusals: list[int | None] = field(default_factory=list)

    def add(self, sampled: Sampled) -> None:
        self.finished += 1
        self.asked += 1
        self.unanswered = self.unanswered + 1 if sampled.nobody else 0
        if sampled.row.error is not None:
            self.failed += 1
            self.last_error = sampled.row.error
            self.first_error = self.first_error or sampled.row.error
        if len(self.first_refusals) < MAX_FIRST_REFUSALS:
            self.first_refusals.append(sampled.refused_status)

    @property
    def is_refused(self) -> bool:
        return is_hopeless(self.first_refusals)

    def check_refusals(self, config: RunConfig) -> None:
        """Raises:
        ConfigError: the endpoint refuses all that it is asked.
        """
        if self.is_refused:
            raise ConfigError(
                f"--endpoint {config.api_url}: the first {MAX_FIRST_REFUSALS} samples of {config.model} were all "
                f"refused, so no more are asked: {self.first_error}"
            )

    def check_presence(self, config: RunConfig) -> None:
        """Raises:
        EndpointLostError: nobody was there for several samples in a row.
        """
        if self.unanswered >= MAX_UNANSWERED:
            raise EndpointLostError(
                f"--endpoint {config.api_url}: nobody was there for the last {MAX_UNANSWERED} samples of "
                f"{config.model}, so no more are asked ({self.last_error}); "
                "what was answered is kept, and the same command goes on there"
            )
