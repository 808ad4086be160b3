"""Who waits, and whose turn it is: by priority, then by what the asker has had, then by arrival. No torch."""

import heapq
from collections import Counter, OrderedDict
from collections.abc import Iterator

from server.config import Policy
from server.sequence import Sequence

MOST_TENANTS = 10_000  # of which something is remembered
RECENT_S = 60.0


class WaitingQueue:
    """The sequences that wait, and what each tenant has been given.

    fair: the tenant that had the fewest tokens computed comes first (Sheng et al., "Fairness in Serving Large Language
    Models", OSDI 2024). One that had nothing to do meanwhile saves nothing up: it begins where the least served of the
    others stands. first-come: tenants do not matter. shortest: the sequence with the fewest tokens to compute.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        # In order of arrival, but for the preempted, who are first.
        self.sequences: OrderedDict[str, Sequence] = OrderedDict()
        self._heaps: dict[str, list[tuple[int, int, int, Sequence]]] = {}
        self._served: dict[str, int] = {}
        self._active: Counter[str] = Counter()
        self._last_seen: dict[str, float] = {}

    def arrive(self, sequence: Sequence) -> None:
        """A sequence that is new here."""
        tenant = sequence.request.tenant
        if not self._active[tenant]:
            least = min((self._served[each] for each in self._active), default=0)
            # By a token, so that whoever comes back is the next.
            self._served[tenant] = max(self._served.get(tenant, 0), least - 1)
        self._active[tenant] += 1
        self._last_seen[tenant] = sequence.added_s
        self._enter(sequence)

    def come_back(self, sequence: Sequence) -> None:
        """One that was running, and goes before those of its kind who came later."""
        self._enter(sequence)
        self.sequences.move_to_end(sequence.request_id, last=False)

    def leave(self, sequence: Sequence) -> None:
        """One that waits no longer, because it runs or ends."""
        del self.sequences[sequence.request_id]

    def end(self, sequence: Sequence) -> None:
        """One that is done with, whether it waited or ran."""
        tenant = sequence.request.tenant
        self._active[tenant] -= 1
        if not self._active[tenant]:
            del self._active[tenant]
            if len(self._served) > MOST_TENANTS:
                self._served = {each: self._served[each] for each in self._active}
                self._last_seen = {each: self._last_seen[each] for each in self._active}

    def charge(self, sequence: Sequence, num_tokens: int) -> None:
        self._served[sequence.request.tenant] = self._served.get(sequence.request.tenant, 0) + num_tokens

    def rank(self, sequence: Sequence) -> tuple[int, int, int]:
        """The lower, the earlier its turn."""
        request = sequence.request
        if self._policy == "fair":
            return request.priority, self._served.get(request.tenant, 0), sequence.number
        if self._policy == "shortest":
            return request.priority, sequence.num_remaining, sequence.number
        return request.priority, sequence.number, 0

    def candidates(self, most: int) -> Iterator[Sequence]:
        """The next in turn, at most so many. Who is taken meanwhile must have left before the next is asked for."""
        passed: list[tuple[str, tuple[int, int, int, Sequence]]] = []
        try:
            for _ in range(most):
                heads = [heap[0] for tenant in list(self._heaps) if (heap := self._trim(tenant))]
                if not heads:
                    return
                sequence = min((head[-1] for head in heads), key=self.rank)
                tenant = self._heap_of(sequence)
                passed.append((tenant, heapq.heappop(self._heaps[tenant])))
                yield sequence
        finally:
            for tenant, entry in passed:
                if entry[-1].request_id in self.sequences:
                    heapq.heappush(self._heaps.setdefault(tenant, []), entry)

    @property
    def tenants(self) -> int:
        """How many have something to do here."""
        return len(self._active)

    def several_recent(self, now_s: float) -> bool:
        """Whether more than one have something to do here, or had a while ago and may come again at any time."""
        recent, gone = 0, []
        for tenant, seen_s in self._last_seen.items():
            if now_s - seen_s <= RECENT_S or tenant in self._active:
                recent += 1
                if recent > 1:
                    break
            else:
                gone.append(tenant)  # looked at once more at most
        for tenant in gone:
            del self._last_seen[tenant]
        return recent > 1

    def _heap_of(self, sequence: Sequence) -> str:
        return sequence.request.tenant if self._policy == "fair" else ""

    def _enter(self, sequence: Sequence) -> None:
        self.sequences[sequence.request_id] = sequence
        length = sequence.num_remaining if self._policy == "shortest" else 0
        entry = (sequence.request.priority, length, sequence.number, sequence)
        heapq.heappush(self._heaps.setdefault(self._heap_of(sequence), []), entry)

    def _trim(self, tenant: str) -> list[tuple[int, int, int, Sequence]] | None:
        """A tenant's heap without those at its top who wait no longer; None once it is empty."""
        heap = self._heaps[tenant]
        while heap and self.sequences.get(heap[0][-1].request_id) is not heap[0][-1]:
            heapq.heappop(heap)
        if not heap:
            del self._heaps[tenant]
            return None
        return heap
