"""When a request is sent again, and how long one waits before; the same for answers and for token counts."""

import asyncio
import random
from collections.abc import Sequence

import aiohttp

FIRST_BACKOFF_S, MAX_BACKOFF_S = 0.25, 20.0
COME_AGAIN = frozenset({408, 429, 502, 503, 504})
# So many requests, refused alike and nothing else before them, mean that the others would be too.
MAX_FIRST_REFUSALS = 5


def come_again_s(answer: aiohttp.ClientResponse) -> float | None:
    """Seconds that the server wants us to wait, 0 where it names none; None: asking again would give the same."""
    if answer.status not in COME_AGAIN:
        return None
    try:
        return max(0.0, float(answer.headers.get("Retry-After", "0")))
    except ValueError:  # a date; the backoff decides
        return 0.0


async def pause(num_failures: int, at_least_s: float) -> None:
    """Wait after so many failures; longer after each."""
    backoff_s = min(FIRST_BACKOFF_S * 2 ** (num_failures - 1), MAX_BACKOFF_S)
    # Spread out, so that clients that were refused together do not come again together.
    await asyncio.sleep(max(at_least_s, backoff_s * random.uniform(0.5, 1.5)))


def is_hopeless(first: Sequence[int | None]) -> bool:
    """Whether the first requests were all refused for the same reason of the client's; by the statuses that did."""
    if len(first) < MAX_FIRST_REFUSALS or len(set(first)) > 1:
        return False
    return first[0] is not None and 400 <= first[0] < 500 and first[0] not in COME_AGAIN
