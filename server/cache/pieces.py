"""What a file of the cache directory holds: a piece of a path of tokens, with its keys and values, its state, or both.

    magic (8) | version, length of the header (4 each) | header (JSON) | tokens | blocks | state | checksum (16)

A piece holds the tokens `start` to `end` of a path. Its blocks are those with these positions, all layers; its state is
the one after `end` tokens. Where it does not begin at the root, `parent` is the name of the piece that ends where it
begins. A piece is named by a hash of all that decides its content, of its parent's name among them and so of all tokens
from the root on: the same prefix has the same name, whoever computed it.
"""

import hashlib
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from server.cache.runs import Tokens

MAGIC = b"FATHOMKV"
VERSION = 1  # to be raised when the same name would come to mean another content
FIXED = struct.Struct("<8sII")
CHECKSUM_BYTES = 16
MAX_HEADER_BYTES = 4096
TOKEN = np.dtype("<i4")


class ForeignFileError(Exception):
    """Not a file of ours, or of another version or model: it is left alone."""


class BrokenFileError(Exception):
    """A file of ours that was torn, cut short or changed: what it holds must not be used."""


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    fingerprint: str
    salt: str
    parent: str
    start: int
    end: int
    blocks_bytes: int
    state_bytes: int

    @property
    def tokens_bytes(self) -> int:
        return (self.end - self.start) * TOKEN.itemsize

    @property
    def payload_bytes(self) -> int:
        return self.tokens_bytes + self.blocks_bytes + self.state_bytes


def _is_ready() -> None:
    """The bytes of a piece are there already."""


@dataclass(frozen=True, slots=True)
class Piece:
    """salt: the digest of the salt whose requests alone may find it. tokens: those from start to the end. ready: to be
    called before the bytes of blocks and state are looked at: a device may still be writing them.
    """

    fingerprint: str
    salt: str
    parent: str
    start: int
    tokens: Tokens
    blocks: memoryview
    state: memoryview
    ready: Callable[[], None] = _is_ready

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)

    @property
    def name(self) -> str:
        return piece_name(self.fingerprint, self.salt, self.parent, self.tokens, state=bool(self.state))

    @property
    def header(self) -> Header:
        sizes = (len(self.blocks), len(self.state))
        return Header(self.fingerprint, self.salt, self.parent, self.start, self.end, *sizes)


def piece_name(fingerprint: str, salt: str, parent: str, tokens: Tokens, *, state: bool) -> str:
    """32 hex digits for the piece that goes on with these tokens; one with a state is another than one without."""
    [(_, name)] = names_at(fingerprint, salt, parent, tokens, (len(tokens),), state=state)
    return name


def names_at(
    fingerprint: str, salt: str, parent: str, tokens: Tokens, lengths: Iterable[int], *, state: bool
) -> Iterator[tuple[int, str]]:
    """Names of the pieces that go on with the first tokens, for each of some ascending lengths."""
    digest = hashlib.blake2b(f"{fingerprint}|{salt}|{parent}|{state}|".encode(), digest_size=16)
    content, done = memoryview(tokens.astype(TOKEN).tobytes()), 0
    for length in lengths:
        digest.update(content[done : length * TOKEN.itemsize])
        done = length * TOKEN.itemsize
        yield length, digest.copy().hexdigest()


def fingerprint(*facts: object) -> str:
    """32 hex digits for all that must be equal for one engine to go on from what another has computed."""
    return hashlib.blake2b(repr((VERSION, *facts)).encode(), digest_size=16).hexdigest()


def file_bytes(header: Header) -> int:
    """How long the file of a piece is."""
    return FIXED.size + len(msgspec.json.encode(header)) + header.payload_bytes + CHECKSUM_BYTES


def encode(piece: Piece) -> list[bytes | memoryview]:
    """The file's content, in parts, so that the large ones are not copied."""
    piece.ready()
    header = msgspec.json.encode(piece.header)
    head = FIXED.pack(MAGIC, VERSION, len(header)) + header
    parts: list[bytes | memoryview] = [head, piece.tokens.astype(TOKEN).tobytes(), piece.blocks, piece.state]
    return [*parts, _checksum(parts)]


def read_header(file: Path) -> Header:
    """The header alone; that the rest is of the length which it says is checked, but not what it is.

    Raises:
        ForeignFileError, BrokenFileError, OSError
    """
    with file.open("rb") as content:
        head = content.read(FIXED.size + MAX_HEADER_BYTES)
    header, _ = _parse(memoryview(head), file.stat().st_size)
    return header


def read_piece(file: Path) -> Piece:
    """All of a file, verified.

    Raises:
        ForeignFileError, BrokenFileError, OSError
    """
    # Writable, as who takes the bytes wants it.
    content = memoryview(bytearray(file.stat().st_size))
    with file.open("rb") as source:
        if source.readinto(content) != len(content):
            raise BrokenFileError("it is shorter than it was")
    header, begin = _parse(content, len(content))
    if content[-CHECKSUM_BYTES:] != _checksum([content[:-CHECKSUM_BYTES]]):
        raise BrokenFileError("its checksum is wrong")
    blocks = begin + header.tokens_bytes
    state = blocks + header.blocks_bytes
    tokens = np.frombuffer(content[begin:blocks], TOKEN).astype(np.int32)
    end = state + header.state_bytes
    piece = Piece(
        header.fingerprint, header.salt, header.parent, header.start, tokens, content[blocks:state], content[state:end]
    )
    if piece.name != file.stem:
        raise BrokenFileError("it bears the name of another")
    return piece


def _parse(head: memoryview, size: int) -> tuple[Header, int]:
    """The header at the begin of a file, and where its tokens begin."""
    if len(head) < FIXED.size or head[: len(MAGIC)] != MAGIC:
        raise ForeignFileError("it is not a file of this cache")
    _, version, length = FIXED.unpack(head[: FIXED.size])
    if version != VERSION:
        raise ForeignFileError(f"it is of version {version}, not {VERSION}")
    begin = FIXED.size + length
    try:
        header = msgspec.json.decode(head[FIXED.size : begin], type=Header)
    except msgspec.MsgspecError as error:
        raise BrokenFileError("its header cannot be read") from error
    if not 0 <= header.start <= header.end or min(header.blocks_bytes, header.state_bytes) < 0:
        raise BrokenFileError("its header contradicts itself")
    if begin + header.payload_bytes + CHECKSUM_BYTES != size:
        raise BrokenFileError(f"it has {size:,} bytes, not as many as its header says")
    return header, begin


def _checksum(parts: list[bytes | memoryview]) -> bytes:
    digest = hashlib.blake2b(digest_size=CHECKSUM_BYTES)
    for part in parts:
        digest.update(part)
    return digest.digest()
