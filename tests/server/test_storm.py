"""Requests of every sort over too little memory, tiers below it that are too small as well, and engines that end."""

import os
import queue
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from fakes import KnownSpeed, drain, fast_directory, make_request, tokens_of
from tiny_models import KINDS, VOCAB_SIZE, write_tiny_model

import server.cache.persistence
from server.cache.host import HostStore
from server.cache.lower import LowerTiers
from server.cache.planner import CachePlan, plan_cache
from server.cache.tiers import DiskStore
from server.config import Policy
from server.engine import Engine
from server.request import EngineRequest, EngineStats
from server.runner import Runner
from server.scheduler import SchedulerLimits

NUM_REQUESTS = 720  # of each kind of model
POLICIES: tuple[Policy, ...] = ("fair", "first-come", "fair", "fair", "shortest", "fair")  # life by life
MOST_TOKENS = 12


@pytest.fixture(scope="module", params=KINDS)
def runner(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Runner:
    torch.set_num_threads(1)
    directory = write_tiny_model(request.param, tmp_path_factory.mktemp(request.param))
    return Runner(directory, dtype=torch.float32, device=torch.device("cpu"))


@dataclass
class Life:
    """An engine, and the disk that it writes to."""

    engine: Engine
    tiers: LowerTiers
    disk: DiskStore

    def close(self) -> None:
        self.engine.close()

    def kill(self) -> None:
        """As if the process had gone: what waits to be written is lost."""
        jobs = self.disk._queue.jobs
        try:
            while True:
                jobs.get_nowait()
        except queue.Empty:
            self.engine.close()


class Storm:
    """Owns the requests that are open, and what was answered to those that are done."""

    def __init__(self, runner: Runner, root: Path, rng: random.Random) -> None:
        self._runner, self._root, self._rng = runner, root, rng
        families = [self._tokens(48) for _ in range(4)]
        self._prompts = [
            tuple(rng.choice(families)[: rng.randrange(1, 49)] + self._tokens(rng.randrange(9))) for _ in range(60)
        ]
        self.open: dict[str, EngineRequest] = {}
        self.outputs: dict[str, list[int]] = {}
        self.done: dict[str, tuple[EngineRequest, list[int]]] = {}
        self.num_asked = self.num_dropped = self.num_late = 0
        self.counts: dict[str, float] = {}

    def _tokens(self, count: int) -> list[int]:
        return [self._rng.randrange(VOCAB_SIZE) for _ in range(count)]

    def plan(self, num_blocks: int, slots: int) -> CachePlan:
        needs = self._runner.decoder.config.cache_needs(4)
        if not (needs.bytes_per_token and needs.bytes_per_sequence):
            num_blocks = num_blocks if needs.bytes_per_token else 0
            return CachePlan(needs.bytes_per_token, needs.bytes_per_sequence, 4, num_blocks, slots)
        block, slot = self._runner.row_bytes(4)
        return plan_cache(
            bytes_per_token=needs.bytes_per_token,
            bytes_per_sequence=needs.bytes_per_sequence,
            block_size=4,
            cache_bytes=num_blocks * block + slots * slot,
            max_running=slots,
            row_bytes=(block, slot),
        )

    def answers_alone(self) -> dict[tuple[int, ...], list[int]]:
        """Of each prompt on an engine of its own, without any cache."""
        alone = {}
        plan, limits = self.plan(20, 1), SchedulerLimits(1, 64, 64, 80, prefix_cache=False)
        for prompt in self._prompts:
            self._runner.allocate(plan)
            engine = Engine(self._runner, plan, limits, ())
            engine.add_request(make_request("alone", prompt, MOST_TOKENS, ignore_eos=True))
            alone[prompt] = tokens_of(drain(engine)["alone"])
        return alone

    def start(self, policy: Policy) -> Life:
        """A new life over the same directory, in which is asked again what was not answered."""
        rng = self._rng
        plan = self.plan(44, 9)
        self._runner.allocate(plan)
        assert self._runner.capture(max_running=6, max_context=80) is None
        disk = DiskStore(self._root, "tiny", max_bytes=rng.choice((60_000, 600_000)))
        host = HostStore(rng.choice((20_000, 100_000)))
        tiers = LowerTiers(
            plan, self._runner.rows, snapshot_every=8, disk=disk, host=host, chunk_tokens=8, least_tokens=4
        )
        limits = SchedulerLimits(
            rng.choice((3, 6)),
            40,
            rng.choice((7, 17, 40)),
            80,
            snapshot_every=8,
            policy=policy,
        )
        engine = Engine(self._runner, plan, limits, (), tiers, overlaps=rng.random() < 0.5)
        engine.scheduler._speed = KnownSpeed(1000.0)
        engine.scheduler.check()
        self.outputs = {request_id: [] for request_id in self.open}
        for request in self.open.values():
            engine.add_request(request)
        return Life(engine, tiers, disk)

    def ask(self, engine: Engine) -> None:
        """One prompt, for one or several completions."""
        rng, prompt = self._rng, self._rng.choice(self._prompts)
        marks = tuple(sorted(rng.sample(range(1, len(prompt) + 1), min(len(prompt), rng.choice((0, 0, 0, 1, 2))))))
        tenant, salt, priority = rng.choice("aaab"), rng.choice(("", "", "salt")), rng.choice((0, 0, 0, -1, 1))
        timeout_s = rng.choice((None,) * 15 + (0.0, 0.01))
        for _ in range(rng.choice((1, 1, 1, 1, 2, 3))):
            request = make_request(f"r{self.num_asked}", prompt, rng.randrange(1, MOST_TOKENS + 1), ignore_eos=True)
            if rng.random() < 0.1:
                request = replace(request, params=replace(request.params, temperature=1.0, seed=self.num_asked))
            request = replace(
                request,
                tenant=tenant,
                cache_salt=salt,
                priority=priority,
                timeout_s=timeout_s,
                marks=marks,
                mark_ttl_s=tuple(rng.choice((0.01, 60.0)) for _ in marks),
            )
            engine.add_request(request)
            self.open[request.request_id] = request
            self.outputs[request.request_id] = []
            self.num_asked += 1

    def step(self, engine: Engine) -> None:
        for request_id, output in engine.step():
            self.outputs[request_id] += output.token_ids
            if output.finish_reason == "timeout":
                del self.open[request_id]
                self.num_late += 1
            elif output.finish_reason is not None:
                self.done[request_id] = self.open.pop(request_id), self.outputs[request_id]
        engine.scheduler.check()

    def drop_one(self, engine: Engine) -> None:
        request_id = self._rng.choice(list(self.open))
        assert engine.abort(request_id) is not None
        del self.open[request_id]
        self.num_dropped += 1
        engine.scheduler.check()

    def count(self, stats: EngineStats) -> None:
        for name in ("num_preemptions", "cached_tokens", "host_hits", "host_writes", "disk_hits", "disk_writes"):
            self.counts[name] = self.counts.get(name, 0) + getattr(stats, name)

    def tear(self) -> None:
        """A piece is cut short, as by a disk that lost its last writes, and one was being written."""
        files = sorted(self._root.glob("*/*.piece"))
        if files:
            torn = self._rng.choice(files)
            os.truncate(torn, torn.stat().st_size // 2)
            torn.with_suffix(".tmp").write_bytes(b"FATHOMKV")


def live(storm: Storm, policy: Policy, until: int, rng: random.Random, *, last: bool) -> None:
    """One life, until so many were asked, and in the last until all is answered."""
    life = storm.start(policy)
    engine = life.engine
    while storm.num_asked < until or (last and storm.open):
        if storm.num_asked < until and len(storm.open) < 14 and rng.random() < 0.5:
            storm.ask(engine)
        if engine.has_work:
            storm.step(engine)
        if storm.open and rng.random() < 0.02:
            storm.drop_one(engine)
        if rng.random() < 0.002:
            engine.clear_cache()
    stats = engine.stats()
    storm.count(stats)
    if rng.random() < 0.5 and not last:
        life.kill()
        storm.tear()
        return
    life.close()
    if last:
        nothing_is_left(life)


def nothing_is_left(life: Life) -> None:
    engine, stats = life.engine, life.engine.stats()
    assert (stats.free_blocks, stats.free_state_slots) == (stats.num_blocks, stats.num_state_slots)
    assert all(not entry.pins for entry in life.tiers.host.entries.values())
    files = [file for file in life.disk._directory.iterdir() if file.name != "lock"]
    assert {file.suffix for file in files} <= {".piece"}
    assert sum(file.stat().st_size for file in files) == stats.disk_bytes
    engine.scheduler.memory.clear()
    assert engine.scheduler.memory.blocks.num_free == stats.num_blocks
    assert engine.scheduler.memory.slots.num_free == stats.num_state_slots
    life.tiers.host.clear()
    assert life.tiers.host.stats().bytes == 0


@pytest.fixture
def fast_path() -> Iterator[Path]:
    with fast_directory() as directory:
        yield Path(directory)


@pytest.mark.slow
def test_a_storm_is_answered_as_if_alone(runner, fast_path, monkeypatch):
    """Every finished greedy request is answered as alone on an empty engine, whatever happened beside it."""
    rng = random.Random(7)
    storm = Storm(runner, fast_path, rng)
    alone = storm.answers_alone()
    for number, policy in enumerate(POLICIES, 1):
        # Every second life begins with the files' headers alone.
        monkeypatch.setattr(server.cache.persistence, "READ_AT_MOST_S", 5.0 if number % 2 else -1.0)
        until = NUM_REQUESTS * number // len(POLICIES)
        live(storm, policy, until, rng, last=number == len(POLICIES))
    for request, answer in storm.done.values():
        if request.params.temperature == 0:
            assert answer == alone[request.token_ids][: request.params.max_tokens], request
    assert len(storm.done) + storm.num_dropped + storm.num_late == storm.num_asked >= NUM_REQUESTS
    assert storm.num_dropped > 5
    assert storm.num_late > 5
    assert all(count > 0 for count in storm.counts.values()), storm.counts
    assert storm.counts["cached_tokens"] > 1500
