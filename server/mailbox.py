"""An engine process's end of the sockets to the server."""

import select
import socket

from server.frames import SOCKET_BYTES, Frames, framed
from server.messages import FromEngine, ToEngine, encode, to_engine

READ_BYTES = 1 << 20
# A long message comes in pieces, as the socket has room for them: steps wait this long for each.
PIECE_MS = 5


class OrphanedError(Exception):
    """The process that started this one is gone: nobody listens any more."""


class Mailbox:
    """The two sockets of an engine process, one for each direction.

    Args:
        inbox, outbox: their file descriptors, which it takes over.
    """

    def __init__(self, inbox: int, outbox: int) -> None:
        self._inbox, self._outbox = socket.socket(fileno=inbox), socket.socket(fileno=outbox)
        for end in (self._inbox, self._outbox):
            end.set_inheritable(False)
        self._inbox.setblocking(False)
        self._outbox.setblocking(True)
        self._outbox.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
        self._frames = Frames()
        self._poll = select.poll()
        self._poll.register(self._inbox, select.POLLIN)

    def receive(self, timeout_ms: int) -> list[ToEngine]:
        """All messages that are there, after waiting up to `timeout_ms` for the first.

        Raises:
            OrphanedError
        """
        messages: list[ToEngine] = []
        while not timeout_ms or self._poll.poll(timeout_ms):
            try:
                data = self._inbox.recv(READ_BYTES)
            except BlockingIOError:
                break
            except ConnectionError as error:
                raise OrphanedError from error
            if not data:
                raise OrphanedError
            messages += [to_engine.decode(frame) for frame in self._frames.take(data)]
            timeout_ms = PIECE_MS if self._frames.is_within_one else 0
        return messages

    def send(self, message: FromEngine) -> None:
        """Send, waiting while the other end is slow to read.

        Raises:
            OrphanedError: the other end will never read.
        """
        try:
            self._outbox.sendall(framed(encode(message)))
        except ConnectionError as error:
            raise OrphanedError from error

    def close(self) -> None:
        """Close; what was sent is the system's by now, which keeps it for the other end."""
        self._inbox.close()
        self._outbox.close()
