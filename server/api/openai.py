"""OpenAI's protocol: /v1/chat/completions, /v1/completions and /v1/models."""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from server.api.auth import KeyedRoute, tenant_of
from server.api.contexts import with_context
from server.api.generation import (
    CLIENT_CLOSED_REQUEST,
    COMPLETION_MAX_TOKENS,
    ClientGoneError,
    Job,
    chat_tokens,
    check_vocabulary,
    engine_requests,
    fathom_body,
    fit_max_tokens,
    prompt_tokens,
    sampling_params,
    until_disconnect,
    usage_body,
)
from server.api.logprobs import Telling, echo_of
from server.api.marks import NO_MARKS, Marks, chat_marks
from server.api.schemas import ChatRequest, CompletionRequest, GenerationRequest
from server.api.sse import DONE, SILENT_TOKEN, SSE, TextEvents, event
from server.api.state import find_model, served
from server.errors import ApiError
from server.hosting import HostedModel, TextOutput
from server.request import EngineRequest, Logprobs, TokenLogprob

SILENT_EVERY_S = 1.0

router = APIRouter(prefix="/v1", route_class=KeyedRoute)


@dataclass(frozen=True, slots=True)
class Asked:
    """One prompt of a request: what is told of it, how many tokens may follow it, and the field that it came in."""

    telling: Telling
    max_tokens: int
    field: str


@dataclass(frozen=True, slots=True)
class Completed:
    """All of one completion: its text, its last output, and of its tokens and its prompt's what is wanted."""

    text: str
    end: TextOutput
    logprobs: Sequence[tuple[TokenLogprob, int]] = ()
    prompt: Logprobs | None = None


@dataclass(frozen=True, slots=True)
class Shape:
    """How one endpoint writes its answers: a chat's messages and deltas, or plain text.

    tellings: of each prompt. num_choices: of each prompt; choices are counted through, one prompt's after the other's.
    """

    chat: bool
    tellings: Sequence[Telling]
    answer_id: str
    model: str
    created_s: int
    include_usage: bool
    num_choices: int = 1

    @property
    def num_completions(self) -> int:
        return len(self.tellings) * self.num_choices

    def telling(self, index: int) -> Telling:
        return self.tellings[index // self.num_choices]

    def _frame(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.answer_id,
            "object": kind,
            "created": self.created_s,
            "model": self.model,
            "choices": choices,
        }

    def _chunk_frame(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        frame = self._frame("chat.completion.chunk" if self.chat else "text_completion", choices)
        # Only the last chunk has figures; the field is there in all, as in OpenAI's answers.
        return frame | {"usage": None} if self.include_usage else frame

    def whole(self, completed: Sequence[Completed]) -> dict[str, Any]:
        firsts = completed[:: self.num_choices]
        fields = [each.prompt_body(first.prompt) for each, first in zip(self.tellings, firsts, strict=True)]
        choices = []
        for index, each in enumerate(completed):
            telling, field = self.telling(index), fields[index // self.num_choices]
            message = {"role": "assistant", "content": each.text, "refusal": None}
            before = telling.echo.text if telling.echo else ""
            content = {"message": message} if self.chat else {"text": before + each.text, **field}
            logprobs = telling.whole(each.prompt, each.logprobs)
            ended = {"logprobs": logprobs, "finish_reason": each.end.finish_reason}
            choices.append({"index": index, **content, **ended})
        frame = self._frame("chat.completion" if self.chat else "text_completion", choices)
        return frame | fields[0] if self.chat else frame

    def chunk(
        self,
        index: int,
        text: str | None,
        reason: str | None,
        *,
        first: bool = False,
        logprobs: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        role = {"role": "assistant"} if first else {}
        delta = (
            {"delta": {**role, **({} if text is None else {"content": text})}} if self.chat else {"text": text or ""}
        )
        choice = {"index": index, **delta, "logprobs": logprobs, "finish_reason": reason}
        return self._chunk_frame([choice])

    def first_chunks(self) -> list[dict[str, Any]]:
        """What every choice begins with before anything is computed."""
        if self.chat:
            return [self.chunk(index, "", None, first=True) for index in range(self.num_completions)]
        chunks = []
        for place, telling in enumerate(self.tellings):
            if telling.echo is not None and not telling.echoes_scores:
                chunks += self.echo_chunks(place * self.num_choices, None)
        return chunks

    def echo_chunks(self, first: int, prompt: Logprobs | None) -> list[dict[str, Any]]:
        """A prompt that is given back: in each of its choices, from the first on."""
        telling = self.telling(first)
        assert telling.echo is not None
        logprobs = telling.echoed(prompt)
        indices = range(first, first + self.num_choices)
        return [self.chunk(index, telling.echo.text, None, logprobs=logprobs) for index in indices]

    def figures(self, ends: Sequence[TextOutput]) -> dict[str, Any]:
        """What all completions took, beside the usage."""
        return fathom_body(ends, len(self.tellings))

    def usage(self, ends: Sequence[TextOutput]) -> dict[str, Any]:
        return usage_body(ends, len(self.tellings))

    def usage_chunk(self, usage: dict[str, Any]) -> dict[str, Any]:
        return self._chunk_frame([]) | {"usage": usage}


@router.post("/chat/completions")
async def chat_completions(body: ChatRequest, request: Request) -> Response:
    """A chat completion, streamed or whole."""
    hosted = find_model(request, body.model)
    with_context(request, body)
    token_ids = await chat_tokens(hosted, body)
    max_tokens = fit_max_tokens(hosted, len(token_ids), body.most_tokens, param="messages")
    marks = await chat_marks(hosted.tokenizer, body.messages, token_ids)
    telling = Telling(hosted.tokenizer, True, token_ids, body.num_top, body.prompt_logprobs)
    return await _answer(request, body, hosted, [Asked(telling, max_tokens, "messages")], marks=marks)


@router.post("/completions")
async def completions(body: CompletionRequest, request: Request) -> Response:
    """Plain completions of one prompt or of several, streamed or whole."""
    hosted = find_model(request, body.model)
    marks = with_context(request, body)
    prompts = body.prompts
    fields = ["prompt"] if len(prompts) == 1 else [f"prompt.{place}" for place in range(len(prompts))]
    asked = [await _asked(hosted, body, prompt, field) for prompt, field in zip(prompts, fields, strict=True)]
    return await _answer(request, body, hosted, asked, marks=marks)


async def _asked(hosted: HostedModel, body: CompletionRequest, prompt: str | list[int], field: str) -> Asked:
    token_ids = await prompt_tokens(hosted, prompt, body.max_tokens, param=field)
    max_tokens = fit_max_tokens(hosted, len(token_ids), body.max_tokens, param=field, default=COMPLETION_MAX_TOKENS)
    echo = await asyncio.to_thread(echo_of, hosted.tokenizer, prompt, token_ids) if body.echo else None
    telling = Telling(hosted.tokenizer, False, token_ids, body.num_top, body.prompt_logprobs, echo)
    return Asked(telling, max_tokens, field)


@router.get("/models")
async def models(request: Request) -> dict[str, Any]:
    return {"object": "list", "data": [model_body(hosted) for hosted in served(request).hosted.values()]}


@router.get("/models/{name:path}")
async def model(name: str, request: Request) -> dict[str, Any]:
    return model_body(find_model(request, name))


def model_body(hosted: HostedModel) -> dict[str, Any]:
    info = hosted.engine.info
    return {
        "id": hosted.name,
        "object": "model",
        "created": hosted.created_s,
        "owned_by": "fathom",
        "fathom": {
            "kind": hosted.config.kind,
            "weights_digest": hosted.digest,
            "max_context_tokens": info.max_context_tokens if info else None,
            "state": hosted.engine.state,
            "dtype": info.dtype if info else None,
            "state_dtype": info.state_dtype if info else None,
            "device": info.device if info else None,
            "bytes_per_token": info.bytes_per_token if info else None,
            "bytes_per_sequence": info.bytes_per_sequence if info else None,
            "sampling_defaults": asdict(hosted.defaults),
        },
    }


async def _answer(
    request: Request, body: GenerationRequest, hosted: HostedModel, asked: Sequence[Asked], *, marks: Marks = NO_MARKS
) -> Response:
    for each in asked:
        check_vocabulary(hosted, each.telling.token_ids, param=each.field)
    if body.logit_bias:
        check_vocabulary(hosted, list(body.logit_bias), param="logit_bias")
    chat = asked[0].telling.chat
    answer_id = f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}"
    first = EngineRequest(
        answer_id,
        tuple(asked[0].telling.token_ids),
        sampling_params(body, asked[0].max_tokens, hosted.defaults),
        cache_salt=body.cache_salt or "",
        tenant=tenant_of(request),
        priority=body.priority or 0,
        timeout_s=body.timeout_s,
        marks=marks.positions,
        mark_ttl_s=marks.ttl_s,
        # Stop strings are looked for on this side of the engine, in every token as it comes.
        whole=not (body.stream or body.stop),
    )
    whole = [first]
    for each in asked[1:]:
        params = sampling_params(body, each.max_tokens, hosted.defaults)
        whole.append(replace(first, token_ids=tuple(each.telling.token_ids), params=params))
    requests = engine_requests(answer_id, whole, body.n or 1)
    job = Job(hosted, requests, body.stop or [], served(request).metrics, goes_on=not chat, num_prompts=len(asked))
    tellings = [each.telling for each in asked]
    shape = Shape(chat, tellings, answer_id, hosted.name, int(time.time()), body.include_usage, body.n or 1)
    if not body.stream:
        return await _whole(request, job, shape)
    outputs = job.run()
    # The first output decides the status: what is refused, or dies before it, never begins a stream.
    try:
        begun = await until_disconnect(request, anext(outputs))
    except ClientGoneError:
        await outputs.aclose()
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    stream = events(begun, outputs, shape)
    return StreamingResponse(stream, media_type=SSE, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})


async def _whole(request: Request, job: Job, shape: Shape) -> Response:
    try:
        completed = await until_disconnect(request, _collect(job))
    except ClientGoneError:
        return Response(status_code=CLIENT_CLOSED_REQUEST)

    def respond() -> Response:
        ends = [each.end for each in completed]
        return JSONResponse(shape.whole(completed) | {"usage": shape.usage(ends), "fathom": shape.figures(ends)})

    # What is told of a long prompt takes a while to write.
    is_short = all(each.prompt is None for each in completed)
    return respond() if is_short else await asyncio.to_thread(respond)


async def _collect(job: Job) -> list[Completed]:
    """Each completion, in the order of their indices."""
    texts: list[list[str]] = [[] for _ in job.requests]
    logprobs: list[list[tuple[TokenLogprob, int]]] = [[] for _ in job.requests]
    ends: dict[int, TextOutput] = {}
    prompts: dict[int, Logprobs] = {}
    num_choices = len(job.requests) // job.num_prompts
    async for outputs in job.run():
        for output in outputs:
            texts[output.index].append(output.text)
            logprobs[output.index] += output.logprobs
            if output.prompt_logprobs is not None:
                prompts[output.index // num_choices] = output.prompt_logprobs
            if output.finish_reason is not None:
                ends[output.index] = output
    assert len(ends) == len(texts), "an engine ends a request with an output or an error"
    return [
        Completed("".join(texts[each]), ends[each], logprobs[each], prompts.get(each // num_choices))
        for each in range(len(texts))
    ]


async def events(
    first: list[TextOutput], outputs: AsyncGenerator[list[TextOutput], None], shape: Shape
) -> AsyncGenerator[bytes, None]:
    """Server-sent events, of all choices as they come. Whoever stops reading closes `outputs`, which aborts them.

    What has come together goes out together, each token in an event of its own.
    """
    try:
        said = [event(chunk) for chunk in shape.first_chunks()]
        texts = TextEvents(shape.chunk)
        ready, spoken_s = first, time.monotonic()
        ends: dict[int, TextOutput] = {}
        while True:
            for output in ready:
                said += _said(output, shape, texts, ends)
            if len(ends) == shape.num_completions:
                yield b"".join((*said, DONE))
                return
            if said:
                spoken_s = time.monotonic()
                yield b"".join(said)
            elif time.monotonic() - spoken_s > SILENT_EVERY_S:
                # A longer silence looks like a dead server to the client and to every proxy between.
                spoken_s = time.monotonic()
                yield SILENT_TOKEN
            said = []
            ready = await anext(outputs)
    except ApiError as error:
        # The status is sent already: the error is the last event, and [DONE] does not follow it.
        yield event(error.body)
    finally:
        await outputs.aclose()


def _said(output: TextOutput, shape: Shape, texts: TextEvents, ends: dict[int, TextOutput]) -> list[bytes]:
    """The events of one output. `ends` has each choice's last; with that of the last of all come the figures."""
    if output.finish_reason is None and output.prompt_logprobs is None:
        logprobs = shape.telling(output.index).generated(output.logprobs)
        return [texts.write(output.index, output.text, logprobs)] if output.text or logprobs else []
    chunks = _chunks(output, shape)
    if output.finish_reason is not None:
        ends[output.index] = output
        if len(ends) == shape.num_completions:
            chunks = _with_figures(chunks, [ends[index] for index in range(len(ends))], shape)
    return [event(chunk) for chunk in chunks]


def _chunks(output: TextOutput, shape: Shape) -> list[dict[str, Any]]:
    if output.prompt_logprobs is not None:
        return shape.echo_chunks(output.index, output.prompt_logprobs)
    logprobs = shape.telling(output.index).generated(output.logprobs)
    chunks = [shape.chunk(output.index, output.text, None, logprobs=logprobs)] if output.text or logprobs else []
    if output.finish_reason is not None:
        chunks.append(shape.chunk(output.index, None, output.finish_reason))
    return chunks


def _with_figures(chunks: list[dict[str, Any]], ends: Sequence[TextOutput], shape: Shape) -> list[dict[str, Any]]:
    """The stream's last chunks, with what all choices took in the very last."""
    if shape.include_usage:
        chunks = [*chunks, shape.usage_chunk(shape.usage(ends))]
    return [*chunks[:-1], chunks[-1] | {"fathom": shape.figures(ends)}]
