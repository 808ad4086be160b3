"""The scheduler under random adds, steps and aborts with little memory; and each of its rules by example."""

from dataclasses import replace
from pathlib import Path
from typing import ClassVar, get_args

import pytest
from fakes import answer_alone, drain, fast_directory, make_engine, make_request, tokens_of
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from server.cache.blocks import Pool
from server.cache.host import HostStore
from server.cache.planner import CachePlan, plan_cache
from server.cache.tiers import DiskStore
from server.config import Policy
from server.request import EngineRequest, TokenOutput

MAX_CONTEXT = 24


class SchedulerMachine(RuleBasedStateMachine):
    """Requests come, are computed and are dropped at random; every answer must be as if alone."""

    plans: ClassVar = st.builds(
        CachePlan,
        bytes_per_token=st.sampled_from((0, 8)),
        bytes_per_sequence=st.sampled_from((0, 100)),
        block_size=st.sampled_from((1, 3, 4)),
        num_blocks=st.integers(MAX_CONTEXT, 2 * MAX_CONTEXT),
        num_state_slots=st.integers(1, 5),
        arena_bytes=st.sampled_from((None, 0, 40, 150, 400)),  # beyond what one longest sequence needs
    )
    open_requests = Bundle("open_requests")

    @initialize(
        plan=plans,
        step_tokens=st.integers(5, 20),
        prefill_chunk=st.integers(1, 20),
        snapshot_every=st.integers(1, 9),
        prefix_cache=st.booleans(),
        policy=st.sampled_from(get_args(Policy)),
        has_host=st.booleans(),
        has_disk=st.booleans(),
        overlaps=st.booleans(),
    )
    def start(
        self,
        *,
        plan: CachePlan,
        step_tokens: int,
        prefill_chunk: int,
        snapshot_every: int,
        prefix_cache: bool,
        policy: Policy,
        has_host: bool,
        has_disk: bool,
        overlaps: bool,
    ) -> None:
        # Just over one longest sequence's blocks: two that grow meet soon.
        blocks = plan.num_blocks // plan.block_size if plan.bytes_per_token else 0
        self.plan = replace(plan, num_blocks=blocks, arena_bytes=None)
        if plan.arena_bytes is not None and plan.bytes_per_token and plan.bytes_per_sequence:
            self.plan = arena(plan.block_size, MAX_CONTEXT, plan.arena_bytes)
        self.step_tokens = step_tokens
        self.options = {
            "step_tokens": step_tokens,
            "prefill_chunk": prefill_chunk,
            "max_context": MAX_CONTEXT,
            "snapshot_every": snapshot_every,
            "prefix_cache": prefix_cache,
            "policy": policy,
            "overlaps": overlaps,
        }
        self.has_host, self.has_disk = has_host and prefix_cache, has_disk and prefix_cache
        self.directory = fast_directory()
        self.begin_life()
        self.prefill_chunk = prefill_chunk
        self.arrivals: list[str] = []
        self.requests: dict[str, EngineRequest] = {}
        self.outputs: dict[str, list[TokenOutput]] = {}

    def begin_life(self) -> None:
        """A new engine; below it are the files of the one before, and room for some pieces more."""
        host = HostStore(6000) if self.has_host else None
        disk = DiskStore(Path(self.directory.name), "scripted", max_bytes=20_000) if self.has_disk else None
        self.engine, self.model = make_engine(self.plan, host=host, disk=disk, chunk_tokens=4, **self.options)
        self.engine.scheduler.check()

    @precondition(lambda self: self.has_disk)
    @rule()
    def restart(self) -> None:
        """An engine ends, and what was open is asked of the next."""
        self.engine.close()
        self.begin_life()
        for request_id in self.arrivals:
            if not self.ended(request_id):
                self.outputs[request_id] = []
                self.engine.add_request(self.requests[request_id])

    @rule(
        target=open_requests,
        prompt=st.lists(st.integers(1, 60), min_size=1, max_size=MAX_CONTEXT - 1),
        max_tokens=st.integers(1, MAX_CONTEXT),
        stops=st.sets(st.integers(0, 60), max_size=2),
        ignore_eos=st.booleans(),
    )
    def add(self, prompt: list[int], max_tokens: int, stops: set[int], ignore_eos: bool) -> str:
        request_id = f"r{len(self.arrivals)}"
        request = make_request(
            request_id,
            prompt,
            min(max_tokens, MAX_CONTEXT - len(prompt)),
            stop_token_ids=tuple(stops),
            ignore_eos=ignore_eos,
        )
        tenant, priority = "abc"[len(self.arrivals) % 3], len(self.arrivals) % 2
        marks = (len(prompt) // 2,) if len(prompt) > 3 else ()
        request = replace(request, tenant=tenant, priority=priority, marks=marks, mark_ttl_s=(60.0,) * len(marks))
        self.engine.add_request(request)
        self.arrivals.append(request_id)
        self.requests[request_id] = request
        self.outputs[request_id] = []
        return request_id

    @rule(
        target=open_requests,
        length=st.integers(1, MAX_CONTEXT - 2),
        tail=st.lists(st.integers(1, 3), max_size=4),
        max_tokens=st.integers(1, 6),
    )
    def add_one_that_begins_alike(self, length: int, tail: list[int], max_tokens: int) -> str:
        prompt = [*range(1, length + 1), *tail][: MAX_CONTEXT - 1]
        return self.add(prompt, max_tokens, set(), True)

    @rule()
    def forget(self) -> None:
        """What is kept for others may go at any time."""
        self.engine.scheduler.memory.clear()

    @rule(target=open_requests, count=st.integers(2, 6), prompt=st.lists(st.integers(1, 60), min_size=1, max_size=5))
    def add_a_crowd(self, count: int, prompt: list[int]):
        """Short prompts and long answers: many are admitted, and then there is no room to grow."""
        return multiple(*[self.add([*prompt, number], MAX_CONTEXT, set(), True) for number in range(1, count + 1)])

    @rule(times=st.integers(1, 8))
    def step(self, times: int) -> None:
        for _ in range(times):
            if not self.engine.has_work:
                return
            num_steps = len(self.model.batches)
            outputs = self.engine.step()
            batch = self.model.batches[-1] if len(self.model.batches) > num_steps else [("", 1)]  # or something is read
            assert 0 < sum(size for _, size in batch) <= self.step_tokens
            assert all(size <= self.prefill_chunk for _, size in batch)
            assert len({request_id for request_id, _ in batch}) == len(batch)
            for request_id, output in outputs:
                assert not self.ended(request_id), "an output after the last"
                self.outputs[request_id].append(output)
            self.engine.scheduler.check()

    @rule(request_id=consumes(open_requests))
    def abort(self, request_id: str) -> None:
        last = self.engine.abort(request_id)
        assert (last is None) == self.ended(request_id)
        if last is not None:
            self.outputs[request_id].append(last)

    @rule(target=open_requests)
    def finish_all(self):
        """Everything comes to its end, and then nothing is held."""
        self.step(1_000_000)
        stats = self.engine.stats()
        assert stats.free_blocks == stats.num_blocks
        assert stats.free_state_slots == stats.num_state_slots
        assert all(self.ended(request_id) for request_id in self.arrivals)
        reasons = [self.outputs[request_id][-1].finish_reason for request_id in self.arrivals]
        if not self.has_disk:  # else there was another engine before
            assert stats.aborted == reasons.count("abort")
            assert stats.finished == len(reasons) - stats.aborted
        return multiple()

    @invariant()
    def accounts_are_right(self) -> None:
        if not hasattr(self, "engine"):
            return
        scheduler = self.engine.scheduler
        scheduler.check()
        owned = {block for sequence in scheduler.running.values() for block in sequence.block_table}
        slots = [sequence.state_slot for sequence in scheduler.running.values()]
        memory = scheduler.memory
        if self.plan.arena_bytes is None:
            assert len(owned) + memory.num_free_blocks == self.plan.num_blocks
            assert len(set(slots)) + memory.num_free_slots == self.plan.num_state_slots
        else:
            held = len(owned) * self.plan.block_row_bytes + len(set(slots)) * self.plan.slot_row_bytes
            left = self.plan.arena_bytes - held
            assert memory.num_free_blocks + len(owned) == min(
                self.plan.num_blocks, len(owned) + left // self.plan.block_row_bytes
            )
            assert memory.num_free_slots + len(slots) == min(
                self.plan.num_state_slots, len(slots) + left // self.plan.slot_row_bytes
            )
        still_open = [request_id for request_id in self.arrivals if not self.ended(request_id)]
        assert sorted([*scheduler.running, *scheduler.waiting]) == sorted(still_open)

    @invariant()
    def answers_are_as_if_alone(self) -> None:
        if not hasattr(self, "engine"):
            return
        for request_id in self.arrivals:
            outputs = self.outputs[request_id]
            assert all(output.finish_reason is None and output.usage is None for output in outputs[:-1])
            tokens, reason = answer_alone(self.requests[request_id], max_context=MAX_CONTEXT)
            got = tokens_of(outputs)
            assert got == tokens[: len(got)]
            if self.ended(request_id) and outputs[-1].finish_reason != "abort":
                assert (got, outputs[-1].finish_reason) == (tokens, reason)

    def ended(self, request_id: str) -> bool:
        return bool(self.outputs[request_id]) and self.outputs[request_id][-1].finish_reason is not None

    def teardown(self) -> None:
        if hasattr(self, "engine"):
            self.finish_all()
            self.answers_are_as_if_alone()
            self.engine.close()
            self.directory.cleanup()


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)


def arena(block_size: int, max_context: int, spare_bytes: int) -> CachePlan:
    """Bytes for blocks and states, for one sequence of the longest and some more."""
    blocks = -(-max_context // block_size)
    return plan_cache(
        bytes_per_token=8,
        bytes_per_sequence=100,
        block_size=block_size,
        cache_bytes=-(-(blocks * 8 * block_size + 100 + spare_bytes) // 64) * 64,
        max_running=8,
    )


def attention(num_blocks: int, num_state_slots: int = 8, block_size: int = 4) -> CachePlan:
    return CachePlan(8, 0, block_size, num_blocks, num_state_slots)


def numbers(start: int, count: int) -> list[int]:
    return list(range(start, start + count))


def test_decodes_and_chunks_of_prefill_share_a_step():
    engine, model = make_engine(attention(100), step_tokens=10, prefill_chunk=8)
    engine.add_request(make_request("a", numbers(1, 3), 20, ignore_eos=True))
    engine.step()
    engine.add_request(make_request("b", numbers(5, 20), 20, ignore_eos=True))
    for _ in range(4):
        engine.step()
    assert model.batches == [
        [("a", 3)],
        [("a", 1), ("b", 8)],
        [("a", 1), ("b", 8)],
        [("a", 1), ("b", 4)],
        [("a", 1), ("b", 1)],
    ]


def test_one_long_prompt_leaves_room_for_the_next_but_not_beyond_the_step():
    engine, model = make_engine(attention(100), step_tokens=10, prefill_chunk=6)
    for name in "abc":
        engine.add_request(make_request(name, numbers(1, 12), 4, ignore_eos=True))
    engine.step()
    engine.step()
    # What is begun goes on before a newcomer begins.
    assert model.batches == [[("a", 6), ("b", 4)], [("a", 6), ("b", 4)]]
    drain(engine)
    assert max(sum(size for _, size in batch) for batch in model.batches) <= 10


def test_first_come_first_served():
    """A short request does not overtake a long one that waits for memory."""
    engine, model = make_engine(attention(num_blocks=4), max_context=16)
    engine.add_request(make_request("first", numbers(1, 8), 5, ignore_eos=True))
    engine.step()
    engine.add_request(make_request("long", numbers(1, 12), 2, ignore_eos=True))
    engine.add_request(make_request("short", [1], 2, ignore_eos=True))
    drain(engine)
    order = [request_id for batch in model.batches for request_id, _ in batch]
    assert list(dict.fromkeys(order)) == ["first", "long", "short"]


def test_max_running_is_kept():
    engine, model = make_engine(attention(100), max_running=2)
    for number in range(5):
        engine.add_request(make_request(f"r{number}", [number + 1], 3, ignore_eos=True))
    drain(engine)
    assert max(len(batch) for batch in model.batches) == 2


def test_the_youngest_is_preempted_and_its_tokens_stay_the_same():
    engine, model = make_engine(attention(num_blocks=5), max_context=20)
    old = make_request("old", numbers(1, 7), 12, ignore_eos=True)
    young = make_request("young", numbers(30, 7), 12, ignore_eos=True)
    engine.add_request(old)
    engine.add_request(young)
    outputs = drain(engine)
    assert engine.stats().num_preemptions >= 1
    # The old one is computed in every step until it ends.
    assert all(batch[0][0] == "old" for batch in model.batches[:12])
    # What the young one had generated is not sent again, and is prefilled along with its prompt.
    assert any(request_id == "young" and size > 7 for batch in model.batches for request_id, size in batch)
    for request in (old, young):
        assert (tokens_of(outputs[request.request_id]), "length") == answer_alone(request, max_context=20)


def test_a_sequence_may_be_preempted_more_than_once():
    """It comes back when the first ends, and has to go again when the second grows."""
    engine, _ = make_engine(attention(num_blocks=24, block_size=1), step_tokens=8, prefill_chunk=3, max_context=24)
    lengths = {"short": 6, "long": 20, "victim": 20}
    requests = [
        make_request(name, numbers(start, 4), lengths[name], ignore_eos=True)
        for name, start in zip(lengths, (1, 20, 40), strict=True)
    ]
    for request in requests:
        engine.add_request(request)
    outputs: dict[str, list[TokenOutput]] = {name: [] for name in lengths}
    preempted = 0
    while engine.has_work:
        ran = "victim" in engine.scheduler.running
        for request_id, output in engine.step():
            outputs[request_id].append(output)
        preempted += ran and "victim" in engine.scheduler.waiting
    assert preempted == engine.stats().num_preemptions == 2
    for request in requests:
        assert (tokens_of(outputs[request.request_id]), "length") == answer_alone(request, max_context=24)


def test_the_preempted_go_before_those_who_came_later():
    engine, model = make_engine(attention(num_blocks=5), max_running=2, max_context=20)
    for name, start in (("old", 1), ("young", 30), ("later", 50)):
        engine.add_request(make_request(name, numbers(start, 7), 12, ignore_eos=True))
    while not engine.stats().num_preemptions:
        engine.step()
    assert list(engine.scheduler.waiting) == ["young", "later"]
    drain(engine)
    order = [request_id for batch in model.batches for request_id, _ in batch]
    assert order.index("later") > len(order) - 1 - order[::-1].index("old")


@pytest.mark.parametrize("steps", [0, 1, 2, 4])
def test_abort_frees_at_once(steps):
    """While it waits, in the middle of its prefill, and while it decodes."""
    engine, _ = make_engine(CachePlan(8, 100, 4, 20, 3), step_tokens=10, prefill_chunk=7)
    engine.add_request(make_request("a", numbers(1, 12), 20, ignore_eos=True))
    for _ in range(steps):
        engine.step()
    last = engine.abort("a")
    assert last is not None
    assert (last.token_ids, last.finish_reason) == ((), "abort")
    assert last.usage is not None
    assert last.usage.completion_tokens == max(0, steps - 1)
    assert last.usage.kv_bytes == (0 if steps == 0 else 32 * (3 if steps <= 2 else 4))
    stats = engine.stats()
    assert (stats.free_blocks, stats.free_state_slots) == (20, 3)
    assert not engine.has_work
    assert engine.abort("a") is None
    assert engine.stats().aborted == 1


def test_an_aborted_preempted_sequence_is_gone():
    engine, _ = make_engine(attention(num_blocks=5), max_context=20)
    for name, start in (("old", 1), ("young", 30)):
        engine.add_request(make_request(name, numbers(start, 7), 12, ignore_eos=True))
    while not engine.stats().num_preemptions:
        engine.step()
    assert list(engine.scheduler.waiting) == ["young"]
    assert engine.abort("young") is not None
    assert set(drain(engine)) == {"old"}


def test_a_request_id_in_use_is_refused():
    engine, _ = make_engine(attention(10))
    engine.add_request(make_request("a", [1], 4, ignore_eos=True))
    with pytest.raises(ValueError, match="'a' is in use"):
        engine.add_request(make_request("a", [2], 4))
    engine.step()
    with pytest.raises(ValueError, match="'a' is in use"):
        engine.add_request(make_request("a", [2], 4))
    drain(engine)
    engine.add_request(make_request("a", [2], 1, ignore_eos=True))
    assert set(drain(engine)) == {"a"}


def test_the_pool_refuses_what_would_corrupt_it():
    pool = Pool(3)
    taken = pool.allocate(2)
    with pytest.raises(ValueError, match="2 asked for, 1 free"):
        pool.allocate(2)
    pool.check(taken)
    with pytest.raises(AssertionError, match="disagree"):
        pool.check([taken[0], taken[0]])
    with pytest.raises(AssertionError, match="disagree"):
        pool.check(taken[:1])
    pool.share(taken[:1])
    pool.release(taken)
    pool.check(taken[:1])
    assert pool.num_free == 2
    pool.release(taken[:1])
    for act in (pool.release, pool.share):
        with pytest.raises(ValueError, match="nobody holds it"):
            act(taken)
    assert pool.num_free == 3
