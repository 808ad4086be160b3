"""Who waits because a running prefill computes what it begins with. Plain integers, no torch."""

from collections.abc import Mapping

from server.cache.memory import SequenceMemory
from server.cache.runs import num_equal
from server.sequence import Sequence

WORTH_WAITING = 64  # tokens


class Awaiting:
    """Knows of who waits for what another is computing: that one, and how many tokens of it are wanted.

    Args:
        running: by request id, as they are at any time.
    """

    def __init__(self, memory: SequenceMemory, running: Mapping[str, Sequence]) -> None:
        self._memory, self._running = memory, running
        self._awaited: dict[str, tuple[Sequence, int]] = {}

    def awaits(self, sequence: Sequence) -> bool:
        """Whether a running prefill is about to compute a long beginning of this sequence, which it can then use."""
        awaited = self._awaited.get(sequence.request_id)
        if awaited is None or not self._still_computes(*awaited):
            self.forget(sequence)
            awaited = self._find(sequence)
            if awaited is not None:
                self._awaited[sequence.request_id] = awaited
        return awaited is not None

    def forget(self, sequence: Sequence) -> None:
        """It waits no longer."""
        self._awaited.pop(sequence.request_id, None)

    def _still_computes(self, other: Sequence, num_tokens: int) -> bool:
        return self._running.get(other.request_id) is other and other.num_computed < num_tokens

    def _find(self, sequence: Sequence) -> tuple[Sequence, int] | None:
        prefills = [other for other in self._running.values() if not other.decodes]
        if not prefills:
            return None
        tokens = sequence.as_array()[: sequence.num_usable]
        salt = sequence.request.cache_salt
        known = None
        for other in prefills:
            if other.request.cache_salt != salt or other.tokens is None:
                continue
            common = num_equal(tokens, other.tokens[:-1])
            if other.num_computed < common:
                known = self._memory.num_known(tokens, salt) if known is None else known
                if common - known >= WORTH_WAITING:
                    return other, common
        return None
