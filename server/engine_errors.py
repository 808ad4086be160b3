"""Why a request got no (complete) answer from its engine."""

from typing import Literal

EngineState = Literal["starting", "ready", "restarting", "failed", "stopped"]


class EngineError(Exception):
    """Why a request got no (complete) answer.

    EngineError
    ├── QueueFullError          too many sequences are open; come again later
    ├── QueueTokensFullError    too many prompt tokens wait; come again later
    ├── TooManyAtOnceError      one request asks for more sequences than may ever be open
    ├── EngineUnavailableError  the engine is starting, restarting, stopped or has failed
    ├── EngineBusyError         the engine does not answer a question in time
    ├── DeadlineExceededError   its time was over before its answer was complete
    ├── EngineDiedError         the engine's process ended while it worked on the request
    └── RequestTooLongError     the request can never fit
    """


def _asking_field(num_prompts: int) -> str:
    """The request's field that asks for several sequences."""
    return "prompt" if num_prompts > 1 else "n"


class QueueFullError(EngineError):
    def __init__(
        self, limit: int, retry_after_s: float, *, num_open: int, num_asked: int = 1, num_prompts: int = 1
    ) -> None:
        self.param = None if num_asked == 1 else _asking_field(num_prompts)
        if self.param is None:
            super().__init__(f"{limit} requests are open already, the most that are accepted")
        else:
            asked = f"{self.param}: {num_asked} more are too many now"
            super().__init__(f"{asked}: {num_open} of at most {limit} are open already")
        self.limit = limit
        self.retry_after_s = retry_after_s


class QueueTokensFullError(EngineError):
    def __init__(self, limit: int, retry_after_s: float, *, num_waiting: int, num_asked: int) -> None:
        super().__init__(
            f"{num_waiting} prompt tokens wait already, and with {num_asked} more they would be above {limit}, "
            "the most that are accepted"
        )
        self.retry_after_s = retry_after_s


class TooManyAtOnceError(EngineError):
    def __init__(self, num_asked: int, limit: int, *, num_prompts: int = 1) -> None:
        self.param = _asking_field(num_prompts)
        asked = f"{self.param}: {num_asked} are more"
        super().__init__(f"{asked} than may ever be open at once, which is {limit} on this server")
        self.limit = limit


class EngineUnavailableError(EngineError):
    def __init__(self, state: EngineState, retry_after_s: float, reason: str | None = None) -> None:
        super().__init__(f"the engine is {state}" + (f": {reason}" if reason else ""))
        self.state = state
        self.retry_after_s = retry_after_s


class EngineBusyError(EngineError):
    def __init__(self, timeout_s: float) -> None:
        super().__init__(f"the engine did not answer within {timeout_s:g} s: it is in a long step, and may yet do it")


class DeadlineExceededError(EngineError):
    def __init__(self, timeout_s: float) -> None:
        super().__init__(f"timeout_s: the answer was not complete after {timeout_s:g} s")


class EngineDiedError(EngineError):
    pass


class RequestTooLongError(EngineError):
    def __init__(self, num_tokens: int, limit: int) -> None:
        super().__init__(f"{num_tokens} tokens, with those to generate, do not fit into the context of {limit}")
        self.num_tokens = num_tokens
        self.limit = limit
