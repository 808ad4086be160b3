"""What is kept below the device: what comes back, what it costs, who waits for it, and what is never served."""

import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fakes import answer_alone, drain, make_engine, make_request, tokens_of

import server.cache.persistence
from server.cache.host import HostStore
from server.cache.pieces import Piece
from server.cache.planner import CachePlan
from server.cache.tiers import DiskStore
from server.engine import Engine
from server.request import EngineRequest, SequenceUsage, TokenOutput

MIB = 1 << 20
PLANS = {
    "transformer": CachePlan(8, 0, 4, 100, 12),
    "mamba": CachePlan(0, 1000, 4, 0, 12),
    "hybrid": CachePlan(8, 1000, 4, 100, 12),
}
EVERY_KIND = pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)


def numbers(start: int, count: int) -> list[int]:
    return list(range(start, start + count))


def serve(plan: CachePlan, **options) -> Engine:
    options = {"max_context": 1000, "max_running": 4, "step_tokens": 256, "prefill_chunk": 256} | options
    options = {"snapshot_every": 64} | options
    return make_engine(plan, **options)[0]


def ask(engine: Engine, prompt: list[int], max_tokens: int = 2, name: str = "") -> SequenceUsage:
    """The usage of an answer, which is as if alone."""
    request = make_request(name or f"r{time.monotonic_ns()}", prompt, max_tokens, ignore_eos=True)
    engine.add_request(request)
    outputs = drain(engine)[request.request_id]
    assert tokens_of(outputs) == answer_alone(request, max_context=1000)[0]
    assert outputs[-1].usage is not None
    return outputs[-1].usage


def crowd_out(engine: Engine, count: int = 12) -> None:
    for number in range(count):
        ask(engine, numbers(1000 * (number + 1), 90))


@pytest.fixture
def lazily(monkeypatch) -> None:
    """Nothing is read at the start."""
    monkeypatch.setattr(server.cache.persistence, "READ_AT_MOST_S", -1.0)


lazy = pytest.mark.usefixtures("lazily")


def open_disk(root: Path, max_bytes: int = 8 * MIB) -> DiskStore:
    return DiskStore(root, "scripted", max_bytes=max_bytes)


@EVERY_KIND
def test_what_the_device_had_no_room_for_comes_back_from_the_hosts_memory(plan):
    prompt = numbers(1, 200)
    engine = serve(plan)
    ask(engine, prompt)
    crowd_out(engine)
    assert ask(engine, prompt).cached_tokens < 150
    engine = serve(plan, host=HostStore(MIB))
    ask(engine, prompt)
    crowd_out(engine)
    # The last piece of keys and values ends behind the answer's first token.
    assert ask(engine, prompt).cached_tokens == (199 if plan.bytes_per_sequence else 192)
    stats = engine.stats()
    assert stats.host_hits == 1
    assert 0 < stats.host_bytes_read <= stats.host_bytes <= MIB
    assert stats.host_read_s >= 1.0  # told when they have arrived, by the script's clock
    # Another question about the same begin, of which whole pieces are shared, or a state.
    crowd_out(engine)
    assert ask(engine, prompt[:150] + numbers(700, 20)).cached_tokens == (128 if plan.bytes_per_sequence else 144)


@EVERY_KIND
def test_the_hosts_memory_is_bounded(plan):
    engine = serve(plan, host=HostStore(20_000))
    crowd_out(engine, 20)
    stats = engine.stats()
    assert 10_000 < stats.host_bytes <= 20_000
    assert stats.host_writes > stats.host_pieces > 0


def test_blocks_that_are_computed_sooner_than_copied_do_not_go_down():
    engine = serve(PLANS["transformer"], host=HostStore(MIB))
    engine._tiers.costs.host_rate = 1.0
    crowd_out(engine)
    assert engine.stats().host_writes == 0
    assert engine.stats().cached_blocks > 0


def test_what_is_computed_sooner_than_read_is_not_read():
    engine = serve(PLANS["transformer"], host=HostStore(MIB))
    ask(engine, numbers(1, 200))
    crowd_out(engine)
    engine._tiers.costs.host_rate = 1.0
    assert ask(engine, numbers(1, 200)).cached_tokens == 0


def resumed_with(*, host: HostStore | None, plan: CachePlan, **options) -> list[int]:
    """How many tokens a sequence computed in each step after it was preempted for another tenant's."""
    engine, model = make_engine(plan, policy="fair", max_context=200, host=host, chunk_tokens=8, **options)
    requests = [
        replace(make_request(name, numbers(start, 30), length, ignore_eos=True), tenant=name[0])
        for name, start, length in (("a1", 1, 60), ("a2", 100, 60), ("b", 200, 4))
    ]
    outputs: dict[str, list[TokenOutput]] = {request.request_id: [] for request in requests}
    for request in requests[:2]:
        engine.add_request(request)
    for _ in range(6):
        for request_id, output in engine.step():
            outputs[request_id].append(output)
    engine.add_request(requests[2])
    before = None
    while engine.has_work:
        for request_id, output in engine.step():
            outputs[request_id].append(output)
        engine.scheduler.check()
        if engine.stats().num_preemptions and before is None:
            before = len(model.batches)
    assert engine.stats().num_preemptions >= 1
    for request in requests:
        assert tokens_of(outputs[request.request_id]) == answer_alone(request, max_context=200)[0]
    return [size for batch in model.batches[before:] for name, size in batch if name == "a2"]


def test_a_preempted_state_goes_on_where_it_stood():
    plan = CachePlan(0, 1000, 4, 0, 2)
    assert max(resumed_with(host=None, plan=plan)) > 5
    assert max(resumed_with(host=HostStore(2000), plan=plan)) == 1


def test_what_was_preempted_stays_whatever_wants_its_room():
    """There is room for one state, and others come."""
    engine, model = make_engine(CachePlan(0, 1000, 4, 0, 2), policy="fair", max_context=200, host=HostStore(1900))
    for name, start, length in (("a1", 1, 40), ("a2", 100, 40)):
        engine.add_request(replace(make_request(name, numbers(start, 30), length, ignore_eos=True), tenant="a"))
    for _ in range(4):
        engine.step()
    for number in range(4):
        name = f"b{number}"
        engine.add_request(replace(make_request(name, numbers(300 + 50 * number, 20), 2), tenant="b"))
    while "a2" in engine.scheduler.running:
        engine.step()
    before = len(model.batches)
    drain(engine)
    assert [size for batch in model.batches[before:] for name, size in batch if name == "a2" and size > 1] == []
    assert all(not entry.pins for entry in engine._tiers.host.entries.values())


def test_preempted_blocks_come_back():
    plan = CachePlan(8, 0, 4, 24, 8)
    short = {"max_running": 2, "plan": plan}
    # Of fewer than 16 tokens it is not asked where they could come from.
    assert max(resumed_with(host=HostStore(MIB), **short)) <= 16 < max(resumed_with(host=None, **short))


@EVERY_KIND
@lazy
def test_what_was_not_read_at_the_start_is_read_when_it_is_asked_for(plan, tmp_path):
    prompt = numbers(1, 200)
    engine = serve(plan, disk=open_disk(tmp_path))
    ask(engine, prompt)
    engine.close()
    engine = serve(plan, disk=open_disk(tmp_path))
    assert (engine.stats().disk_bytes_read, engine.stats().cached_blocks, engine.stats().snapshots) == (0, 0, 0)
    assert ask(engine, prompt).cached_tokens == 199
    assert engine.stats().disk_hits == 1
    assert engine.stats().disk_read_s > 0
    engine.close()


@EVERY_KIND
@lazy
def test_a_conversation_goes_on_after_a_restart(plan, tmp_path):
    prompt = numbers(1, 100)
    engine = serve(plan, disk=open_disk(tmp_path))
    engine.add_request(make_request("first", prompt, 60, ignore_eos=True))
    answer = tokens_of(drain(engine)["first"])
    engine.close()
    engine = serve(plan, disk=open_disk(tmp_path))
    assert ask(engine, prompt + answer + numbers(500, 10)).cached_tokens == 159
    engine.close()


@EVERY_KIND
@lazy
def test_what_is_torn_is_told_once_and_computed(plan, tmp_path, caplog):
    engine = serve(plan, disk=open_disk(tmp_path))
    ask(engine, numbers(1, 200))
    engine.close()
    disk = open_disk(tmp_path)
    engine = serve(plan, disk=disk)
    for file in tmp_path.glob("*/*.piece"):  # after their headers were read
        content = bytearray(file.read_bytes())
        content[-20] ^= 1
        file.write_bytes(content)
    assert ask(engine, numbers(1, 200)).cached_tokens < 199
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == len(set(told)) > 0
    assert all("is not used: its checksum is wrong" in line for line in told)
    engine.close()


@lazy
def test_what_is_gone_is_computed(tmp_path, caplog):
    engine = serve(PLANS["mamba"], disk=open_disk(tmp_path))
    ask(engine, numbers(1, 200))
    engine.close()
    engine = serve(PLANS["mamba"], disk=open_disk(tmp_path))
    for file in tmp_path.glob("*/*.piece"):
        file.unlink()
    assert ask(engine, numbers(1, 200)).cached_tokens == 0
    assert len(caplog.records) >= 1
    engine.close()


class SlowDisk(DiskStore):
    """A disk that answers when it is told to."""

    def __init__(self, root: Path) -> None:
        self.answers = threading.Event()
        super().__init__(root, "scripted", max_bytes=MIB)

    def read(self, name: str) -> Piece | None:
        assert self.answers.wait(60)
        return super().read(name)


@EVERY_KIND
@lazy
def test_while_a_disk_is_read_others_run_and_who_waits_may_be_dropped(plan, tmp_path):
    prompts = {name: numbers(start, 100) for name, start in (("aborted", 1), ("late", 200), ("waits", 400))}
    engine = serve(plan, disk=open_disk(tmp_path))
    for prompt in prompts.values():
        ask(engine, prompt)
    engine.close()
    disk = SlowDisk(tmp_path)
    engine = serve(plan, disk=disk)
    for name, prompt in prompts.items():
        request = make_request(name, prompt, 2, ignore_eos=True)
        engine.add_request(replace(request, timeout_s=0.2 if name == "late" else None))
    engine.add_request(make_request("other", numbers(600, 50), 5, ignore_eos=True))
    ends = {}
    while len(ends) < 2:
        for request_id, output in engine.step():
            if output.finish_reason is not None:
                ends[request_id] = output.finish_reason
        engine.scheduler.check()
    assert ends == {"other": "length", "late": "timeout"}
    assert engine.abort("aborted") is not None
    engine.scheduler.check()
    assert list(engine.scheduler.waiting) == ["waits"]
    disk.answers.set()
    [output, last] = drain(engine)["waits"]
    assert (last.usage.cached_tokens, engine.stats().disk_hits) == (99, 1)
    engine.close()


@EVERY_KIND
@lazy
def test_entries_tell_where_they_are_and_all_tiers_are_cleared(plan, tmp_path):
    engine = serve(plan, disk=open_disk(tmp_path))
    ask(engine, numbers(1, 90))
    engine.close()
    engine = serve(plan, disk=open_disk(tmp_path), host=HostStore(MIB))
    ask(engine, numbers(5000, 90))
    crowd_out(engine)
    content = engine.cache_content(1000)
    tiers = {entry.tier for entry in content.entries}
    assert tiers == {"device", "host", "disk"}
    assert content.num_entries == len(content.entries)
    assert [entry.age_s for entry in content.entries] == sorted(entry.age_s for entry in content.entries)
    for entry in content.entries:
        assert entry.kv_bytes > 0 or plan.bytes_per_sequence
        assert entry.state_bytes == entry.num_snapshots * plan.bytes_per_sequence
        assert entry.tokens <= 91
    assert content.host_bytes == engine.stats().host_bytes > 0
    engine.clear_cache()
    deadline = time.monotonic() + 10
    while engine.stats().disk_pieces and time.monotonic() < deadline:
        time.sleep(0.01)
    assert engine.cache_content(1000).entries == ()
    assert ask(engine, numbers(5000, 90)).cached_tokens == 0
    engine.close()


def piece(tokens: list[int], parent: Piece | None = None, *, size: int = 1000) -> Piece:
    begin, name = (0, "") if parent is None else (parent.end, parent.name)
    return Piece("", "", name, begin, np.array(tokens, np.int32), memoryview(bytes(size)), memoryview(b""))


def test_of_the_hosts_memory_what_saves_least_goes_first_and_a_path_from_its_end():
    size = HostStore(0).size_of(blocks_bytes=1000, state_bytes=0, num_tokens=1)
    assert HostStore(0, is_page_locked=True).size_of(blocks_bytes=1000, state_bytes=0, num_tokens=1) == size + 24
    store = HostStore(4 * size)
    begin = piece([1])
    end = piece([1], begin)
    little, other = piece([2]), piece([3])
    for each, saved in ((begin, 10), (end, 10), (little, 1), (other, 10)):
        assert store.make_room(size, saved)
        store.put(each.name, each, saved)
    assert not store.make_room(size, 0)
    assert store.make_room(size, 5)
    store.touch(end.name)
    assert set(store.entries) == {begin.name, end.name, other.name}
    assert store.make_room(2 * size, 30)
    assert set(store.entries) == {begin.name, end.name}
    store.pin(begin.name, "a")
    assert not store.make_room(4 * size, 10**6, pinned=True)
    assert store.make_room(3 * size, 10**6)
    assert set(store.entries) == {begin.name}
    store.check()


@lazy
def test_a_request_of_another_salt_finds_nothing_below(tmp_path):
    engine = serve(PLANS["hybrid"], disk=open_disk(tmp_path), host=HostStore(MIB))
    request = make_request("a", numbers(1, 90), 2, ignore_eos=True)
    found = []
    for salt in ("one", "two", "one"):
        engine.add_request(EngineRequest(f"a{len(found)}", request.token_ids, request.params, salt))
        found.append(drain(engine)[f"a{len(found)}"][-1].usage.cached_tokens)
        crowd_out(engine)
    assert found == [0, 0, 89]
    engine.close()
