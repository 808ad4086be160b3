"""Commands that stand in an engine process's place, with its options and sockets."""

import pytest

from server.engine_child import EngineChild

SAY = """
import os, sys, time
from server.frames import framed
from server.messages import Failure, encode
outbox = int(next(a.partition("=")[2] for a in sys.argv if a.startswith("--outbox=")))
{what}
"""
COMPLAIN = 'os.write(outbox, framed(encode(Failure("no memory", False))))'


def replace_engine(monkeypatch: pytest.MonkeyPatch, *command: str) -> None:
    """Start another command in the engine's place, with the engine's options."""
    original = EngineChild._command
    monkeypatch.setattr(
        EngineChild, "_command", lambda *a: [*command, *(word for word in original(*a) if word.startswith("--"))]
    )
