"""What the tiers below the device need of whoever has the tensors: the bytes of blocks and of states."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from server.cache.blocks import RowCopy
from server.cache.memory import SequenceMemory
from server.cache.pieces import Piece
from server.cache.runs import Tokens


class WriteTimer(Protocol):
    """How long what was written took to arrive."""

    def stop(self) -> None:
        """What is written from now on does not count."""

    def seconds(self) -> float | None:
        """None while it is on its way; asked after `stop`."""
        ...


class CacheRows(Protocol):
    """The bytes of blocks and of states, of all layers; the runner has them.

    What is read may arrive later: who looks at the bytes first calls what `reads_done` gave after the read. What is
    written may too, and its content stays as it is until a timer has its seconds. Everything is in the order of the
    calls, steps among them: what is read is what was there then, and a step finds what was written before.
    """

    def read_blocks(self, blocks: Sequence[int]) -> memoryview: ...

    def read_state(self, slot: int) -> memoryview: ...

    def reads_done(self) -> Callable[[], None]: ...

    def write_blocks(self, blocks: Sequence[int], content: memoryview) -> None:
        """Put back what `read_blocks` gave; blocks that are -1 are left out."""

    def write_state(self, slot: int, content: memoryview) -> None: ...

    def time_writes(self) -> WriteTimer: ...

    def copy(self, copies: Sequence[RowCopy]) -> None: ...


@dataclass(frozen=True, slots=True)
class PieceBegin:
    """What a piece is of and where it begins, as in the piece itself."""

    fingerprint: str
    salt: str
    parent: str
    start: int


def read_piece_from(
    rows: CacheRows, begin: PieceBegin, tokens: Tokens, *, table: Sequence[int], slot: int | None
) -> Piece:
    """A piece from the device, with what these blocks and this slot hold now."""
    blocks = rows.read_blocks(table) if table else memoryview(b"")
    state = memoryview(b"") if slot is None else rows.read_state(slot)
    return Piece(
        begin.fingerprint, begin.salt, begin.parent, begin.start, tokens.copy(), blocks, state, rows.reads_done()
    )


def make_copies(rows: CacheRows, memory: SequenceMemory) -> None:
    """Make the copies that the next step would begin with: while a step is decided, who reads or writes rows does it
    after them, for they were decided before.
    """
    if memory.has_copies:
        rows.copy(memory.take_copies())
