"""lm-eval's model for endpoints, but for all that cuts a prompt without saying so. Brings torch along: loaded late."""

from collections.abc import Hashable, Mapping, Sequence
from copy import deepcopy
from functools import cached_property, partial
from operator import itemgetter
from typing import Any

import aiohttp
from lm_eval.api.instance import Instance
from lm_eval.api.task import Task
from lm_eval.models.openai_completions import LocalCompletionsAPI
from lm_eval.models.utils import chunks
from tqdm import tqdm

from evals.client import open_session
from evals.config import ConfigError, RunStoppedError
from evals.lm.config import LmConfig
from evals.lm.cuts import Cuts, Needed
from evals.lm.encoder import Encoder, each
from evals.lm.endpoint import Served, post
from loadtest.wire import parse_usage

DEFAULT_ANSWER = 256  # tokens, where a task names no number: lm-eval's own
# Names by which a task may limit its answers beside max_gen_toks, by which alone lm-eval makes room for them.
OTHER_LIMITS = ("max_tokens", "max_completion_tokens", "max_new_tokens")
GENERATION, ROLLING = "generate_until", "loglikelihood_rolling"


class EndpointLM(LocalCompletionsAPI):  # type: ignore[misc]
    """Asks for completions or chats.

    lm-eval takes 2,048 tokens for the longest prompt unless it is told, cuts longer ones without a word, and does not
    look at what the server counted. Here every prompt of every task is measured before the first is asked; what is
    sent, and what the server says that it read, is compared with that.
    """

    def __init__(self, config: LmConfig, served: Served, tasks: Sequence[Task]) -> None:
        server = config.server
        super().__init__(
            model=server.model,
            base_url=server.api_url,
            tokenizer_backend=None,
            max_length=served.limit,
            max_gen_toks=DEFAULT_ANSWER,
            batch_size=config.batch_size,
            # Its way for one request at a time adds a stop string that the other does not: always the other.
            num_concurrent=2,
        )
        self._config, self._limit, self._tasks = config, served.limit, tasks
        self.cuts = Cuts(served.limit, server.model, are_allowed=config.truncate == "allow")
        self._encoder = None if served.tokens is None else Encoder(served.tokens, server)
        self.tokenizer = self._encoder
        self.tokenized_requests = self._encoder is not None and not config.chat
        self._is_measured = False

    @property
    def eos_string(self) -> None:
        """None: an answer ends where its task says, or its model."""

    @cached_property
    def prefix_token_id(self) -> int:
        token = self._config.prefix_token
        if token is None and self._encoder is not None:
            token = self._encoder.first_token()
        if token is None:
            raise ConfigError("--prefix-token: a task scores a text with nothing before it; give the id of a token")
        return token

    def tok_encode(self, string: Any, *_: Any, **__: Any) -> Any:
        assert self._encoder is not None
        if not isinstance(string, str):
            return [self._encoder.encode(text) for text in string]
        return self._encoder.encode(string)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        self.measure()
        # lm-eval would leave one token of room; here the whole context may be filled.
        self.max_length = self._limit
        for request in requests:
            _limit_by_one_name(request.args[1])
        return list(super().generate_until(requests, disable_tqdm=disable_tqdm))

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        self.measure()
        self.max_length = self._limit - 1  # one token is generated behind a prompt that is scored
        return list(super().loglikelihood(requests, disable_tqdm=disable_tqdm))

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """In windows as long as the model takes: every token is scored, none is cut off."""
        self.measure()
        self.max_length = self._limit - 1
        return list(super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm))

    def measure(self) -> None:
        """See what every prompt of every task needs, once.

        Raises:
            ConfigError: one does not fit, and may not be cut.
        """
        if self._is_measured:
            return
        self._is_measured = True
        every = [one for task in self._tasks for one in task.instances]
        instances = [one for one in every if one.request_type != ROLLING]
        if len(instances) < len(every):
            _ = self.prefix_token_id  # what scores whole texts needs it
        if self._encoder is None:
            self.cuts.are_known = False
        elif self._config.chat:
            counts = self._encoder.count_chats(_text(instance) for instance in instances)
            self.cuts.add(_needed(instance, counts[_text(instance)]) for instance in instances)
        else:
            self._encoder.fetch(text for instance in instances for text in _parts(instance))
            self.cuts.add(_needed(instance, self._length(instance)) for instance in instances)

    def _length(self, instance: Instance) -> int:
        assert self._encoder is not None
        tokens = self._encoder.encode(_text(instance))
        needs_prefix = instance.request_type != GENERATION and not instance.args[0]
        return len(tokens) + (needs_prefix and tokens[:1] != [self.prefix_token_id])

    async def get_batched_requests(
        self,
        requests: Sequence[Any],
        cache_keys: Sequence[Any],
        *,
        generate: bool = True,
        ctxlens: Sequence[int] | None = None,
        gen_kwargs: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> list[list[Any]]:
        """Sends all, and gives the answers of each batch; in place of lm-eval's own, which does not look at usage."""
        size = self._config.batch_size
        lengths = list(chunks(ctxlens or [0] * len(requests), n=size))
        batches = list(zip(chunks(requests, n=size), chunks(cache_keys, n=size), lengths, strict=True))
        async with open_session(self._config.server) as session:
            with tqdm(total=len(batches), desc="asking") as bar:
                options = gen_kwargs if generate else None
                calls = [partial(self._ask, session, *batch, options) for batch in batches]
                return await each(calls, self._config.server.concurrency, bar.update)

    async def _ask(
        self,
        session: aiohttp.ClientSession,
        messages: list[Any],
        cache_keys: list[Any],
        ctxlens: list[int],
        gen_kwargs: Mapping[str, Any] | None,
    ) -> list[Any]:
        """The answers to one request of several prompts: texts, or for gen_kwargs None log-likelihoods."""
        generate = gen_kwargs is not None
        keys = [_key(key, generate=generate) for key in cache_keys]
        if self.tokenized_requests:
            self.cuts.check_read(keys, sum(map(len, messages)), "lm-eval")
        try:
            answer = await post(session, self._config.server, self._path, self._body(messages, gen_kwargs))
            usage = parse_usage(answer)
            if usage is not None:
                self.cuts.check_read(keys, usage.prompt_tokens, "the server")
            found = self._texts(answer) if generate else self._log_likelihoods(answer, messages, ctxlens)
            if len(found) != len(messages):
                raise ValueError(f"{len(found)} answers to {len(messages)} prompts")
        except (KeyError, TypeError, AttributeError, ValueError, AssertionError) as error:
            raise RunStoppedError(f"{self.cuts.name(keys)}: the answer cannot be read: {error!r}") from error
        except RunStoppedError as error:
            raise RunStoppedError(f"{self.cuts.name(keys)}: {error}") from error
        for key, value in zip(cache_keys, found, strict=True):
            if key is not None:
                self.cache_hook.add_partial(GENERATION if generate else "loglikelihood", key, value)
        return found

    @property
    def _path(self) -> str:
        return "/v1/chat/completions" if self._config.chat else "/v1/completions"

    def _body(self, messages: list[Any], gen_kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
        body: dict[str, Any] = self._create_payload(
            self.create_message(messages),
            generate=gen_kwargs is not None,
            gen_kwargs=None if gen_kwargs is None else deepcopy(dict(gen_kwargs)),
            seed=self._seed,
        )
        if self._config.chat:
            body["messages"] = body.pop("prompt")
        return body

    def _texts(self, answer: Mapping[str, Any]) -> list[str]:
        choices = sorted(answer["choices"], key=itemgetter("index"))
        return [(choice["message"]["content"] if self._config.chat else choice["text"]) or "" for choice in choices]

    def _log_likelihoods(
        self, answer: Mapping[str, Any], messages: list[list[int]], ctxlens: list[int]
    ) -> list[tuple[float, bool]]:
        """Raises:
        ValueError: the prompts' tokens and one generated behind each are not what was scored.
        """
        choices = sorted(answer["choices"], key=itemgetter("index"))
        for choice, tokens in zip(choices, messages, strict=True):
            num_scored = len(choice["logprobs"]["token_logprobs"])
            if num_scored != len(tokens) + 1:
                raise ValueError(f"{num_scored} log-probabilities for {len(tokens)} tokens and one generated")
        return list(self.parse_logprobs(outputs=dict(answer), ctxlens=ctxlens))


def _limit_by_one_name(options: dict[str, Any]) -> None:
    named = [options.pop(name) for name in OTHER_LIMITS if name in options]
    if named:
        options["max_gen_toks"] = named[0]


def _answer_limit(options: Mapping[str, Any]) -> int:
    return int(next((options[name] for name in (*OTHER_LIMITS, "max_gen_toks") if name in options), DEFAULT_ANSWER))


def _parts(instance: Instance) -> list[str]:
    """The texts that lm-eval wants as tokens: of two that follow each other also the first, without its last spaces."""
    if instance.request_type == GENERATION:
        return [_text(instance)]
    before = instance.args[0].rstrip()
    return [_text(instance), before] if before else [_text(instance)]


def _text(instance: Instance) -> str:
    """The prompt; of a chat its messages as JSON."""
    first = instance.args[0]
    if instance.request_type == GENERATION:
        return str(getattr(first, "prompt", first))
    return "".join(instance.args)


def _key(cache_key: Any, *, generate: bool) -> Hashable:
    """What tells one prompt from others; from what lm-eval keeps answers under."""
    if generate:
        return str(getattr(cache_key[0], "prompt", cache_key[0]))
    return None if cache_key is None else tuple(cache_key)


def _needed(instance: Instance, num_prompt: int) -> Needed:
    generate = instance.request_type == GENERATION
    return Needed(
        task=str(instance.task_name),
        doc_id=int(instance.doc_id or 0),
        place=instance.idx,
        key=_key(instance.args, generate=generate),
        num_prompt=num_prompt,
        # Behind a prompt that is scored one is generated, too.
        num_answer=_answer_limit(instance.args[1]) if generate else 1,
    )
