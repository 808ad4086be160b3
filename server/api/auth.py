"""Who may ask: whoever has one of the bearer keys, where the server has any."""

import hmac
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request
from fastapi.responses import Response
from fastapi.routing import APIRoute

from server.api.state import served
from server.errors import ApiError


class KeyedRoute(APIRoute):
    """A route for those who have the key. It is asked for before the body is read: strangers are not listened to."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def checked(request: Request) -> Response:
            check_key(request)
            return await handle(request)

        return checked


def check_key(request: Request) -> None:
    """Let pass who sends one of the server's keys; everybody where the server has none.

    Raises:
        ApiError: 401.
    """
    keys = served(request).api_keys
    if not keys:
        return
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    # Compared as bytes in constant time, with all of them: the time taken tells nothing of the keys.
    matches = [hmac.compare_digest(given.strip().encode(), key.encode()) for key in keys]
    if scheme.lower() != "bearer" or not any(matches):
        raise ApiError(
            401, "the API key is missing or wrong; send it as 'Authorization: Bearer KEY'", code="invalid_api_key"
        )
    request.state.tenant = f"key {matches.index(True) + 1}"


def tenant_of(request: Request) -> str:
    """Who asks, for whom the engines' fair shares are kept: the key, or without keys the client's address."""
    named: str | None = getattr(request.state, "tenant", None)
    return named or (request.client.host if request.client else "")
