"""The models that one server hosts: each with its tokenizer and the client of its engine process."""

import logging
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from models.config import ModelConfig
from models.digest import checkpoint_digest
from server.checkpoints import Checkpoint, CheckpointOptions, complete, open_checkpoint, resolve_models
from server.config import ConfigError, EngineConfig
from server.generation_config import FILE as GENERATION_FILE
from server.generation_config import SamplingDefaults
from server.process import EngineClient
from server.request import EngineRequest, FinishReason, SequenceUsage
from server.stop import StopChecker
from server.tokenizer import IncrementalDetokenizer, ModelTokenizer

log = logging.getLogger("fathom.models")


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
    defaults: SamplingDefaults
    engine: EngineClient
    created_s: int

    async def generate(
        self, request: EngineRequest, stops: Sequence[str], goes_on: bool
    ) -> AsyncGenerator[TextOutput, None]:
        """Text of one completion as it comes, the last output with a finish reason. Closing it aborts the request.

        Args:
            goes_on: whether it is the rest of the prompt's text, not a text of its own.
        Raises:
            EngineError: the engine refuses the request or ends on the way.
        """
        detokenizer = IncrementalDetokenizer(self.tokenizer, request.token_ids if goes_on else ())
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


def host_models(
    arguments: Sequence[str], config: EngineConfig, options: CheckpointOptions, *, created_s: int
) -> dict[str, HostedModel]:
    """What the arguments name, by served name; the engines are not started yet.

    All models are looked at before weights are fetched for any, so that a fault in the last is told at once.

    Raises:
        ConfigError: a model is not there, its tokenizer or config cannot be read, or two would bear the same name.
    """
    places = resolve_models(arguments, options)
    checkpoints = {name: open_checkpoint(*place, options) for name, place in places.items()}
    return {name: _host(name, checkpoint, config, created_s) for name, checkpoint in checkpoints.items()}


def _host(name: str, checkpoint: Checkpoint, config: EngineConfig, created_s: int) -> HostedModel:
    complete(checkpoint)
    directory, generation = checkpoint.directory, checkpoint.generation
    if generation.ignored:
        asked = ", ".join(generation.ignored)
        log.warning("%s: %s asks for what is not implemented: %s", name, GENERATION_FILE, asked)
    try:
        digest = checkpoint_digest(directory)
    except OSError as error:
        raise ConfigError(f"MODEL {checkpoint.argument!r}: {error}") from error
    engine = EngineClient(name, directory, config)
    return HostedModel(name, checkpoint.config, digest, checkpoint.tokenizer, generation.defaults, engine, created_s)
