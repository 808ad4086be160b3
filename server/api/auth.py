"""Who may ask: a bearer key, where the server has one."""

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
    """Let pass who sends the server's key; everybody where the server has none.

    Raises:
        ApiError: 401.
    """
    api_key = served(request).api_key
    if api_key is None:
        return
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    # Compared as bytes in constant time: the time taken tells nothing of the key.
    if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), api_key.encode()):
        raise ApiError(
            401, "the API key is missing or wrong; send it as 'Authorization: Bearer KEY'", code="invalid_api_key"
        )
