"""Who may ask: a bearer key, where the server has one."""

import hmac
from collections.abc import Callable

from fastapi import Request

from server.errors import ApiError


def require_key(api_key: str | None) -> Callable[[Request], None]:
    """A dependency that refuses requests without the key; without a key everybody may ask."""

    def check(request: Request) -> None:
        if api_key is None:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        # Compared as bytes in constant time: the time taken tells nothing of the key.
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), api_key.encode()):
            raise ApiError(
                401, "the API key is missing or wrong; send it as 'Authorization: Bearer KEY'", code="invalid_api_key"
            )

    return check
