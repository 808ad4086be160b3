"""How the server hears an engine process to its end, whatever it is that speaks."""

import asyncio
import contextlib
import os
import sys
from pathlib import Path

import pytest
from engine_stand_ins import COMPLAIN, SAY, replace_engine

import server.engine_child
from server.config import EngineConfig
from server.engine_child import EngineChild
from server.messages import Abort, Failure

CONFIG = EngineConfig(device="cpu")


async def test_what_an_engine_said_last_is_heard_however_long_it_takes(monkeypatch):
    """It has ended, and its socket has not: somebody else holds it, and speaks late."""
    late = f"if os.fork(): os._exit(1)\ntime.sleep(0.5)\n{COMPLAIN}"
    replace_engine(monkeypatch, sys.executable, "-c", SAY.format(what=late))
    heard = []
    assert await EngineChild("tiny", Path(), CONFIG, on_message=heard.append).live() == "exit code 1"
    assert heard == [Failure("no memory", False)]


async def test_who_speaks_to_a_dead_engine_still_hears_its_last_words(monkeypatch):
    """It said it before it ended, and the first to notice that it has is a message to it."""
    replace_engine(monkeypatch, sys.executable, "-c", SAY.format(what=COMPLAIN))
    heard = []
    child = EngineChild("tiny", Path(), CONFIG, on_message=heard.append)
    living = asyncio.create_task(child.live())
    async with asyncio.timeout(20):
        while child.pid is None:
            await asyncio.sleep(0.01)
    with contextlib.suppress(ChildProcessError):  # somebody has asked already
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    for _ in range(3):
        child.send(Abort("nobody"))
    assert await living == "exit code 0"
    assert heard == [Failure("no memory", False)]


async def test_an_engine_that_closes_its_socket_is_ended(monkeypatch):
    monkeypatch.setattr(server.engine_child, "LAST_WORDS_S", 0.2)
    replace_engine(monkeypatch, sys.executable, "-c", SAY.format(what="os.close(outbox); time.sleep(600)"))
    child = EngineChild("tiny", Path(), CONFIG, on_message=lambda _: None)
    assert await asyncio.wait_for(child.live(), 20) == "it listens no longer"
    assert child.pid is None


async def test_a_fault_of_ours_while_hearing_is_not_lost(monkeypatch):
    def fail(_: object) -> None:
        raise ZeroDivisionError("ours")

    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    replace_engine(monkeypatch, sys.executable, "-c", SAY.format(what=f"{COMPLAIN}; time.sleep(600)"))
    child = EngineChild("tiny", Path(), CONFIG, on_message=fail)
    with pytest.raises(ZeroDivisionError, match="ours"):
        await asyncio.wait_for(child.live(), 20)
    assert child.pid is None
