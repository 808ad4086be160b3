"""The application: routes, the error shape, the size limit, and the engines' life along with it."""

import contextlib
from collections.abc import AsyncIterator, Mapping
from http import HTTPStatus

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api import openai, service
from server.api.auth import require_key
from server.api.state import Served
from server.errors import ApiError, bad_request
from server.hosting import HostedModel
from server.metrics import Metrics


def create_app(hosted: Mapping[str, HostedModel], *, api_key: str | None, max_body_bytes: int) -> FastAPI:
    """The ASGI application. Its lifespan starts the engines and stops them at the end."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        for model in hosted.values():
            await model.engine.start()
        try:
            yield
        finally:
            for model in hosted.values():
                await model.engine.stop()

    app = FastAPI(title="Fathom", lifespan=lifespan)
    app.state.served = Served(hosted, Metrics(hosted))
    key = [Depends(require_key(api_key))]
    app.include_router(openai.router, dependencies=key)
    app.include_router(service.tokens_router, dependencies=key)
    app.include_router(service.open_router)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(RequestValidationError, _invalid_request)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _our_fault)
    app.add_middleware(BodyLimit, max_bytes=max_body_bytes)
    return app


class BodyLimit:
    """Refuses request bodies above a size before they are read into memory."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if declared.isdigit() and int(declared) > self._max_bytes:
            await _respond(self._refusal())(scope, receive, send)
            return
        size = 0

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            # A chunked body declares no length: it is counted as it comes.
            if size > self._max_bytes:
                raise self._refusal()
            return message

        await self._app(scope, counted, send)

    def _refusal(self) -> ApiError:
        return ApiError(413, f"the request body is larger than the limit of {self._max_bytes:,} bytes")


def _respond(error: ApiError) -> JSONResponse:
    return JSONResponse(error.body, status_code=error.status, headers=error.headers)


async def _api_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return _respond(error)


async def _invalid_request(_: Request, error: Exception) -> JSONResponse:
    """The first thing that is wrong with the body, by the name of its field."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        reason = first.get("ctx", {}).get("error", "")
        return _respond(bad_request(f"the request body is not valid JSON: {reason} at character {first['loc'][-1]}"))
    message = str(first["msg"]).removeprefix("Value error, ")
    # The steps into a union are pydantic's own words, not the request's.
    path = [str(step) for step in first["loc"][1:] if isinstance(step, int) or step.isidentifier()]
    if first["type"] == "value_error":
        # Our own validators begin with the field at fault.
        field = message.partition(":")[0]
        return _respond(bad_request(message, param=field))
    if first["type"] == "extra_forbidden":
        message = "unknown field"
    param = ".".join(path) or None
    return _respond(bad_request(f"{param}: {message}" if param else message, param=param))


async def _http_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    refusal = ApiError(error.status_code, str(error.detail), code=HTTPStatus(error.status_code).phrase)
    return JSONResponse(refusal.body, status_code=error.status_code, headers=error.headers)


async def _our_fault(_: Request, error: Exception) -> JSONResponse:
    return _respond(ApiError(500, f"internal error: {type(error).__name__}", code="internal_error"))
