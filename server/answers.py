"""What an engine has said of some requests and nobody has taken yet."""

import asyncio
from collections.abc import Sequence

from server.engine_errors import EngineError
from server.request import TokenOutput

Answered = tuple[int, TokenOutput]  # with the place of its request among those asked together


class Answers:
    """The outputs of requests that were made together, from the engine to the one who awaits them.

    Whoever is slower than the engine finds several at once, so that the slower it gets the less each costs.
    """

    def __init__(self, request_ids: Sequence[str]) -> None:
        self._places = {request_id: place for place, request_id in enumerate(request_ids)}
        self._ready: list[Answered] = []
        self._error: EngineError | None = None
        self._waiting: asyncio.Future[None] | None = None

    def put(self, request_id: str, output: TokenOutput) -> None:
        self._ready.append((self._places[request_id], output))
        self._wake()

    def fail(self, error: EngineError) -> None:
        """Nothing comes any more."""
        self._error = error
        self._wake()

    async def take(self) -> list[Answered]:
        """All that is there, in order; waits for something.

        Raises:
            EngineError: after what came before it.
        """
        if not self._ready and self._error is None:
            self._waiting = asyncio.get_running_loop().create_future()
            await self._waiting
        ready, self._ready = self._ready, []
        if not ready and self._error is not None:
            raise self._error
        return ready

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)
