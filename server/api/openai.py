"""OpenAI's protocol: /v1/chat/completions, /v1/completions and /v1/models."""

import json
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from server.api.auth import KeyedRoute, tenant_of
from server.api.contexts import with_context
from server.api.generation import (
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
from server.api.marks import NO_MARKS, Marks, chat_marks
from server.api.schemas import ChatRequest, CompletionRequest, GenerationRequest
from server.api.state import find_model, served
from server.errors import ApiError
from server.hosting import HostedModel, TextOutput
from server.request import EngineRequest

SSE = "text/event-stream"
DONE = "data: [DONE]\n\n"
# A comment of server-sent events, which clients skip: tokens come, though none with text.
SILENT_TOKEN = ": a token without text\n\n"
SILENT_EVERY_S = 1.0
CLIENT_CLOSED_REQUEST = 499  # nginx's word for it; nobody reads the answer, only the access log

router = APIRouter(prefix="/v1", route_class=KeyedRoute)


@dataclass(frozen=True, slots=True)
class Shape:
    """How one endpoint writes its answers: a chat's messages and deltas, or plain text."""

    chat: bool
    answer_id: str
    model: str
    created_s: int
    include_usage: bool
    num_choices: int = 1

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

    def whole(self, texts: Sequence[str], ends: Sequence[TextOutput]) -> dict[str, Any]:
        choices = []
        for text, end in zip(texts, ends, strict=True):
            message = {"role": "assistant", "content": text, "refusal": None}
            content = {"message": message} if self.chat else {"text": text}
            choices.append({"index": end.index, **content, "logprobs": None, "finish_reason": end.finish_reason})
        return self._frame("chat.completion" if self.chat else "text_completion", choices)

    def chunk(self, index: int, text: str | None, reason: str | None, *, first: bool = False) -> dict[str, Any]:
        role = {"role": "assistant"} if first else {}
        delta = (
            {"delta": {**role, **({} if text is None else {"content": text})}} if self.chat else {"text": text or ""}
        )
        choice = {"index": index, **delta, "logprobs": None, "finish_reason": reason}
        return self._chunk_frame([choice])

    def usage_chunk(self, usage: dict[str, Any]) -> dict[str, Any]:
        return self._chunk_frame([]) | {"usage": usage}


@router.post("/chat/completions")
async def chat_completions(body: ChatRequest, request: Request) -> Response:
    """A chat completion, streamed or whole."""
    hosted = find_model(request, body.model)
    with_context(request, body)
    token_ids = await chat_tokens(hosted, body)
    wanted = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    max_tokens = fit_max_tokens(hosted, len(token_ids), wanted, param="messages")
    marks = await chat_marks(hosted.tokenizer, body.messages, token_ids)
    return await _answer(request, body, hosted, token_ids, max_tokens=max_tokens, chat=True, marks=marks)


@router.post("/completions")
async def completions(body: CompletionRequest, request: Request) -> Response:
    """A plain completion, streamed or whole."""
    hosted = find_model(request, body.model)
    marks = with_context(request, body)
    token_ids = await prompt_tokens(hosted, body)
    max_tokens = fit_max_tokens(hosted, len(token_ids), body.max_tokens, param="prompt", default=COMPLETION_MAX_TOKENS)
    return await _answer(request, body, hosted, token_ids, max_tokens=max_tokens, chat=False, marks=marks)


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
    request: Request,
    body: GenerationRequest,
    hosted: HostedModel,
    token_ids: list[int],
    *,
    max_tokens: int,
    chat: bool,
    marks: Marks = NO_MARKS,
) -> Response:
    check_vocabulary(hosted, token_ids, param="messages" if chat else "prompt")
    answer_id = f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}"
    params = sampling_params(body, max_tokens, hosted.defaults)
    whole = EngineRequest(
        answer_id,
        tuple(token_ids),
        params,
        cache_salt=body.cache_salt or "",
        tenant=tenant_of(request),
        priority=body.priority or 0,
        timeout_s=body.timeout_s,
        marks=marks.positions,
        mark_ttl_s=marks.ttl_s,
    )
    requests = engine_requests(answer_id, whole, body.n or 1)
    job = Job(hosted, requests, body.stop or [], served(request).metrics, goes_on=not chat)
    shape = Shape(chat, answer_id, hosted.name, int(time.time()), body.include_usage, len(requests))
    if not body.stream:
        return await _whole(request, job, shape)
    outputs = job.run()
    # The first output decides the status: what is refused, or dies before it, never begins a stream.
    try:
        first = await until_disconnect(request, anext(outputs))
    except ClientGoneError:
        await outputs.aclose()
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    stream = events(first, outputs, shape)
    return StreamingResponse(stream, media_type=SSE, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})


async def _whole(request: Request, job: Job, shape: Shape) -> Response:
    try:
        texts, ends = await until_disconnect(request, _collect(job))
    except ClientGoneError:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    return JSONResponse(shape.whole(texts, ends) | {"usage": usage_body(ends), "fathom": fathom_body(ends)})


async def _collect(job: Job) -> tuple[list[str], list[TextOutput]]:
    """Each completion's text and last output, in the order of their indices."""
    parts: list[list[str]] = [[] for _ in job.requests]
    ends: dict[int, TextOutput] = {}
    async for output in job.run():
        parts[output.index].append(output.text)
        if output.finish_reason is not None:
            ends[output.index] = output
    assert len(ends) == len(parts), "an engine ends a request with an output or an error"
    return ["".join(each) for each in parts], [ends[index] for index in range(len(parts))]


async def events(
    first: TextOutput, outputs: AsyncGenerator[TextOutput, None], shape: Shape
) -> AsyncGenerator[str, None]:
    """Server-sent events, of all choices as they come. Whoever stops reading closes `outputs`, which aborts them."""
    try:
        for index in range(shape.num_choices if shape.chat else 0):
            yield _event(shape.chunk(index, "", None, first=True))
        output, spoken_s = first, time.monotonic()
        ends: dict[int, TextOutput] = {}
        while True:
            if output.finish_reason is not None:
                ends[output.index] = output
            chunks = _chunks(output, shape)
            if len(ends) == shape.num_choices:
                chunks = _with_figures(chunks, [ends[index] for index in range(shape.num_choices)], shape)
            for chunk in chunks:
                yield _event(chunk)
            if len(ends) == shape.num_choices:
                break
            if chunks:
                spoken_s = time.monotonic()
            elif time.monotonic() - spoken_s > SILENT_EVERY_S:
                # A longer silence looks like a dead server to the client and to every proxy between.
                spoken_s = time.monotonic()
                yield SILENT_TOKEN
            output = await anext(outputs)
        yield DONE
    except ApiError as error:
        # The status is sent already: the error is the last event, and [DONE] does not follow it.
        yield _event(error.body)
    finally:
        await outputs.aclose()


def _chunks(output: TextOutput, shape: Shape) -> list[dict[str, Any]]:
    chunks = [shape.chunk(output.index, output.text, None)] if output.text else []
    if output.finish_reason is not None:
        chunks.append(shape.chunk(output.index, None, output.finish_reason))
    return chunks


def _with_figures(chunks: list[dict[str, Any]], ends: Sequence[TextOutput], shape: Shape) -> list[dict[str, Any]]:
    """The stream's last chunks, with what all choices took in the very last."""
    if shape.include_usage:
        chunks = [*chunks, shape.usage_chunk(usage_body(ends))]
    return [*chunks[:-1], chunks[-1] | {"fathom": fathom_body(ends)}]


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"
