"""What was accepted and has not begun, in tokens: the bound on the queue that long prompts come to first."""

from server.engine_errors import QueueTokensFullError


class Backlog:
    """Counts the prompt tokens of requests until the engine begins with them.

    Args:
        max_tokens: as many may wait; None for no bound. What is larger is accepted where nothing waits, as it would
            otherwise be never.
    """

    def __init__(self, max_tokens: int | None) -> None:
        self._max_tokens = max_tokens
        self._waiting: dict[str, int] = {}
        self.num_tokens = 0

    def refuse_or_pass(self, num_tokens: int, retry_after_s: float) -> None:
        """Raises: QueueTokensFullError, where so many more are too many."""
        limit = self._max_tokens
        if limit is not None and self._waiting and self.num_tokens + num_tokens > limit:
            raise QueueTokensFullError(limit, retry_after_s, num_waiting=self.num_tokens, num_asked=num_tokens)

    def add(self, request_id: str, num_tokens: int) -> None:
        self._waiting[request_id] = num_tokens
        self.num_tokens += num_tokens

    def leave(self, request_id: str) -> None:
        """It waits no longer, if it did: it has begun, or has ended before."""
        self.num_tokens -= self._waiting.pop(request_id, 0)

    def clear(self) -> None:
        self._waiting, self.num_tokens = {}, 0
