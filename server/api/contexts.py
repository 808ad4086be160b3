"""Contexts under a name: /v1/fathom/contexts, and the requests that go on from one."""

import time
import uuid
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Discriminator, Tag, model_validator

from server.api.auth import KeyedRoute, tenant_of
from server.api.generation import (
    CLIENT_CLOSED_REQUEST,
    ClientGoneError,
    Job,
    chat_tokens,
    check_vocabulary,
    fathom_body,
    fit_max_tokens,
    prompt_tokens,
    until_disconnect,
    usage_body,
)
from server.api.marks import NO_MARKS, Marks, chat_marks
from server.api.schemas import (
    LIST,
    TEXT,
    TTL_S,
    CacheControl,
    CacheSalt,
    ChatRequest,
    CompletionRequest,
    ContextName,
    Message,
    Messages,
    Strict,
    Text,
    TextPart,
    TokenIds,
    Ttl,
    one_source,
    text_or_list,
)
from server.api.state import Beginning, ChatContent, find_model, served
from server.contexts import Context, TooManyContextsError
from server.errors import ApiError, bad_request
from server.hosting import TextOutput
from server.request import EngineRequest, SamplingParams

RETRY_AFTER_S = 60.0
LAST_WORD = 8  # tokens
TOKEN_BYTES = 4
MAX_TEXT_BYTES = 64 << 20  # of several prompts behind a context, as of a request's own

router = APIRouter(prefix="/v1/fathom", route_class=KeyedRoute)


class ContextRequest(Strict):
    """Either `messages` or `prompt`. `context`: one of the same kind that they go on from. `name`: made up if None."""

    model: Text
    name: ContextName | None = None
    ttl: Ttl = "1h"
    messages: Messages | None = None
    prompt: (
        Annotated[Annotated[Text, Tag(TEXT)] | Annotated[TokenIds, Tag(LIST)], Discriminator(text_or_list)] | None
    ) = None
    context: ContextName | None = None
    cache_salt: CacheSalt | None = None

    check_one_source = model_validator(mode="after")(one_source)

    def as_asked(self) -> ChatRequest | CompletionRequest:
        """The request whose prompt is the context."""
        asked: ChatRequest | CompletionRequest
        if self.messages is not None:
            asked = ChatRequest.model_construct(model=self.model, messages=self.messages)
        else:
            asked = CompletionRequest.model_construct(model=self.model, prompt=self.prompt)
        asked.context, asked.cache_salt = self.context, self.cache_salt
        return asked


class ContextsQuery(Strict):
    model: Text | None = None


def find_context(request: Request, name: str, *, use: bool = False) -> Context[Beginning]:
    """The context of that name. Raises: ApiError, 404."""
    context = served(request).contexts.find(tenant_of(request), name, time.monotonic(), use=use)
    if context is None:
        raise ApiError(
            404,
            f"context: there is none of the name {name!r}, or it has expired; POST /v1/fathom/contexts makes one",
            param="context",
            code="context_not_found",
        )
    return context


def with_context(request: Request, body: ChatRequest | CompletionRequest) -> Marks:
    """Put what the context named in a request says before what the request says itself.

    Returns:
        Where a prompt's context ends, so that it is kept for another while; that of a chat is marked in its messages.
    Raises:
        ApiError: there is no such context, or it is of another model or kind.
    """
    if body.context is None:
        return NO_MARKS
    context = find_context(request, body.context, use=True)
    if context.model != body.model:
        raise bad_request(f"context: {context.name!r} is of the model {context.model!r}", param="context")
    if body.cache_salt is not None and body.cache_salt != context.cache_salt:
        raise bad_request(
            "cache_salt: a context has that of the request that made it; leave it out", param="cache_salt"
        )
    body.cache_salt = context.cache_salt
    content = context.content
    if isinstance(body, ChatRequest) and isinstance(content, ChatContent):
        body.messages = [*content.messages, *body.messages]
        return NO_MARKS
    if isinstance(body, CompletionRequest) and not isinstance(content, ChatContent):
        texts = [prompt for prompt in body.prompts if isinstance(prompt, str)]
        lists = [prompt for prompt in body.prompts if isinstance(prompt, list)]
        if isinstance(content, str) and texts:
            refuse_too_many(context, texts)
            body.prompt = [content + text for text in texts]
            return prompt_marks(content, context.num_tokens, context.ttl_s)
        if isinstance(content, list) and lists:
            refuse_too_many(context, lists)
            body.prompt = [[*content, *token_ids] for token_ids in lists]
            return prompt_marks(content, context.num_tokens, context.ttl_s)
    raise bad_request(f"context: {context.name!r} is of {_kind(content)}; go on with the same", param="context")


def refuse_too_many(context: Context[Beginning], prompts: Sequence[str | list[int]]) -> None:
    """A short request must not make what no request could hold."""
    num_bytes = len(prompts) * context.num_bytes
    if len(prompts) > 1 and num_bytes > MAX_TEXT_BYTES:
        asked = f"{len(prompts)} behind a context of {context.num_bytes:,} bytes are {num_bytes:,} bytes"
        raise bad_request(f"prompt: {asked}; at most {MAX_TEXT_BYTES:,} may be", param="prompt")


def prompt_marks(content: Beginning, num_tokens: int, ttl_s: float) -> Marks:
    """Where a prompt that begins so is still the same: a text's last tokens may become others as it goes on."""
    position = num_tokens - (LAST_WORD if isinstance(content, str) else 1)
    return Marks((position,), (ttl_s,)) if position > 0 else NO_MARKS


@router.post("/contexts")
async def make_context(body: ContextRequest, request: Request) -> Response:
    """Compute a beginning and keep it under a name."""
    hosted, asked = find_model(request, body.model), body.as_asked()
    with_context(request, asked)
    content: Beginning
    if isinstance(asked, ChatRequest):
        param = "messages"
        content = chat = ChatContent(with_end_marked(asked.messages, body.ttl))
        token_ids = await chat_tokens(hosted, asked)
        marks = await chat_marks(hosted.tokenizer, chat.messages, token_ids)
    else:
        param, [content] = "prompt", asked.prompts
        token_ids = await prompt_tokens(hosted, content, None, param=param)
        marks = prompt_marks(content, len(token_ids), TTL_S[body.ttl])
    fit_max_tokens(hosted, len(token_ids), 1, param=param)
    check_vocabulary(hosted, token_ids, param=param)
    context = Context(
        body.name or f"ctx-{uuid.uuid4().hex[:16]}",
        hosted.name,
        content,
        num_bytes(content),
        len(token_ids),
        body.ttl,
        TTL_S[body.ttl],
        cache_salt=asked.cache_salt,
    )
    whole = EngineRequest(
        f"context-{uuid.uuid4().hex}",
        tuple(token_ids),
        SamplingParams(1, temperature=0.0, ignore_eos=True),
        cache_salt=asked.cache_salt or "",
        tenant=tenant_of(request),
        marks=marks.positions,
        mark_ttl_s=marks.ttl_s,
    )
    try:
        end = await until_disconnect(request, _last(Job(hosted, [whole], [], served(request).metrics)))
        served(request).contexts.keep(tenant_of(request), context, time.monotonic())
    except ClientGoneError:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    except TooManyContextsError as error:
        raise ApiError(429, str(error), code="too_many_contexts", retry_after_s=RETRY_AFTER_S) from error
    figures = {"usage": usage_body([end]), "fathom": fathom_body([end])}
    return JSONResponse(context_body(context) | figures, status_code=201)


@router.get("/contexts")
async def list_contexts(query: Annotated[ContextsQuery, Query()], request: Request) -> dict[str, Any]:
    """The asker's contexts, of one model or of all."""
    contexts = served(request).contexts.of(tenant_of(request), time.monotonic())
    data = [context_body(each) for each in contexts if query.model in (None, each.model)]
    return {"object": "list", "data": data}


@router.get("/contexts/{name}")
async def show_context(name: str, request: Request) -> dict[str, Any]:
    return context_body(find_context(request, name))


@router.delete("/contexts/{name}")
async def drop_context(name: str, request: Request) -> dict[str, Any]:
    """Forget a context. What was computed for it stays until its room is wanted, as everything does."""
    context = find_context(request, name)
    served(request).contexts.drop(tenant_of(request), name, time.monotonic())
    return {"object": "fathom.context.deleted", "name": context.name, "deleted": True}


def context_body(context: Context[Beginning]) -> dict[str, Any]:
    return {
        "object": "fathom.context",
        "name": context.name,
        "model": context.model,
        "created": context.created_s,
        "kind": _kind(context.content),
        "num_tokens": context.num_tokens,
        "ttl": context.ttl,
        "expires_in_s": round(context.expires_s - time.monotonic(), 3),
    }


def with_end_marked(messages: Sequence[Message], ttl: Ttl) -> list[Message]:
    """The same messages, the end of the last marked to be kept."""
    last = messages[-1]
    parts = [TextPart(type="text", text=last.content)] if isinstance(last.content, str) else list(last.content)
    parts[-1] = parts[-1].model_copy(update={"cache_control": CacheControl(type="ephemeral", ttl=ttl)})
    return [*messages[:-1], last.model_copy(update={"content": parts})]


def num_bytes(content: Beginning) -> int:
    if isinstance(content, ChatContent):
        return sum(len(message.as_template_input()["content"].encode()) for message in content.messages)
    return len(content.encode()) if isinstance(content, str) else TOKEN_BYTES * len(content)


def _kind(content: Beginning) -> str:
    return "messages" if isinstance(content, ChatContent) else "text" if isinstance(content, str) else "token ids"


async def _last(job: Job) -> TextOutput:
    """The one completion's last output, with its usage."""
    ends = [output async for texts in job.run() for output in texts if output.finish_reason is not None]
    assert ends, "an engine ends a request with an output or an error"
    return ends[-1]
