"""The application: routes, the error shape, the size limit, and the engines' life along with it."""

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api import cache, contexts, openai, service
from server.api.schemas import UNION_STEPS
from server.api.state import Served
from server.errors import ApiError, bad_request
from server.hosting import HostedModel
from server.metrics import Metrics

TOO_LARGE = HTTPStatus.REQUEST_ENTITY_TOO_LARGE.name.lower()


def create_app(hosted: Mapping[str, HostedModel], *, api_keys: tuple[str, ...], max_body_bytes: int) -> FastAPI:
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
    metrics = Metrics(hosted)
    app.state.served = Served(hosted, metrics, api_keys)
    routers = (openai.router, cache.router, contexts.router, service.tokens_router, service.open_router)
    for router in routers:
        app.include_router(router)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(RequestValidationError, _invalid_request)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _our_fault)
    app.add_middleware(BodyLimit, max_bytes=max_body_bytes)
    # Added last, so outermost: what is refused on the way in counts too.
    routes = [route for router in routers for route in router.routes if isinstance(route, Route)]
    app.add_middleware(ResponseCount, metrics=metrics, routes=routes)
    return app


class ResponseCount:
    """Counts every response by route and status, also of requests that never became a model's."""

    def __init__(self, app: ASGIApp, metrics: Metrics, routes: Sequence[Route]) -> None:
        self._app = app
        self._metrics = metrics
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # Paths that somebody made up must not make series without end.
        route = next((route.path for route in self._routes if route.path_regex.match(scope["path"])), "other")
        started = False

        async def counted(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                self._metrics.count_response(route, message["status"])
            await send(message)

        try:
            await self._app(scope, receive, counted)
        except Exception:
            # Starlette answers it further out.
            if not started:
                self._metrics.count_response(route, HTTPStatus.INTERNAL_SERVER_ERROR)
            raise


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
            await _respond(ApiError(413, self._message, code=TOO_LARGE))(scope, receive, send)
            return
        size = 0

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            # A chunked body declares no length: it is counted as it comes. FastAPI, which reads it, takes any
            # other exception for a fault in the body's syntax.
            if size > self._max_bytes:
                raise HTTPException(413, self._message)
            return message

        await self._app(scope, counted, send)

    @property
    def _message(self) -> str:
        return f"the request body is larger than the limit of {self._max_bytes:,} bytes"


def _respond(error: ApiError) -> JSONResponse:
    return JSONResponse(error.body, status_code=error.status, headers=error.headers)


async def _api_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return _respond(error)


async def _invalid_request(_: Request, error: Exception) -> JSONResponse:
    """What is wrong with the body, by the name of its field; the first fault where there are several."""
    assert isinstance(error, RequestValidationError)
    fault = error.errors()[0]
    message = str(fault["msg"]).removeprefix("Value error, ")
    if fault["type"] == "json_invalid":
        reason = fault.get("ctx", {}).get("error", "")
        return _respond(bad_request(f"the request body is not valid JSON: {reason} at character {fault['loc'][-1]}"))
    path = ".".join(_fields(fault["loc"][1:]))
    if fault["type"] == "value_error":
        # Our own validators of a whole object begin with its field at fault.
        message = f"{path}.{message}" if path else message
        return _respond(bad_request(message, param=message.partition(":")[0]))
    if len(fault["loc"]) == 1:
        return _respond(bad_request("the request body must be a JSON object, sent as application/json"))
    message = {"extra_forbidden": "unknown field", "missing": "is required"}.get(fault["type"], message)
    return _respond(bad_request(f"{path}: {message}", param=path))


def _fields(location: Sequence[str | int]) -> list[str]:
    """The request's own fields on the way to a fault, without the alternatives of a union, which the schemas name."""
    return [str(step) for depth, step in enumerate(location) if depth == 0 or step not in UNION_STEPS]


async def _http_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code = HTTPStatus(error.status_code).name.lower()
    refusal = ApiError(error.status_code, str(error.detail), code=code)
    return JSONResponse(refusal.body, status_code=error.status_code, headers=error.headers)


async def _our_fault(_: Request, error: Exception) -> JSONResponse:
    return _respond(ApiError(500, f"internal error: {type(error).__name__}", code="internal_error"))
