"""From a validated request to an engine request, and the running of it: what both OpenAI endpoints share."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from fastapi import Request

from server.api.schemas import ChatRequest, GenerationRequest
from server.chat_template import ChatTemplateError
from server.errors import ApiError, bad_request, from_engine_error
from server.generation_config import SamplingDefaults
from server.hosting import HostedModel, TextOutput
from server.metrics import Metrics
from server.process import RETRY_AFTER_S, EngineError, EngineUnavailableError
from server.request import EngineRequest, FinishReason, SamplingParams, SequenceUsage

COMPLETION_MAX_TOKENS = 16  # OpenAI's default for plain completions
CLIENT_CLOSED_REQUEST = 499  # nginx's word for it; nobody reads the answer, only the access log
LONG_TEXT = 20_000  # characters from which tokenizing leaves the event loop
T = TypeVar("T")


class ClientGoneError(Exception):
    """The client has closed the connection; nobody reads an answer."""


@dataclass(frozen=True, slots=True)
class Job:
    """One HTTP request on its way through a model, as a request to the engine for each completion that it asks for:
    as many of each prompt, one prompt's after the other's. `goes_on`: its answer is the rest of the prompt's text.
    """

    hosted: HostedModel
    requests: Sequence[EngineRequest]
    stops: list[str]
    metrics: Metrics
    goes_on: bool = False
    num_prompts: int = 1

    async def run(self) -> AsyncGenerator[list[TextOutput], None]:
        """Text outputs as they come, each completion's last with a finish reason and usage.

        The outcome is counted once, whatever the number of completions: the finish reason of the first where all end.

        Raises:
            ApiError: the engine refuses the request or ends on the way.
        """
        outcome = "disconnected"
        reasons: dict[int, FinishReason] = {}
        num_choices = len(self.requests) // self.num_prompts
        outputs = self.hosted.generate(self.requests, self.stops, self.goes_on, num_prompts=self.num_prompts)
        try:
            async for texts in outputs:
                for output in texts:
                    if output.usage is not None:
                        self.metrics.observe(self.hosted.name, output.usage, first=output.index % num_choices == 0)
                    if output.finish_reason is not None:
                        reasons[output.index] = output.finish_reason
                # Before the last is handed out: who has it need not come back for more.
                if len(reasons) == len(self.requests):
                    outcome = reasons[0]
                yield texts
        except EngineError as error:
            refusal = from_engine_error(error)
            outcome = refusal.code or "error"
            raise refusal from error
        except Exception:
            outcome = "error"
            raise
        finally:
            self.metrics.count(self.hosted.name, outcome)
            await outputs.aclose()


async def chat_tokens(hosted: HostedModel, body: ChatRequest) -> list[int]:
    """Raises: ApiError, where the template refuses the messages or they cannot fit."""
    messages = [message.as_template_input() for message in body.messages]
    num_chars = sum(len(message["content"]) for message in messages)

    def encode() -> list[int]:
        text = hosted.tokenizer.render_chat(messages, add_generation_prompt=True)
        refuse_by_bytes(hosted, text, body.most_tokens, param="messages")
        return hosted.tokenizer.encode(text, add_special_tokens=False)  # the template writes them itself

    try:
        return encode() if num_chars < LONG_TEXT else await asyncio.to_thread(encode)
    except ChatTemplateError as error:
        raise bad_request(f"messages: {error}", param="messages") from error


async def prompt_tokens(hosted: HostedModel, prompt: str | list[int], wanted: int | None, *, param: str) -> list[int]:
    """Raises: ApiError, where it cannot fit with the tokens that are wanted."""
    if not isinstance(prompt, str):
        return prompt
    refuse_by_bytes(hosted, prompt, wanted, param=param)
    return await asyncio.to_thread(hosted.tokenizer.encode, prompt, add_special_tokens=True)


def refuse_by_bytes(hosted: HostedModel, text: str, wanted: int | None, *, param: str) -> None:
    """Refuse a text that cannot fit however few tokens it makes, before it takes seconds to make them.

    Args:
        wanted: tokens that may follow it; at least one where it is None, none where it is only scored.
    Raises:
        ApiError
    """
    info = hosted.engine.info
    if info is None:
        return  # asked again when there are tokens
    num_bytes, limit = len(text.encode(errors="replace")), info.max_context_tokens
    least = hosted.tokenizer.least_tokens(num_bytes)
    if least + (1 if wanted is None else min(wanted, 1)) > limit:
        raise bad_request(
            f"{param}: the model's context is {limit} tokens, but {num_bytes} bytes of prompt, which are at least "
            f"{least} tokens, were asked for",
            param=param,
            code="context_length_exceeded",
        )


def sampling_params(body: GenerationRequest, max_tokens: int, defaults: SamplingDefaults) -> SamplingParams:
    """Raises: ApiError, where more tokens must come than may."""
    if (body.min_tokens or 0) > max_tokens:
        most = f"at most {max_tokens}, the tokens that may be generated"
        raise bad_request(f"min_tokens: must be {most}, not {body.min_tokens}", param="min_tokens")
    # The prompt is scored for its own field, and for the text that is given back.
    asked = (body.prompt_logprobs, body.num_top if body.echoes else None)
    wanted = [num_top for num_top in asked if num_top is not None]
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=defaults.temperature if body.temperature is None else body.temperature,
        top_p=defaults.top_p if body.top_p is None else body.top_p,
        top_k=defaults.top_k if body.top_k is None else max(0, body.top_k),
        min_p=defaults.min_p if body.min_p is None else body.min_p,
        # Seeds may be negative in OpenAI's API; the sampler wants 63 bits.
        seed=None if body.seed is None else body.seed % 2**63,
        stop_token_ids=tuple(body.stop_token_ids or ()),
        ignore_eos=body.ignore_eos,
        logprobs=body.num_top if max_tokens else None,
        prompt_logprobs=max(wanted, default=None),
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        repetition_penalty=(
            defaults.repetition_penalty if body.repetition_penalty is None else body.repetition_penalty
        ),
        logit_bias=tuple((body.logit_bias or {}).items()),
        min_tokens=body.min_tokens or 0,
    )


def engine_requests(answer_id: str, prompts: Sequence[EngineRequest], count: int) -> list[EngineRequest]:
    """One for each completion, `count` of each prompt, one prompt's after the other's, with ids of their own.

    A prompt's have seeds of their own, which are those that it would have alone; without a seed the engine draws one
    for each. Its first scores the prompt for all.
    """
    requests: list[EngineRequest] = []
    for prompt in prompts:
        seed = prompt.params.seed
        for place in range(count):
            params = replace(
                prompt.params,
                seed=None if seed is None else (seed + place) % 2**63,
                prompt_logprobs=None if place else prompt.params.prompt_logprobs,
            )
            requests.append(replace(prompt, request_id=f"{answer_id}-{len(requests)}", params=params))
    return requests


def check_vocabulary(hosted: HostedModel, token_ids: Sequence[int], *, param: str) -> None:
    """A tokenizer may know more tokens than the model, whose engine would not survive one of those.

    Raises:
        ApiError
    """
    vocab_size, largest = hosted.config.vocab_size, max(token_ids)
    if largest >= vocab_size:
        raise bad_request(
            f"{param}: token id {largest} is outside the model's vocabulary of {vocab_size} tokens", param=param
        )


def fit_max_tokens(
    hosted: HostedModel, num_prompt: int, wanted: int | None, *, param: str, default: int | None = None
) -> int:
    """How many tokens may be generated; where `wanted` is None, `default` or all that the context leaves.

    Raises:
        ApiError: the prompt is empty, or does not fit, or the engine has never been ready, so that nobody knows.
    """
    if num_prompt == 0:
        raise bad_request(f"{param}: must not be empty", param=param)
    engine = hosted.engine
    if engine.info is None:
        raise from_engine_error(EngineUnavailableError(engine.state, RETRY_AFTER_S, engine.last_error))
    limit = engine.info.max_context_tokens
    if num_prompt + (1 if wanted is None else wanted) > limit:
        asked = f" and {wanted} to generate" if wanted else ""
        raise bad_request(
            f"{param}: the model's context is {limit} tokens, but {num_prompt} tokens of prompt{asked} were asked for",
            param=param,
            code="context_length_exceeded",
        )
    left = limit - num_prompt
    if wanted is not None:
        return wanted
    return left if default is None else min(default, left)


async def until_disconnect(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Await `work`, but stop it as soon as the client closes the connection.

    Raises:
        ClientGoneError: it did.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGoneError
        return working.result()
    finally:
        for task in (working, watching):
            task.cancel()
        # Cancelling the work must have freed what it held before anything else happens.
        with contextlib.suppress(asyncio.CancelledError, ApiError):
            await working


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def usage_body(ends: Sequence[TextOutput], num_prompts: int = 1) -> dict[str, Any]:
    """OpenAI's usage object, from the last outputs of all completions: as many of each prompt, one prompt's after the
    other's.

    A prompt counts once, as does what its first completion found of it in the cache: the others find what the first
    computed, which would be counted as saved where nothing was.
    """
    firsts, num_tokens = _firsts(ends, num_prompts), sum(end.num_tokens for end in ends)
    num_prompt_tokens = sum(first.prompt_tokens for first in firsts)
    return {
        "prompt_tokens": num_prompt_tokens,
        "completion_tokens": num_tokens,
        "total_tokens": num_prompt_tokens + num_tokens,
        "prompt_tokens_details": {"cached_tokens": sum(first.cached_tokens for first in firsts)},
    }


def fathom_body(ends: Sequence[TextOutput], num_prompts: int = 1) -> dict[str, Any]:
    """What the completions took: seconds per phase on the server's clock, and bytes of cache.

    queue_s and prefill_s are those of a prompt's first, which computed it: the others wait for it and then find it. Of
    several prompts they are the longest, as decode_s is that of the one that decoded longest. The bytes are sums, in
    which a block that several hold counts for each: what they would take without sharing, and at most what they took.
    """
    usages, firsts = _usages(ends), _firsts(ends, num_prompts)
    return {
        "queue_s": round(max(first.queue_s for first in firsts), 6),
        "prefill_s": round(max(first.prefill_s for first in firsts), 6),
        "decode_s": round(max(usage.decode_s for usage in usages), 6),
        "kv_bytes": sum(usage.kv_bytes for usage in usages),
        "state_bytes": sum(usage.state_bytes for usage in usages),
        "peak_bytes": sum(usage.peak_bytes for usage in usages),
    }


def _firsts(ends: Sequence[TextOutput], num_prompts: int) -> list[SequenceUsage]:
    """Of each prompt, what its first completion took."""
    return _usages(ends[:: len(ends) // num_prompts])


def _usages(ends: Sequence[TextOutput]) -> list[SequenceUsage]:
    usages = [end.usage for end in ends if end.usage is not None]
    assert len(usages) == len(ends) > 0, "a completion ended without its usage"
    return usages
