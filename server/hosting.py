"""The models that one server hosts: each with its tokenizer and the client of its engine process."""

import logging
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

import msgspec

from models.config import ModelConfig
from models.digest import checkpoint_digest
from server.checkpoints import Checkpoint, CheckpointOptions, complete, open_checkpoint, resolve_models
from server.config import ConfigError, EngineConfig
from server.detokenizing import Detokenizer, detokenizer_of
from server.generation_config import FILE as GENERATION_FILE
from server.generation_config import SamplingDefaults
from server.process import DeadlineExceededError, EngineClient
from server.request import (
    EngineRequest,
    FinishReason,
    Logprobs,
    SequenceUsage,
    TokenLogprob,
    TokenOutput,
    join_logprobs,
)
from server.stop import StopChecker
from server.tokenizer import ModelTokenizer

log = logging.getLogger("fathom.models")


class TextOutput(msgspec.Struct, frozen=True):
    """What a token adds to one completion. `text` is empty where nothing is to be shown yet: half a character, the
    begin of a stop string, a special token. `num_tokens` counts all so far; the last output has reason and usage.
    `index`: which of the request's completions it is of.

    logprobs: of its tokens, where they are wanted, with the characters of the completion that came before each; the
    token that ended it is among them. prompt_logprobs: of all of its prompt's, in the first output of any of the
    prompt's completions, which has the index of their first.
    """

    text: str
    num_tokens: int
    finish_reason: FinishReason | None
    usage: SequenceUsage | None
    index: int = 0
    logprobs: tuple[tuple[TokenLogprob, int], ...] = ()
    prompt_logprobs: Logprobs | None = None


class _Completion:
    """One completion's text on its way out: its tokens become text, up to a stop string."""

    def __init__(self, index: int, detokenizer: Detokenizer, stops: Sequence[str], *, min_tokens: int = 0) -> None:
        self._index, self._detokenizer, self._checker = index, detokenizer, StopChecker(stops)
        self._min_tokens = min_tokens
        self._num_tokens = self._num_chars = 0

    @property
    def stopped(self) -> bool:
        return self._checker.stopped

    def take(self, output: TokenOutput) -> TextOutput | None:
        """What these tokens add; None if they came after the text's end."""
        ended = output.finish_reason is not None
        if self.stopped:
            # The engine may have gone on for a token or two before it heard of the stop string.
            return TextOutput("", self._num_tokens, "stop", output.usage, self._index) if ended else None
        self._num_tokens = output.usage.completion_tokens if output.usage else self._num_tokens + len(output.token_ids)
        text, logprobs = self._detokenize(output)
        if self._num_tokens > self._min_tokens:
            text = self._checker.add(text, last=ended)
        reason: FinishReason | None = "stop" if self.stopped and ended else output.finish_reason
        return TextOutput(text, self._num_tokens, reason, output.usage, self._index, logprobs)

    def _detokenize(self, output: TokenOutput) -> tuple[str, tuple[tuple[TokenLogprob, int], ...]]:
        """Their text and, where log-probabilities came with them, those with the place where each token begins."""
        last = output.finish_reason is not None
        if output.logprobs is None:
            return self._detokenizer.add(output.token_ids, last=last), ()
        texts, places = [], []
        for token_id in output.token_ids:
            places.append(self._num_chars)
            texts.append(self._detokenizer.add([token_id]))
            self._num_chars += len(texts[-1])
        entries = output.logprobs.entries()
        places += [self._num_chars] * (len(entries) - len(places))
        rest = self._detokenizer.add([], last=True) if last else ""
        return "".join([*texts, rest]), tuple(zip(entries, places, strict=True))


class _PromptFirst:
    """Holds back what is generated until the prompt's log-probabilities are complete, which come with one of several.

    Args:
        first: the one with which they come.
        num_wanted: tokens of the prompt that they are wanted of.
    """

    def __init__(self, first: int, num_wanted: int) -> None:
        self._first = first
        self._num_left = num_wanted
        self._parts: list[Logprobs] = []
        self._held: list[tuple[int, TokenOutput]] = []

    def take(self, index: int, output: TokenOutput) -> tuple[Logprobs | None, list[tuple[int, TokenOutput]]]:
        """What may be handed on: the prompt's, once and whole, and then all others."""
        if not self._num_left:
            return None, [(index, output)]
        if output.token_ids or output.finish_reason is not None or output.prompt_logprobs is None:
            self._held.append((index, output))
        if output.prompt_logprobs is not None:
            self._parts.append(output.prompt_logprobs)
            self._num_left -= len(output.prompt_logprobs)
        # An end that came too soon is handed on without them.
        if self._num_left and not (index == self._first and output.finish_reason is not None):
            return None, []
        whole = None if self._num_left else join_logprobs(self._parts)
        held, self._held, self._parts, self._num_left = self._held, [], [], 0
        return whole, held


class _Texts:
    """The texts of all completions of one request."""

    def __init__(
        self,
        tokenizer: ModelTokenizer,
        requests: Sequence[EngineRequest],
        stops: Sequence[str],
        goes_on: bool,
        num_prompts: int,
    ) -> None:
        self._completions = [
            _Completion(
                index,
                detokenizer_of(tokenizer, request.token_ids if goes_on else ()),
                stops,
                min_tokens=request.params.min_tokens,
            )
            for index, request in enumerate(requests)
        ]
        self._num_choices = len(requests) // num_prompts
        scores = requests[0].params.prompt_logprobs is not None
        self._prompts_first = [
            _PromptFirst(first, len(requests[first].token_ids) - 1 if scores else 0)
            for first in range(0, len(requests), self._num_choices)
        ]
        self._stopped: list[int] = []

    def take(self, number: int, output: TokenOutput) -> list[TextOutput]:
        """What an output of one completion adds to the texts of all."""
        place = number // self._num_choices
        prompt, ready = self._prompts_first[place].take(number, output)
        first = place * self._num_choices
        texts = [] if prompt is None else [TextOutput("", 0, None, None, first, prompt_logprobs=prompt)]
        for index, each in ready:
            text = self._completions[index].take(each)
            if text is None:
                continue
            texts.append(text)
            if self._completions[index].stopped and text.finish_reason is None:
                self._stopped.append(index)
        return texts

    def take_stopped(self) -> list[int]:
        """The completions that a stop string has ended since this was asked last: more of them is not wanted."""
        stopped, self._stopped = self._stopped, []
        return stopped


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
        self, requests: Sequence[EngineRequest], stops: Sequence[str], goes_on: bool, *, num_prompts: int = 1
    ) -> AsyncGenerator[list[TextOutput], None]:
        """Text of some completions as it comes, each one's last output with a finish reason. Closing it aborts them.

        Args:
            requests: as many of each prompt, one prompt's after the other's; a prompt's first scores it for all.
            goes_on: whether it is the rest of the prompt's text, not a text of its own.
        Raises:
            EngineError: the engine refuses the requests, all of them, or ends on the way.
        """
        texts = _Texts(self.tokenizer, requests, stops, goes_on, num_prompts)
        outputs = self.engine.generate(*requests, num_prompts=num_prompts)
        try:
            async for received in outputs:
                ready: list[TextOutput] = []
                for number, output in received:
                    if output.finish_reason == "timeout":
                        if ready:
                            yield ready
                        raise DeadlineExceededError(requests[number].timeout_s or 0.0)
                    ready += texts.take(number, output)
                for index in texts.take_stopped():
                    await self.engine.abort(requests[index].request_id)
                if ready:
                    yield ready
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
