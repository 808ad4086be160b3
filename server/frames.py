"""Messages between processes as frames on a stream socket: a length of four bytes, then as many bytes of message."""

LENGTH_BYTES = 4
MAX_FRAME_BYTES = (1 << 8 * LENGTH_BYTES) - 1
# What a socket may hold of what nobody has read yet: the system gives what it allows, and in it some hundred steps.
SOCKET_BYTES = 4 << 20


def framed(message: bytes) -> bytes:
    """Raises: OverflowError, where it is longer than MAX_FRAME_BYTES."""
    return len(message).to_bytes(LENGTH_BYTES, "little") + message


class Frames:
    """Cuts what comes from a socket into messages again."""

    def __init__(self) -> None:
        self._rest = bytearray()

    @property
    def is_within_one(self) -> bool:
        """Whether a message has begun and not ended yet."""
        return bool(self._rest)

    def take(self, data: bytes) -> list[bytes]:
        """The messages that end with this data, in order."""
        self._rest += data
        messages, start = [], 0
        while (begin := start + LENGTH_BYTES) <= len(self._rest):
            end = begin + int.from_bytes(self._rest[start:begin], "little")
            if end > len(self._rest):
                break
            messages.append(bytes(self._rest[begin:end]))
            start = end
        del self._rest[:start]
        return messages
