"""The tiers below the device: the host's memory and the disk, and what an engine does with them. No torch."""

import sys
import time
from collections.abc import Collection, Iterable

from server.cache.content import lower_entries
from server.cache.costs import Costs
from server.cache.fetching import Fetching
from server.cache.host import HostStore
from server.cache.memory import SequenceMemory
from server.cache.naming import PieceNames
from server.cache.offload import Offload
from server.cache.persistence import Persistence
from server.cache.planner import CachePlan
from server.cache.rows import CacheRows
from server.cache.tiers import DiskStore
from server.counters import TierStats
from server.request import CacheEntry
from server.sequence import ScheduledBatch, Sequence

CHUNK_TOKENS = 256  # of a piece of keys and values, or a block if that is more
LEAST_TOKENS = 64  # fewer are computed as fast as they are found


class LowerTiers:
    """What is kept of an engine's memory beyond the device; `attach` before anything else.

    Args:
        snapshot_every: tokens between the regular states of a prompt. disk, host: either may be missing. costs: what is
            known of rates, if anything is.
    """

    def __init__(
        self,
        plan: CachePlan,
        rows: CacheRows,
        *,
        snapshot_every: int,
        disk: DiskStore | None = None,
        host: HostStore | None = None,
        costs: Costs | None = None,
        chunk_tokens: int = CHUNK_TOKENS,
        least_tokens: int = LEAST_TOKENS,
    ) -> None:
        self._plan, self._rows, self._least_tokens = plan, rows, least_tokens
        self.disk, self.host, self.costs = disk, host, costs or Costs()
        self._names = PieceNames(disk.fingerprint if disk else "", plan, chunk_tokens=chunk_tokens)
        self._persistence = None
        if disk is not None:
            self._persistence = Persistence(
                disk,
                plan,
                rows,
                names=self._names,
                costs=self.costs,
                snapshot_every=snapshot_every,
                least_tokens=least_tokens,
            )

    def attach(self, memory: SequenceMemory) -> None:
        """Serve the memory of one engine, which is empty, and fill it with what was of use last."""
        self._memory = memory
        self._offload = None
        if self.host is not None:
            self._offload = Offload(
                self.host,
                memory,
                self._plan,
                self._rows,
                names=self._names,
                costs=self.costs,
                least_tokens=self._least_tokens,
            )
        self._fetching = Fetching(
            memory, self._plan, self._rows, names=self._names, costs=self.costs, host=self.host, disk=self.disk
        )
        if self._persistence is not None:
            self._persistence.restore(memory)

    def begin_step(self, *, holds_up: bool, prefill_rate: float | None) -> None:
        """Args:
        holds_up: sequences run, which wait for what the step copies. prefill_rate: tokens per second; None while it
            is not known.
        """
        self.costs.prefill_rate = prefill_rate
        self._fetching.begin_step(holds_up=holds_up)

    def keep(self, batch: ScheduledBatch, prefill_rate: float | None) -> None:
        """Hand on what a step has left, before its sequences go on."""
        self.costs.prefill_rate = prefill_rate
        if self._persistence is not None:
            self._persistence.keep(batch)

    def keep_answers(self, sequences: Iterable[Sequence]) -> None:
        """Hand on what sequences have left at their end, before the next step."""
        if self._persistence is not None:
            for sequence in sequences:
                self._persistence.keep_answer(sequence, self._memory)

    def awaits(self, sequence: Sequence) -> bool:
        """Whether a sequence whose turn it is waits for what is being read for it."""
        return self._fetching.awaits(sequence)

    def settle(self, sequence: Sequence) -> None:
        """A sequence waits no longer: it runs, or is gone."""
        self._fetching.cancel(sequence)
        if self._offload is not None:
            self._offload.let_go(sequence)

    def keep_preempted(self, sequence: Sequence) -> None:
        """A sequence has given up its place, and will go on from what it has computed."""
        sequence.is_looked_up = False
        if self._offload is not None and self._names.has_state and sequence.num_computed:
            self._offload.keep_state(sequence)

    def wait(self, timeout_s: float) -> bool:
        """Wait until something is read, for so long at most; False if nobody waits for anything."""
        return self._fetching.wait(timeout_s)

    def clear(self) -> None:
        """Give up everything."""
        self._fetching.clear()
        for run in self._memory.index.runs():
            run.kept, run.needed = sys.maxsize, 0
        for store in (self.host, self.disk):
            if store is not None:
                store.clear()

    def close(self, timeout_s: float) -> None:
        """Write what is still to be written, for so many seconds at most."""
        self._fetching.close()
        if self.disk is not None:
            self.disk.close(timeout_s)

    def stats(self) -> tuple[TierStats, TierStats]:
        self._fetching.note_arrivals()
        host = TierStats() if self.host is None else self.host.stats()
        return host, TierStats() if self.disk is None else self.disk.stats()

    def entries(self) -> list[CacheEntry]:
        """What is kept in the tiers below and not on the device."""
        return lower_entries(
            self._memory.index, self._fetching.lookup, host=self.host, disk=self.disk, now_s=time.monotonic()
        )

    def check(self, waiting: Collection[Sequence]) -> None:
        """Assert that what is counted is there, and that nobody is fetched or kept for who does not wait."""
        assert self._fetching.request_ids <= {sequence.request_id for sequence in waiting}, "a fetch for nobody"
        if self.host is not None:
            self.host.check()
            kept = {(sequence.request_id, sequence.kept_piece) for sequence in waiting}
            pins = {(request_id, name) for name, entry in self.host.entries.items() for request_id in entry.pins}
            assert pins <= kept, "a piece is kept for nobody"
        if self.disk is not None:
            self.disk.check()
