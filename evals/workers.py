"""Several requests under way at once, and the end of all of them where one cannot go on."""

import asyncio
from collections.abc import Callable, Coroutine

from evals.config import ConfigError, EndpointLostError, RunStoppedError


async def run_workers(worker: Callable[[], Coroutine[None, None, None]], count: int) -> None:
    """Run so many of a worker, until all of them are done.

    Raises:
        RunStoppedError: one of them met something that no other can go on with.
    """
    try:
        async with asyncio.TaskGroup() as workers:
            for _ in range(count):
                workers.create_task(worker())
    except ExceptionGroup as group:
        # Workers that fail together fail of one cause: the first says it.
        stopping, others = group.split(ConfigError)
        if stopping is None or others is not None:
            raise
        cause: Exception = stopping
        while isinstance(cause, ExceptionGroup):
            cause = cause.exceptions[0]
        lost = isinstance(cause, EndpointLostError)
        raise (EndpointLostError if lost else RunStoppedError)(str(cause)) from stopping
