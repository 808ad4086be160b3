"""Stop strings in a stream of text: nothing of a stop string, nor what follows it, reaches the client."""

from collections.abc import Sequence


class StopChecker:
    """Holds text back while it may still turn out to begin a stop string."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def add(self, text: str, *, last: bool = False) -> str:
        """The part of the text so far, not given out yet, that is safe to show; all of it with `last`.

        Once a stop string has come, `stopped` is true and nothing more is given out.
        """
        if self.stopped:
            return ""
        if not self._stops:
            return text
        self._held += text
        found = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            return self._held[: min(found)]
        keep = 0 if last else max((self._overlap(stop) for stop in self._stops), default=0)
        safe = len(self._held) - keep
        shown, self._held = self._held[:safe], self._held[safe:]
        return shown

    def _overlap(self, stop: str) -> int:
        """Length of the longest end of the held text that begins `stop`."""
        longest = min(len(stop) - 1, len(self._held))
        return next((size for size in range(longest, 0, -1) if self._held.endswith(stop[:size])), 0)
