"""What survives a restart: pieces on the disk, what is never served from there, and the bound on them."""

import errno
import logging
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import drain, tokens_of
from serving import ROOT
from tiny_models import KINDS, VOCAB_SIZE, write_tiny_model

import server.cache.costs
import server.cache.tiers
from server.cache.lower import LowerTiers
from server.cache.pieces import MAGIC, Piece, file_bytes
from server.cache.planner import CachePlan
from server.cache.tiers import DiskStore
from server.engine import Engine
from server.request import EngineRequest, EngineStats, SamplingParams
from server.runner import Runner
from server.scheduler import SchedulerLimits

LENGTH = 600  # tokens of a prompt: two whole runs of keys and values, and a rest
MIB = 1 << 20


@pytest.fixture(scope="module", params=KINDS)
def runner(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Runner:
    torch.set_num_threads(1)
    directory = write_tiny_model(request.param, tmp_path_factory.mktemp(request.param))
    return Runner(directory, dtype=torch.float32, device=torch.device("cpu"))


def prompt(seed: int, length: int = LENGTH) -> list[int]:
    return np.random.default_rng(seed).integers(0, VOCAB_SIZE, length).tolist()


class Lives:
    """Engines one after the other, over fresh caches and the same directory."""

    def __init__(self, runner: Runner, root: Path) -> None:
        self._runner, self.root = runner, root
        self.engine: Engine | None = None

    def start(self, *, model: str = "tiny", max_bytes: int = 64 * MIB, disk: bool = True, scale: float = 1.0) -> Engine:
        self.stop()
        needs = self._runner.decoder.config.cache_needs(4)
        num_blocks = int(1000 * scale) if needs.bytes_per_token else 0
        plan = CachePlan(needs.bytes_per_token, needs.bytes_per_sequence, 4, num_blocks, int(60 * scale))
        self._runner.allocate(plan)
        tiers = None
        if disk:
            self.store = DiskStore(self.root, model, max_bytes=max_bytes)
            tiers = LowerTiers(plan, self._runner.rows, snapshot_every=64, disk=self.store)
        limits = SchedulerLimits(4, 256, 256, 4096, snapshot_every=64, prefix_cache=disk)
        self.engine = Engine(self._runner, plan, limits, (), tiers)
        self.engine.scheduler.check()
        return self.engine

    def stop(self) -> EngineStats:
        """End the engine, when all is written that shall be; its last figures."""
        engine, self.engine = self.engine, None
        if engine is None:
            return EngineStats()
        engine.close()
        engine.scheduler.check()
        return engine.stats()

    def ask(self, tokens: list[int], salt: str = "") -> tuple[list[int], int]:
        """The answer, and how many tokens of the prompt were known."""
        assert self.engine is not None
        params = SamplingParams(6, temperature=0.0, ignore_eos=True)
        self.engine.add_request(EngineRequest(f"r{time.monotonic_ns()}", tuple(tokens), params, salt))
        [outputs] = drain(self.engine).values()
        usage = outputs[-1].usage
        assert usage is not None
        return tokens_of(outputs), usage.cached_tokens

    def files(self) -> list[Path]:
        return sorted(file for file in self.root.glob("*/*") if file.name != "lock")


@pytest.fixture
def lives(runner: Runner, tmp_path: Path) -> Iterator[Lives]:
    lives = Lives(runner, tmp_path)
    yield lives
    lives.stop()


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_second_life_knows_what_the_first_computed(lives):
    asked = [prompt(1), prompt(1, 300) + prompt(2, 300), prompt(3, 90)]
    lives.start(disk=False)
    alone = [lives.ask(tokens)[0] for tokens in asked]
    lives.start()
    assert [lives.ask(tokens)[0] for tokens in asked] == alone
    written = lives.stop()
    assert written.disk_writes == written.disk_pieces == len(lives.files()) >= 3
    assert written.disk_bytes == sum(file.stat().st_size for file in lives.files())
    lives.start()
    assert [lives.ask(tokens) for tokens in asked] == [
        (answer, len(tokens) - 1) for answer, tokens in zip(alone, asked, strict=True)
    ]
    # The same is not written twice.
    again = lives.stop()
    assert (again.disk_writes, again.disk_bytes) == (0, written.disk_bytes)
    assert again.disk_bytes_read == written.disk_bytes


def test_what_follows_a_known_context_is_computed_alone(lives):
    """Another question after the same long context, and the next turn of a conversation."""
    context = prompt(1)
    lives.start()
    for seed in (2, 3):
        lives.ask(context + prompt(seed, 30))
    answer, _ = lives.ask(context)
    lives.start()
    assert lives.ask(context + prompt(4, 30))[1] >= LENGTH - 1
    assert lives.ask(context + answer + prompt(5, 30))[1] >= LENGTH - 1


def test_a_state_that_another_went_on_from_is_kept(lives):
    """A regular one, which is not kept for itself. Attention needs none."""
    engine = lives.start()
    lives.ask(prompt(1))
    if engine.stats().snapshots == 0:
        return
    assert lives.ask(prompt(1)[:138] + prompt(2, 50))[1] == 128
    lives.start()
    assert lives.ask(prompt(1)[:138] + prompt(3, 50))[1] == 128


def test_the_end_of_a_prompt_is_kept_wherever_it_is(lives):
    lives.start()
    lives.ask(prompt(1, 321))  # with a regular state before its last token
    lives.start()
    assert lives.ask(prompt(1, 321))[1] == 320


def test_what_lacks_its_begin_is_not_used(lives):
    lives.start()
    answer, _ = lives.ask(prompt(1))
    lives.stop()
    knowns = []
    for file in lives.files():
        content = file.read_bytes()
        file.unlink()
        lives.start()
        found, known = lives.ask(prompt(1))
        assert found == answer
        knowns.append(known)
        lives.stop()
        file.write_bytes(content)
    assert min(knowns) < LENGTH - 1 >= max(knowns)  # of states others may serve


def test_a_life_after_life_answers_as_one_without_a_disk(lives):
    """Prompts that share beginnings of any length, over more lives than one, in less memory than they take."""
    rng = random.Random(3)
    families = [prompt(seed, 700) for seed in range(3)]
    asked = [rng.choice(families)[: rng.randrange(60, 700)] + prompt(50 + n, rng.randrange(1, 40)) for n in range(12)]
    lives.start(disk=False)
    alone = [lives.ask(tokens)[0] for tokens in asked]
    found = 0
    for _ in range(3):
        lives.start(scale=0.5, max_bytes=MIB)
        order = rng.sample(range(len(asked)), len(asked))
        for place in order:
            answer, known = lives.ask(asked[place])
            assert answer == alone[place]
            found += known if place == order[0] else 0
        assert lives.stop().disk_bytes <= MIB
    assert found > 0


def test_no_more_than_half_of_the_memory_is_filled_at_the_start(lives):
    lives.start()
    for seed in range(14):
        lives.ask(prompt(seed, 330))
    lives.start(scale=0.5)
    stats = lives.engine.stats()
    assert stats.cached_blocks <= stats.num_blocks // 2
    assert stats.snapshots <= stats.num_state_slots // 2
    assert stats.cached_blocks + stats.snapshots > 0
    # What was of use last is there.
    assert lives.ask(prompt(13, 330))[1] == 329


def flip(place: float) -> Callable[[Path], None]:
    def change(file: Path) -> None:
        content = bytearray(file.read_bytes())
        content[int(place * (len(content) - 1))] ^= 1
        file.write_bytes(content)

    return change


DAMAGE: dict[str, Callable[[Path], object]] = {
    "first byte": flip(0.0),
    "last byte": flip(1.0),
    "middle": flip(0.5),
    "another": flip(0.9),
    "cut short": lambda file: os.truncate(file, file.stat().st_size // 2),
    "cut to its head": lambda file: os.truncate(file, 12),
    "emptied": lambda file: os.truncate(file, 0),
    "longer": lambda file: file.write_bytes(file.read_bytes() + b"x"),
    "another version": lambda file: file.write_bytes(MAGIC + b"\xff" + file.read_bytes()[9:]),
    "no file of ours": lambda file: file.write_text("a letter to my grandmother"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_was_damaged_is_not_served(lives, caplog, damage):
    lives.start()
    answer, _ = lives.ask(prompt(1, 330))
    lives.stop()
    damaged = lives.files()
    for file in damaged:
        DAMAGE[damage](file)
    lives.start()
    told = warnings_of(caplog)
    # What goes on from a piece that cannot be used is not even read.
    assert 0 < len(told) <= len(damaged)
    assert all(any(str(file) in line for file in damaged) for line in told)
    ours = damage not in ("first byte", "cut to its head", "emptied", "another version", "no file of ours")
    assert len(damaged) - len(lives.files()) == (len(told) if ours else 0)
    assert lives.ask(prompt(1, 330)) == (answer, 0)


def test_a_file_under_the_name_of_another_is_not_served(lives, caplog):
    lives.start()
    for seed in (1, 2):
        lives.ask(prompt(seed, 200))
    lives.stop()
    first, *_, last = lives.files()
    first.write_bytes(last.read_bytes())
    lives.start()
    [told] = warnings_of(caplog)
    assert str(first) in told
    assert "the name of another" in told
    assert not first.exists()
    less, whole = sorted(lives.ask(prompt(seed, 200))[1] for seed in (1, 2))
    assert less < whole == 199


def test_what_another_model_left_is_neither_used_nor_touched(lives, caplog):
    lives.start(model="one")
    lives.ask(prompt(1))
    left = lives.stop().disk_pieces
    lives.start(model="two")
    assert lives.ask(prompt(1))[1] == 0
    lives.stop()
    assert warnings_of(caplog) == []
    one, two = (lives.root / name for name in ("one", "two"))
    assert len(list(one.glob("*.piece"))) == left
    shutil.rmtree(two)
    shutil.copytree(one, two)
    lives.start(model="two")
    assert len(warnings_of(caplog)) == left
    assert all("another model" in line for line in warnings_of(caplog))
    assert lives.ask(prompt(1))[1] == 0


def test_a_salt_divides_the_disk_and_is_not_written_down(lives):
    lives.start()
    for salt in ("s3cret", ""):
        lives.ask(prompt(1), salt)
    lives.start()
    assert [lives.ask(prompt(1), salt)[1] for salt in ("other", "", "s3cret")] == [0, LENGTH - 1, LENGTH - 1]
    assert all(b"s3cret" not in file.read_bytes() for file in lives.files())


def test_what_was_cleared_does_not_come_back(lives):
    engine = lives.start()
    lives.ask(prompt(1))
    engine.clear_cache()
    assert lives.stop().disk_pieces == 0
    assert lives.files() == []
    lives.start()
    assert lives.ask(prompt(1))[1] == 0


def test_who_else_may_read_it(lives):
    lives.start()
    lives.ask(prompt(1))
    lives.stop()
    assert {file.stat().st_mode & 0o777 for file in lives.files()} == {0o600}
    assert {file.parent.stat().st_mode & 0o777 for file in lives.files()} == {0o700}


def test_a_disk_that_is_full_is_told_once_and_serving_goes_on(lives, caplog, monkeypatch):
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    lives.start()
    answers = [lives.ask(prompt(seed))[0] for seed in (1, 2)]
    assert lives.stop().disk_writes == 0
    [told] = warnings_of(caplog)
    assert "No space left on device" in told
    assert lives.files() == []
    monkeypatch.undo()
    lives.start()
    assert [lives.ask(prompt(seed))[0] for seed in (1, 2)] == answers


def test_reading_that_takes_longer_than_computing_is_not_prepared(lives, monkeypatch):
    monkeypatch.setattr(server.cache.costs, "DISK_BYTES_PER_S", 1.0)
    engine = lives.start()
    lives.ask(prompt(1))
    has_blocks = engine.stats().num_blocks > 0
    assert (lives.stop().disk_writes > 0) == (not has_blocks)


def test_a_queue_that_is_full_leaves_out(lives, monkeypatch):
    """While the disk does not answer, nobody waits for it."""
    answers = threading.Event()
    monkeypatch.setattr(os, "fsync", lambda _: answers.wait(60))
    monkeypatch.setattr(server.cache.tiers, "QUEUE_BYTES", 1)
    engine = lives.start()
    for seed in (1, 2):
        lives.ask(prompt(seed))
    assert engine.stats().disk_writes_skipped > 0
    answers.set()
    stats = lives.stop()
    assert stats.disk_writes == stats.disk_pieces == 1


def test_what_a_killed_writer_left_goes(lives, caplog):
    lives.start()
    lives.ask(prompt(1))
    lives.stop()
    whole = lives.files()
    half = whole[0].with_name("0" * 32 + ".tmp")
    half.write_bytes(whole[0].read_bytes()[:100])
    lives.start()
    assert lives.files() == whole
    assert lives.ask(prompt(1))[1] == LENGTH - 1
    assert warnings_of(caplog) == []


def piece(tokens: list[int], parent: Piece | None = None, *, size: int = 1000) -> Piece:
    begin, name = (0, "") if parent is None else (parent.end, parent.name)
    return Piece("tiny", "", name, begin, np.array(tokens, np.int32), memoryview(bytes(size)), memoryview(b""))


def test_what_was_not_used_for_longest_goes_first_and_a_path_from_its_end(tmp_path):
    size = file_bytes(piece([1]).header) + 200  # headers differ by some bytes
    store = DiskStore(tmp_path, "tiny", max_bytes=4 * size)
    paths = []
    for first in (1, 2):
        begin = piece([first])
        paths.append((begin, piece([first], begin)))
        for each in paths[-1]:
            store.put(each.name, each)
    (old, old_end), (new, new_end) = paths
    store.touch(old_end.name)
    store.close(10)
    assert set(store.entries) == {each.name for path in paths for each in path}
    store = DiskStore(tmp_path, "tiny", max_bytes=4 * size)  # what was of use last it knows from the files
    third = piece([3])
    store.put(third.name, third)
    store.close(10)
    assert set(store.entries) == {old.name, old_end.name, new.name, third.name}
    store = DiskStore(tmp_path, "tiny", max_bytes=2 * size)
    assert set(store.entries) == {old.name, third.name} or set(store.entries) == {old.name, old_end.name}
    assert store.stats().bytes == sum(file.stat().st_size for file in tmp_path.glob("*/*.piece")) <= 2 * size
    # What could not be found without its begin is not written, nor what would need the room of its own begin.
    before = set(store.entries)
    lost, large = piece([9], new_end), piece([5], third, size=3 * size)
    for each in (lost, large):
        store.put(each.name, each)
    store.close(10)
    assert store.stats().writes == 0
    assert store.stats().skipped == 2
    assert set(store.entries) == before


def test_room_for_an_end_is_not_made_of_its_begin(tmp_path):
    store = DiskStore(tmp_path, "tiny", max_bytes=4 * (file_bytes(piece([1]).header) + 50))
    begin = piece([1])
    others = [piece([first]) for first in (2, 3, 4)]
    end = piece([1], begin)
    for each in (begin, *others, end):
        store.put(each.name, each)
    store.close(10)
    assert {begin.name, end.name} <= set(store.entries)
    assert others[0].name not in store.entries


WRITE_FOR_EVER = """
import itertools, sys
from pathlib import Path
import numpy as np
from server.cache.pieces import Piece
from server.cache.tiers import DiskStore

store = DiskStore(Path(sys.argv[1]), "tiny", max_bytes=20 << 20)
for number in itertools.count():
    piece = Piece("tiny", "", "", 0, np.array([number], np.int32), memoryview(bytes(1 << 20)), memoryview(b""))
    while store.stats().writes < number - 2:
        pass
    store.put(piece.name, piece)
    print(number, flush=True)
"""


def test_a_process_that_is_killed_at_any_moment_leaves_only_what_is_whole(tmp_path, caplog):
    for _ in range(3):
        command = [sys.executable, "-c", WRITE_FOR_EVER, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as writer:
            while int(writer.stdout.readline()) < 25:
                pass
            writer.kill()
        store = DiskStore(tmp_path, "tiny", max_bytes=20 << 20)
        names = list(store.entries)
        assert 15 <= len(names) <= 20
        assert all(store.read(name) is not None for name in names)
        store.close(10)
        assert list(tmp_path.glob("*/*.tmp")) == []
    assert warnings_of(caplog) == []


def test_a_second_process_only_reads(lives, caplog, monkeypatch):
    monkeypatch.setattr(server.cache.tiers, "LOCK_WAIT_S", 0.2)
    lives.start()
    lives.ask(prompt(1))
    lives.stop()
    holder = DiskStore(lives.root, "tiny", max_bytes=MIB)
    lives.start()
    [told] = warnings_of(caplog)
    assert "another process writes" in told
    assert lives.ask(prompt(1))[1] == LENGTH - 1
    lives.ask(prompt(2))
    assert lives.stop().disk_writes == 0
    holder.close(10)
    lives.start()
    lives.ask(prompt(2))
    assert lives.stop().disk_writes > 0
