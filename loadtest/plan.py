"""From a configuration to a plan on disk: the schedule, the prompts, and what the workers must know.

The plan is made before the load begins, by a process that times nothing, and is handed to locust in files.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from loadtest import arrivals, workload
from loadtest.client import Target
from loadtest.config import ConfigError, LoadConfig
from loadtest.endpoint import Options, chat_body, check_model, count_tokens, find_options
from loadtest.records import PlannedRequest, to_line
from loadtest.wire import Usage

PROBE_TIMEOUT_S = 120.0
TYPICAL_CHARS_PER_TOKEN = 4.0
# How the run and its locust child hand things to each other: two variables, and files in the run's directory.
PLAN_VARIABLE, API_KEY_VARIABLE = "FATHOM_LOAD_PLAN", "FATHOM_LOAD_API_KEY"
WORKERS_FILE, REQUESTS_FILE, START_FILE = "workers.json", "plan.jsonl", "start.txt"
REQUESTS_DRAFT = f"{REQUESTS_FILE}.part"
RECORDS_PREFIX, HEALTH_PREFIX = "records-", "worker-"
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class WorkerPlan:
    """What every worker must know. The key is not here: it travels in the environment, never on disk."""

    endpoint: str
    name: str
    num_requests: int
    processes: int
    max_in_flight: int | None
    stop_timeout_s: float


@dataclass(frozen=True, slots=True)
class Plan:
    """`counting` says how prompt tokens were found: "counted" or "estimated" and from what."""

    scheduled_s: tuple[float, ...]
    options: Options
    exact_tokens: bool
    counting: str
    notes: tuple[str, ...]


def make_plan(config: LoadConfig, progress: Progress) -> Plan:
    """Ask the endpoint what it can do, then write the plan into config.out.

    Raises:
        ConfigError, EndpointError: what was written until then is the caller's to remove.
    """
    scheduled_s = arrivals.schedule(config.arrivals, rate=config.rate, duration_s=config.schedule_s, seed=config.seed)
    if not any(at >= config.warmup_s for at in scheduled_s):
        raise ConfigError("--rate and --duration give no arrival after the warm-up; raise one of them")
    target = Target.parse(config.endpoint, api_key=config.api_key, timeout_s=PROBE_TIMEOUT_S)
    check_model(target, config.model)
    trial = workload.trial_prompt(seed=config.seed, salt=config.salt, target=config.context_tokens)
    options, usage = find_options(target, config.model, trial)
    counting = _choose_counting(config, target, trial, usage)
    try:
        _write_requests(config, scheduled_s, options, counting, progress)
    except OSError as error:
        raise ConfigError(f"--out {config.out}: the plan cannot be written: {error}") from error
    plan = WorkerPlan(
        endpoint=config.endpoint,
        name=f"chat {config.context_tokens} tokens",
        num_requests=len(scheduled_s),
        processes=config.processes,
        max_in_flight=config.max_in_flight,
        stop_timeout_s=config.stop_timeout_s,
    )
    (config.out / WORKERS_FILE).write_text(json.dumps(asdict(plan)), encoding="utf-8")
    notes = options.notes()
    if not counting.exact:
        notes.append(f"prompt tokens were {counting.source}")
    return Plan(scheduled_s, options, counting.exact, counting.source, tuple(notes))


def read_worker_plan(directory: Path) -> WorkerPlan:
    return WorkerPlan(**json.loads((directory / WORKERS_FILE).read_text(encoding="utf-8")))


@dataclass(frozen=True, slots=True)
class _Counting:
    """How prompt tokens are found, and the longest prompt that leaves room for the output, where that is told."""

    count: workload.Counter
    exact: bool
    source: str
    max_tokens: int | None = None


def _choose_counting(config: LoadConfig, target: Target, trial: str, usage: Usage | None) -> _Counting:
    counted = count_tokens(target, config.model, trial)
    if counted is not None:
        limit = counted[1]
        _check_room(config, limit)
        return _Counting(
            _endpoint_counter(config, target),
            exact=True,
            source="counted by the endpoint's POST /tokenize",
            max_tokens=None if limit is None else limit - config.output_tokens,
        )
    if usage is not None and usage.prompt_tokens > 0:
        ratio = len(trial) / usage.prompt_tokens
        source = f"estimated at {ratio:.2f} characters per token, as one measured prompt had"
    else:
        ratio = TYPICAL_CHARS_PER_TOKEN
        source = f"estimated at {ratio:.0f} characters per token, a typical figure: the endpoint counts nothing"
    return _Counting(workload.estimating_counter(chars_per_token=ratio), exact=False, source=source)


def _endpoint_counter(config: LoadConfig, target: Target) -> workload.Counter:
    def count(text: str) -> int:
        counted = count_tokens(target, config.model, text)
        if counted is None:
            raise ConfigError(f"--context {config.context_tokens}: the endpoint stopped counting prompt tokens")
        return counted[0]

    return count


def _check_room(config: LoadConfig, limit: int | None) -> None:
    wanted = config.context_tokens + config.output_tokens
    if limit is not None and wanted > limit:
        raise ConfigError(f"--context plus --output is {wanted}; {config.model} takes at most {limit} tokens")


def _write_requests(
    config: LoadConfig,
    scheduled_s: tuple[float, ...],
    options: Options,
    counting: _Counting,
    progress: Progress,
) -> None:
    price = workload.tokens_per_word(counting.count, seed=config.seed, salt=config.salt)
    sizing = workload.Sizing(counting.count, config.context_tokens, price, counting.max_tokens)
    draft = config.out / REQUESTS_DRAFT
    with draft.open("w", encoding="utf-8") as file:
        for index, at in enumerate(scheduled_s):
            prompt = workload.size_prompt(sizing, seed=config.seed, salt=config.salt, index=index)
            body = json.dumps(chat_body(config.model, prompt.text, config.output_tokens, options))
            file.write(to_line(PlannedRequest(index, at, prompt.num_tokens, body)))
            progress("prompts", index + 1, len(scheduled_s))
    draft.replace(config.out / REQUESTS_FILE)
