"""Hands down to the host's memory what the prefix index gives up, before its rows are used anew. No torch.

Snapshots always, blocks where they come back sooner than they are computed. A run loses its blocks from its end, one by
one: with the first the whole piece goes down.
"""

from dataclasses import dataclass

from server.cache.costs import Costs
from server.cache.host import HostStore
from server.cache.memory import SequenceMemory
from server.cache.naming import PieceNames
from server.cache.planner import CachePlan
from server.cache.rows import CacheRows, PieceBegin, make_copies, read_piece_from
from server.cache.runs import Run
from server.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Span:
    """Of a path: what goes on from the piece `parent`, from `start` to `stop`."""

    run: Run
    parent: str
    start: int
    stop: int


class Offload:
    """Between a memory's index and the host's memory.

    Args:
        least_tokens: fewer are not worth a piece of keys and values.
    """

    def __init__(
        self,
        host: HostStore,
        memory: SequenceMemory,
        plan: CachePlan,
        rows: CacheRows,
        *,
        names: PieceNames,
        costs: Costs,
        least_tokens: int,
    ) -> None:
        self._host, self._memory, self._plan, self._rows = host, memory, plan, rows
        self._names, self._costs, self._least_tokens = names, costs, least_tokens
        memory.index.on_block, memory.index.on_snapshot = self._block_goes, self._snapshot_goes

    def keep_state(self, sequence: Sequence) -> None:
        """What a preempted sequence will go on from; it has left it in the index, and it stays here until it does."""
        run, known = self._memory.index.find(sequence.as_array()[: sequence.num_computed], sequence.request.cache_salt)
        holder = next((part for part in run.path() if sequence.num_computed in part.snapshots), None)
        if known == sequence.num_computed and holder is not None:
            sequence.kept_piece = self._keep_state(holder, sequence.num_computed, pinned=True)
            if sequence.kept_piece:
                self._host.pin(sequence.kept_piece, sequence.request_id)

    def let_go(self, sequence: Sequence) -> None:
        """A preempted sequence runs again, or never will."""
        if sequence.kept_piece:
            self._host.unpin(sequence.kept_piece, sequence.request_id)
            sequence.kept_piece = ""

    def _snapshot_goes(self, run: Run, position: int) -> None:
        self._keep_state(run, position, pinned=False)

    def _keep_state(self, run: Run, position: int, *, pinned: bool) -> str:
        """Take the state after some tokens of a path, with the keys and values from the last whole piece up to it;
        returns its name, or none if there is no room.
        """
        snapshot, names, host = run.snapshots[position], self._names, self._host
        begin = names.begin(position)
        chain = names.of_path(run, begin)
        parent, tokens = chain[-1] if chain else "", run.tokens_between(begin, position)
        name = names.name(run.salt, parent, tokens, state=True)
        if name in host:
            host.touch(name)
        else:
            table = self._memory.index.blocks_of(run, position, begin) if names.has_blocks else []
            size = host.size_of(
                blocks_bytes=len(table) * self._plan.block_bytes,
                state_bytes=self._plan.bytes_per_sequence,
                num_tokens=len(tokens),
            )
            saved = max(1, snapshot.saved)
            if not host.make_room(size, saved, pinned=pinned):
                return ""
            span = Span(run, parent, begin, position)
            self._take(name, span, table, slot=snapshot.slot, saved=saved)
        for part in run.path():
            part.needed = max(part.needed, begin)
        return name

    def _block_goes(self, run: Run) -> None:
        """Take the piece that a run's last block is in, and the snapshots that go with it."""
        size, index = self._plan.block_size, self._memory.index
        start, stop = max(run.start, (run.end - 1) // size * size), run.end
        for position in [position for position in run.snapshots if position > start]:
            self._keep_state(run, position, pinned=False)
        if start >= run.kept or not self._costs.host_pays(self._plan.bytes_per_token):
            return
        begin = self._names.begin(start)
        is_whole = stop - begin == self._names.chunk
        # Of a model with states, keys and values are of use only up to one.
        wanted = (is_whole and stop <= run.needed) if self._names.has_state else self._is_worth(stop - begin)
        if not (is_whole or wanted):
            return
        if wanted:
            chain = self._names.of_path(run, stop)
            parent = chain[begin // self._names.chunk - 1] if begin else ""
            name = chain[-1] if is_whole else self._name_rest(run, parent, begin)
            if name in self._host:
                self._host.touch(name)
            elif self._host.make_room(self._rest_bytes(stop - begin), stop - begin):
                table = index.blocks_of(run, stop, begin)
                self._take(name, Span(run, parent, begin, stop), table, slot=None, saved=stop - begin)
        self._mark_kept(run, begin)

    def _is_worth(self, num_tokens: int) -> bool:
        return num_tokens >= self._least_tokens

    def _name_rest(self, run: Run, parent: str, begin: int) -> str:
        return self._names.name(run.salt, parent, run.tokens_between(begin, run.end), state=False)

    def _rest_bytes(self, num_tokens: int) -> int:
        num_bytes = self._plan.num_blocks_for(num_tokens) * self._plan.block_bytes
        return self._host.size_of(blocks_bytes=num_bytes, state_bytes=0, num_tokens=num_tokens)

    @staticmethod
    def _mark_kept(run: Run, begin: int) -> None:
        """The piece from `begin` on need not be taken again; of what it shares with others, where they part is."""
        for part in run.path():
            if part.end <= begin or (part is not run and len(part.children) > 1):
                break
            part.kept = min(part.kept, begin)

    def _take(self, name: str, span: Span, table: list[int], *, slot: int | None, saved: int) -> None:
        make_copies(self._rows, self._memory)
        tokens = span.run.tokens_between(span.start, span.stop)
        begin = PieceBegin(self._names.fingerprint, span.run.salt, span.parent, span.start)
        self._host.put(name, read_piece_from(self._rows, begin, tokens, table=table, slot=slot), saved)
