"""Beginnings that clients have given a name, so that requests go on from them without sending them again. No HTTP."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

MAX_CONTEXTS = 1000
MAX_BYTES = 256 << 20  # of what all contexts say, in UTF-8 or at 4 bytes for a token id

Content = TypeVar("Content")


class TooManyContextsError(Exception):
    """There is no room for another; the message names the limit."""


@dataclass(slots=True, eq=False)
class Context(Generic[Content]):
    """What a request that goes on from it would have to send otherwise.

    num_bytes: of its content. num_tokens: when it was made. cache_salt: that of the request which made it, and of all
    that go on from it. ttl: how long it is kept after it was used last, as clients write it; ttl_s in seconds.
    """

    name: str
    model: str
    content: Content
    num_bytes: int
    num_tokens: int
    ttl: str
    ttl_s: float
    cache_salt: str | None = None
    created_s: int = field(default_factory=lambda: int(time.time()))
    expires_s: float = 0.0


class Contexts(Generic[Content]):
    """Owns the contexts of all tenants, each of whom sees its own. Times are seconds on the monotonic clock."""

    def __init__(self, *, max_contexts: int = MAX_CONTEXTS, max_bytes: int = MAX_BYTES) -> None:
        self._max_contexts, self._max_bytes = max_contexts, max_bytes
        self._kept: dict[tuple[str, str], Context[Content]] = {}

    def keep(self, tenant: str, context: Context[Content], now_s: float) -> None:
        """Keep it from now on, in the place of one of the same name.

        Raises:
            TooManyContextsError
        """
        others = [each for key, each in self._unexpired(now_s).items() if key != (tenant, context.name)]
        if len(others) >= self._max_contexts:
            raise TooManyContextsError(f"{len(others):,} contexts are kept, and no more can be")
        num_bytes = sum(each.num_bytes for each in others)
        if num_bytes + context.num_bytes > self._max_bytes:
            raise TooManyContextsError(
                f"contexts of {num_bytes:,} bytes are kept and this one has {context.num_bytes:,}, "
                f"but no more than {self._max_bytes:,} can be kept in all"
            )
        context.expires_s = now_s + context.ttl_s
        self._kept[tenant, context.name] = context

    def find(self, tenant: str, name: str, now_s: float, *, use: bool = False) -> Context[Content] | None:
        """A tenant's context. To use it keeps it for another while."""
        context = self._unexpired(now_s).get((tenant, name))
        if context is not None and use:
            context.expires_s = now_s + context.ttl_s
        return context

    def drop(self, tenant: str, name: str, now_s: float) -> bool:
        """Forget a context; False if there is none of that name."""
        return self._unexpired(now_s).pop((tenant, name), None) is not None

    def of(self, tenant: str, now_s: float) -> Sequence[Context[Content]]:
        """All of a tenant's, the one that was made first at first."""
        return [context for (owner, _), context in self._unexpired(now_s).items() if owner == tenant]

    def _unexpired(self, now_s: float) -> dict[tuple[str, str], Context[Content]]:
        for key in [key for key, context in self._kept.items() if context.expires_s <= now_s]:
            del self._kept[key]
        return self._kept
