"""What a client is told when its request cannot be answered, in OpenAI's error shape."""

import math
from typing import Any

from server.process import (
    DeadlineExceededError,
    EngineBusyError,
    EngineDiedError,
    EngineError,
    EngineUnavailableError,
    QueueFullError,
    QueueTokensFullError,
    RequestTooLongError,
    TooManyAtOnceError,
)


class ApiError(Exception):
    """An answer with a status of 400 or above.

    Args:
        param: the request's field at fault, if one is.
        code: a stable word for programs.
        retry_after_s: when to come again; becomes the Retry-After header.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        # A client's own words may come back in them, half characters included, which no answer can carry.
        self.message = _printable(message)
        self.param = None if param is None else _printable(param)
        self.code = code
        self.retry_after_s = retry_after_s

    @property
    def body(self) -> dict[str, Any]:
        return {
            "error": {
                "message": self.message,
                "type": _error_type(self.status),
                "param": self.param,
                "code": self.code,
            }
        }

    @property
    def headers(self) -> dict[str, str]:
        headers = {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}
        if self.retry_after_s is not None:
            # Whole seconds: that is all the header can say.
            headers["Retry-After"] = str(max(1, math.ceil(self.retry_after_s)))
        return headers


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _error_type(status: int) -> str:
    if status == 401:
        return "authentication_error"
    if status == 429:
        return "rate_limit_error"
    return "invalid_request_error" if status < 500 else "server_error"


def bad_request(message: str, *, param: str | None = None, code: str | None = None) -> ApiError:
    return ApiError(400, message, param=param, code=code)


def from_engine_error(error: EngineError) -> ApiError:
    """The answer for a request that its engine refused or lost."""
    match error:
        case RequestTooLongError():
            return bad_request(f"{error}", code="context_length_exceeded")
        case TooManyAtOnceError():
            return bad_request(f"{error}", param=error.param)
        case QueueFullError():
            return ApiError(429, f"{error}", param=error.param, code="queue_full", retry_after_s=error.retry_after_s)
        case QueueTokensFullError():
            return ApiError(429, f"{error}", code="queue_full", retry_after_s=error.retry_after_s)
        case EngineUnavailableError():
            return ApiError(503, f"{error}", code="engine_unavailable", retry_after_s=error.retry_after_s)
        case EngineBusyError():
            return ApiError(503, f"{error}", code="engine_busy", retry_after_s=1.0)
        case DeadlineExceededError():
            return ApiError(504, f"{error}", param="timeout_s", code="deadline_exceeded")
        case EngineDiedError():
            return ApiError(503, f"{error}", code="engine_died", retry_after_s=1.0)
    return ApiError(500, f"{error}", code="engine_error")
