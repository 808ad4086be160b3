"""Who wants to know which compiled kernels are called: the recorder of a step, of its own thread's calls alone."""

import threading
from collections.abc import Callable
from typing import Any, Protocol


class Notes(Protocol):
    def note(self, call: Callable[..., Any], arguments: tuple[Any, ...], /) -> None:
        """Such a call is about to be made."""


class _Noting(threading.local):
    notes: Notes | None = None


noting = _Noting()
