"""What is not OpenAI's: tokenizing, health, metrics, version."""

from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from server.api.auth import KeyedRoute
from server.api.schemas import DetokenizeRequest, TokenizeRequest
from server.api.state import find_model_or_only, served
from server.chat_template import ChatTemplateError
from server.errors import bad_request

tokens_router = APIRouter(route_class=KeyedRoute)
open_router = APIRouter()


@tokens_router.post("/tokenize")
def tokenize(body: TokenizeRequest, request: Request) -> dict[str, Any]:
    """Token ids of a text, or of a chat exactly as /v1/chat/completions would count it."""
    hosted = find_model_or_only(request, body.model)
    if body.messages is not None:
        messages = [message.as_template_input() for message in body.messages]
        try:
            tokens = hosted.tokenizer.encode_chat(messages, add_generation_prompt=body.add_generation_prompt)
        except ChatTemplateError as error:
            raise bad_request(f"messages: {error}", param="messages") from error
    else:
        tokens = hosted.tokenizer.encode(body.prompt or "", add_special_tokens=body.add_special_tokens)
    info = hosted.engine.info
    return {"tokens": tokens, "count": len(tokens), "max_model_len": info.max_context_tokens if info else None}


@tokens_router.post("/detokenize")
def detokenize(body: DetokenizeRequest, request: Request) -> dict[str, str]:
    hosted = find_model_or_only(request, body.model)
    vocab_size = hosted.tokenizer.vocab_size
    wrong = next((token for token in body.tokens if token >= vocab_size), None)
    if wrong is not None:
        raise bad_request(f"tokens: {wrong} is outside the vocabulary of {vocab_size} tokens", param="tokens")
    return {"prompt": hosted.tokenizer.decode(body.tokens, skip_special_tokens=False)}


@open_router.get("/health")
async def health(request: Request) -> JSONResponse:
    """200 while every engine serves; else 503, and which one does not."""
    models = {
        name: {
            "state": hosted.engine.state,
            "restarts": hosted.engine.num_restarts,
            "open_requests": hosted.engine.num_open,
            "last_error": hosted.engine.last_error,
        }
        for name, hosted in served(request).hosted.items()
    }
    ready = all(entry["state"] == "ready" for entry in models.values())
    headers = {} if ready else {"Retry-After": "1"}
    status = {"status": "ok" if ready else "unavailable", "models": models}
    return JSONResponse(status, status_code=200 if ready else 503, headers=headers)


@open_router.get("/metrics")
async def metrics(request: Request) -> Response:
    state = served(request)
    for hosted in state.hosted.values():
        await hosted.engine.fetch_stats()
    return Response(state.metrics.render(), media_type=CONTENT_TYPE_LATEST)


@open_router.get("/version")
async def show_version() -> dict[str, str]:
    return {"version": version("fathom")}
