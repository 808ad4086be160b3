"""Messages as frames, and an engine process's end of the sockets."""

import socket
import threading
import time

import pytest
from fakes import make_request
from hypothesis import given
from hypothesis import strategies as st

from server.frames import Frames, framed
from server.mailbox import Mailbox, OrphanedError
from server.messages import Add, Failure, Stop, encode, from_engine


@given(st.lists(st.binary(max_size=300), max_size=8), st.data())
def test_messages_come_out_as_they_went_in_however_they_are_cut(messages, data):
    sent = b"".join(map(framed, messages))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(sent)), max_size=8)))
    frames, received = Frames(), []
    for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True):
        received += frames.take(sent[start:end])
    assert received == messages
    assert not frames.is_within_one


@pytest.fixture
def ends():
    """A mailbox, and the server's two ends of it: to write to, and to read from."""
    to_engine, inbox = socket.socketpair()
    from_engine, outbox = socket.socketpair()
    mailbox = Mailbox(inbox.detach(), outbox.detach())
    with to_engine, from_engine:
        yield mailbox, to_engine, from_engine
    mailbox.close()


def test_a_mailbox_takes_all_that_is_there_and_waits_for_what_has_begun(ends):
    mailbox, to_engine, _ = ends
    assert mailbox.receive(0) == []
    long = Add(make_request("long", range(1_000_000), 1))
    # More than the socket holds: it comes in pieces.
    sending = threading.Thread(target=to_engine.sendall, args=(framed(encode(long)) + framed(encode(Stop())),))
    sending.start()
    received, until_s = [], time.monotonic() + 20
    while len(received) < 2 and time.monotonic() < until_s:
        received += mailbox.receive(100)
    sending.join()
    assert received == [long, Stop()]


def test_half_a_message_holds_no_step_up(ends):
    mailbox, to_engine, _ = ends
    to_engine.sendall(framed(encode(Stop()))[:-1])
    assert mailbox.receive(0) == []
    assert mailbox.receive(0) == []
    to_engine.sendall(framed(encode(Stop()))[-1:])
    assert mailbox.receive(0) == [Stop()]


def test_whoever_is_left_alone_notices(ends):
    mailbox, to_engine, from_server = ends
    mailbox.send(Failure("heard", final=False))
    [frame] = Frames().take(from_server.recv(1000))
    assert from_engine.decode(frame) == Failure("heard", final=False)
    to_engine.close()
    from_server.close()
    for wait_ms in (0, 1000):
        with pytest.raises(OrphanedError):
            mailbox.receive(wait_ms)
    with pytest.raises(OrphanedError):
        mailbox.send(Failure("not heard", final=False))
