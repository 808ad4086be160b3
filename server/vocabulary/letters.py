"""How vocabularies write bytes, which a text cannot hold, and spaces, which would be lost among pieces."""

import re

SPACE = "\u2581"  # how pieces of SentencePiece write a space
BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def byte_letters() -> list[str]:
    """The letter that stands for each byte in the `tokenizers` library's byte-level vocabularies."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in visible]
    return [chr(byte) if byte in visible else chr(256 + hidden.index(byte)) for byte in range(256)]
