"""The models that one server hosts: each with its tokenizer and the client of its engine process."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from pathlib import Path

from models.config import ModelConfig
from models.digest import checkpoint_digest
from models.embedded import PREFIX, embedded_directory
from models.errors import ModelError
from models.families import read_config
from server.config import ConfigError, EngineConfig
from server.process import EngineClient
from server.request import EngineRequest, FinishReason, SequenceUsage
from server.stop import StopChecker
from server.tokenizer import IncrementalDetokenizer, ModelTokenizer


@dataclass(frozen=True, slots=True)
class TextOutput:
    """What a token adds to one completion. `text` is empty where nothing is to be shown yet: half a character, the
    begin of a stop string, a special token. `num_tokens` counts all so far; the last output has reason and usage.
    """

    text: str
    num_tokens: int
    finish_reason: FinishReason | None
    usage: SequenceUsage | None


@dataclass(frozen=True, slots=True)
class HostedModel:
    """One model as the API sees it. `config` and `digest` are known before the engine has loaded the weights."""

    name: str
    config: ModelConfig
    digest: str
    tokenizer: ModelTokenizer
    engine: EngineClient
    created_s: int

    async def generate(self, request: EngineRequest, stops: Sequence[str]) -> AsyncGenerator[TextOutput, None]:
        """Text of one completion as it comes, the last output with a finish reason. Closing it aborts the request.

        Raises:
            EngineError: the engine refuses the request or ends on the way.
        """
        detokenizer = IncrementalDetokenizer(self.tokenizer)
        checker = StopChecker(stops)
        num_tokens = 0
        outputs = self.engine.generate(request)
        try:
            async for output in outputs:
                ended = output.finish_reason is not None
                if checker.stopped:
                    # The engine may have gone on for a token or two before it heard of the stop string.
                    if ended:
                        yield TextOutput("", num_tokens, "stop", output.usage)
                    continue
                num_tokens = output.usage.completion_tokens if output.usage else num_tokens + len(output.token_ids)
                text = checker.add(detokenizer.add(output.token_ids, last=ended), last=ended)
                if checker.stopped and not ended:
                    await self.engine.abort(request.request_id)
                reason: FinishReason | None = "stop" if checker.stopped and ended else output.finish_reason
                yield TextOutput(text, num_tokens, reason, output.usage)
        finally:
            await outputs.aclose()


def resolve_model(argument: str) -> tuple[str, Path]:
    """The served name and the directory that a command line argument means.

    `embedded:NAME`, a directory, which is served under its own name and may have a '=' in its path, or
    `NAME=DIRECTORY`.

    Raises:
        ConfigError: there is no such model.
    """
    if argument.startswith(PREFIX):
        try:
            return argument, embedded_directory(argument)
        except ModelError as error:
            raise ConfigError(f"MODEL: {error}") from error
    directory = Path(argument).expanduser().resolve()
    name = directory.name
    if not directory.is_dir() and "=" in argument:
        name, _, path = argument.partition("=")
        directory = Path(path).expanduser().resolve()
    if not directory.is_dir():
        raise ConfigError(
            f"MODEL {argument!r}: there is no directory {directory}; give embedded:NAME, a directory, or NAME=DIRECTORY"
        )
    if not name:
        raise ConfigError(f"MODEL {argument!r}: the name before '=' is empty")
    return name, directory


def host_models(arguments: Sequence[str], config: EngineConfig, *, created_s: int) -> dict[str, HostedModel]:
    """What the arguments name, by served name; the engines are not started yet.

    Raises:
        ConfigError: a model is not there, its tokenizer or config cannot be read, or two would bear the same name.
    """
    hosted: dict[str, HostedModel] = {}
    for argument in arguments:
        name, directory = resolve_model(argument)
        if name in hosted:
            raise ConfigError(f"MODEL {argument!r}: {name!r} is served already; tell them apart with NAME=DIRECTORY")
        try:
            model_config, tokenizer = read_config(directory), ModelTokenizer(directory)
            digest = checkpoint_digest(directory)
        except (ModelError, OSError) as error:
            raise ConfigError(f"MODEL {argument!r}: {error}") from error
        hosted[name] = HostedModel(
            name, model_config, digest, tokenizer, EngineClient(name, directory, config), created_s
        )
    return hosted
