"""What sequences leave for others: what is found again, what it costs, and what goes first."""

import random
from dataclasses import replace

import numpy as np
import pytest
from fakes import answer_alone, drain, make_engine, make_request, tokens_of

from server.cache.blocks import Pool
from server.cache.holds import Holds
from server.cache.memory import SequenceMemory
from server.cache.planner import CachePlan, plan_cache
from server.cache.prefix import PrefixIndex
from server.cache.runs import num_equal
from server.engine import Engine
from server.request import EngineRequest, SamplingParams, SequenceUsage

PLANS = {
    "transformer": CachePlan(8, 0, 16, 400, 16),
    "mamba": CachePlan(0, 1000, 16, 0, 200),
    "hybrid": CachePlan(8, 1000, 16, 400, 200),
}
EVERY_KIND = pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)


def numbers(start: int, count: int) -> list[int]:
    return list(range(start, start + count))


def ask(engine: Engine, *prompts: list[int], max_tokens: int = 2, salt: str = "") -> list[SequenceUsage]:
    """Answers to prompts that come at once; each as if alone."""
    requests = []
    for prompt in prompts:
        params = SamplingParams(max_tokens, temperature=0.0, ignore_eos=True)
        requests.append(EngineRequest(f"r{random.random()}", tuple(prompt), params, salt))
        engine.add_request(requests[-1])
    outputs = drain(engine, limit=100_000)
    usages = []
    for request in requests:
        usage = outputs[request.request_id][-1].usage
        assert usage is not None
        assert tokens_of(outputs[request.request_id]) == answer_alone(request, max_context=10_000)[0]
        usages.append(usage)
    return usages


def cached(engine: Engine, *prompts: list[int], **options) -> list[int]:
    return [usage.cached_tokens for usage in ask(engine, *prompts, **options)]


def serve(plan: CachePlan, **options) -> Engine:
    options = {"max_context": 10_000, "prefill_chunk": 256, "step_tokens": 512, "snapshot_every": 64} | options
    return make_engine(plan, max_running=8, **options)[0]


@EVERY_KIND
def test_a_prompt_that_was_asked_before_is_known_but_for_its_last_token(plan):
    engine = serve(plan)
    assert cached(engine, numbers(1, 300)) == [0]
    assert cached(engine, numbers(1, 300)) == [299]


@EVERY_KIND
def test_a_conversation_goes_on_where_it_stood(plan):
    """The next prompt begins with the last one and its answer, of which the last token was never computed."""
    engine = serve(plan)
    params = SamplingParams(20, temperature=0.0, ignore_eos=True)
    engine.add_request(EngineRequest("first", tuple(numbers(1, 100)), params))
    answer = tokens_of(drain(engine)["first"])
    assert cached(engine, numbers(1, 100) + answer + numbers(500, 30)) == [119]


@EVERY_KIND
@pytest.mark.parametrize(("shared", "tail"), [(700, 300), (1500, 700)])
def test_how_a_prompt_is_composed_does_not_matter(plan, shared, tail):
    """Of what five share and the first computes, the second misses less than an interval, the others nothing."""
    engine = serve(plan)
    found = [cached(engine, numbers(1, shared) + numbers(10_000 * n, tail))[0] for n in range(1, 6)]
    assert found[0] == 0
    assert shared - 64 <= found[1] <= shared
    assert found[2:] == [shared] * 3
    assert sum(found) >= 0.95 * 4 * shared


@EVERY_KIND
def test_budgets_that_grow_compute_each_document_once(plan):
    """A question after ever longer beginnings of one context."""
    engine = serve(plan)
    context, before = numbers(1, 3200), 0
    for budget in (100, 200, 400, 800, 1600, 3200):
        [found] = cached(engine, context[:budget] + numbers(20_000, 30))
        assert before - 64 <= found <= before
        before = budget


@EVERY_KIND
def test_those_who_come_at_once_wait_for_the_one_who_computes_what_they_share(plan):
    engine = serve(plan)
    prompts = [numbers(1, 600) + numbers(1000 * n, 20) for n in range(1, 9)]
    found = cached(engine, *prompts)
    assert found[0] == 0
    assert min(found[1:]) >= 600 - 64
    assert engine.stats().cached_tokens == sum(found)


@EVERY_KIND
def test_another_salt_finds_nothing(plan):
    engine = serve(plan)
    assert cached(engine, numbers(1, 300), salt="a") == [0]
    assert cached(engine, numbers(1, 300), salt="b") == [0]
    assert cached(engine, numbers(1, 300)) == [0]
    assert cached(engine, numbers(1, 300), salt="a") == [299]


@EVERY_KIND
def test_without_a_cache_nothing_is_kept(plan):
    engine = serve(plan, prefix_cache=False)
    assert cached(engine, numbers(1, 300), numbers(1, 300)) == [0, 0]
    stats = engine.stats()
    assert (stats.cached_blocks, stats.snapshots, stats.cached_tokens) == (0, 0, 0)


def test_a_hybrid_shares_blocks_beyond_its_nearest_state():
    """What lies between them is computed again, but written nowhere."""
    engine = serve(PLANS["hybrid"], snapshot_every=128)
    ask(engine, numbers(1, 200) + numbers(5000, 40))
    held = engine.stats().cached_blocks
    [usage] = ask(engine, numbers(1, 200) + numbers(7000, 40))
    assert usage.cached_tokens == 128
    # A block in which the two part is copied, and the others are those of the end.
    assert engine.stats().cached_blocks - held == 3 + 1


def test_a_short_prompt_costs_a_block_and_a_slot():
    engine = serve(PLANS["hybrid"])
    [usage] = ask(engine, numbers(1, 12))
    assert (usage.kv_bytes, usage.state_bytes) == (8 * 16, 1000)


def test_a_preempted_sequence_finds_what_it_had_computed():
    engine, model = make_engine(CachePlan(8, 0, 4, 14, 8), max_context=40, step_tokens=40, prefill_chunk=40)
    for name, start in (("old", 1), ("young", 100)):
        engine.add_request(make_request(name, numbers(start, 20), 16, ignore_eos=True))
    drain(engine)
    assert engine.stats().num_preemptions >= 1
    again = [size for batch in model.batches for name, size in batch if name == "young" and size > 1][1:]
    assert sum(again) < 20


def index_of(blocks: int = 100, slots: int = 100, *, token_bytes: int = 0, state_bytes: int = 1000) -> PrefixIndex:
    return PrefixIndex(Pool(blocks), Pool(slots), block_size=4, token_bytes=token_bytes, state_bytes=state_bytes)


def leave(index: PrefixIndex, tokens: list[int], *positions: int) -> None:
    """Leave a run of tokens with snapshots at some positions, and with blocks where the model has any."""
    array = np.array(tokens, np.int32)
    run = index.pin(*index.find(array[:0]))
    table = index._blocks.allocate(-(-len(tokens) // 4)) if index._token_bytes else []
    run = index.extend(run, array, table)
    for position in positions:
        [slot] = index._slots.allocate(1)
        index.add_snapshot(run, position, slot)
    index._blocks.release(table)
    index.unpin(run)
    index.check()


def known_states(index: PrefixIndex) -> list[int]:
    return sorted(position for run in index.runs() for position in run.snapshots)


def test_what_saves_least_goes_first():
    """Of snapshots those that save few tokens, and their neighbours then save more."""
    index = index_of(slots=4)
    leave(index, numbers(1, 100), 10, 12, 50, 100)
    assert index.free_slots(1)
    assert known_states(index) == [10, 50, 100]
    assert index.free_slots(2)
    assert known_states(index) == [50, 100]


def test_what_was_used_stays_longer_than_what_was_not():
    index = index_of(slots=3)
    for start in (1, 1000, 2000):
        leave(index, numbers(start, 20), 20)
    for _ in range(3):
        run, known = index.find(np.array(numbers(1, 20), np.int32))
        index.use_snapshot(run, known)
        assert index.free_slots(1)
        leave(index, numbers(random.randrange(10_000, 10**6), 20), 20)
    assert 20 in known_states(index)
    assert index.find(np.array(numbers(1, 20), np.int32))[1] == 20


def test_a_snapshot_that_saves_much_outlives_blocks_that_save_little():
    index = index_of(blocks=30, slots=3, token_bytes=500, state_bytes=1000)
    leave(index, numbers(1, 100), 100)
    leave(index, numbers(500, 20))
    assert index.free_blocks(4)
    assert known_states(index) == [100]
    assert index.find(np.array(numbers(500, 20), np.int32))[1] < 20


def test_nothing_is_given_up_for_what_is_worth_less():
    index = index_of(slots=1)
    leave(index, numbers(1, 100), 100)
    assert not index.free_slots(1, below=index.worth(99))
    assert index.free_slots(1, below=index.worth(101))


def test_who_goes_on_from_a_run_keeps_it():
    index = index_of(blocks=10, token_bytes=8)
    leave(index, numbers(1, 20))
    run = index.pin(*index.find(np.array(numbers(1, 10), np.int32)))
    assert not index.free_blocks(8)
    assert index._blocks.num_free == 7  # three blocks hold the first ten positions
    index.unpin(run)
    assert index.free_blocks(10)
    index.check()


def hold(index: PrefixIndex, holds: Holds, tokens: list[int], until_s: float) -> None:
    holds.keep(index.find(np.array(tokens, np.int32))[0], len(tokens), until_s)


def test_what_a_caller_marked_is_kept_for_its_time():
    index = index_of(blocks=20, slots=4, token_bytes=8)
    holds = Holds(index, fits=lambda blocks, snapshots: blocks <= 10 and snapshots <= 2)
    leave(index, numbers(1, 40), 20, 40)
    hold(index, holds, numbers(1, 20), 100.0)
    assert not index.free_slots(4)
    assert not index.free_blocks(20)
    assert known_states(index) == [20]
    assert index.find(np.array(numbers(1, 40), np.int32))[1] == 20
    holds.expire(99.0)
    assert not index.free_slots(4)
    holds.expire(100.0)
    assert index.free_slots(4)
    assert index.free_blocks(20)
    index.check()


def test_marks_are_kept_longer_by_who_marks_them_again_and_within_a_bound():
    index = index_of(slots=6)
    holds = Holds(index, fits=lambda _, snapshots: snapshots <= 1)
    for start in (1, 100):
        leave(index, numbers(start, 20), 20)
    hold(index, holds, numbers(1, 20), 50.0)
    hold(index, holds, numbers(1, 20), 80.0)
    hold(index, holds, numbers(100, 20), 80.0)  # one more than may be
    assert len(holds) == 1
    holds.expire(60.0)
    assert not index.free_slots(6)
    assert len(known_states(index)) == 1
    holds.drop()
    assert index.free_slots(6)


def test_of_marks_on_one_path_its_blocks_count_once():
    asked = []
    index = index_of(blocks=20, slots=4, token_bytes=8)
    holds = Holds(index, fits=lambda *counts: not asked.append(counts))
    leave(index, numbers(1, 40), 20, 40)
    for length in (20, 40):
        hold(index, holds, numbers(1, length), 100.0)
    assert asked == [(5, 1), (10, 2)]


def test_marks_and_running_sequences_share_one_budget_of_bytes():
    """Half of the bytes may be held, be they blocks or states."""
    plan = plan_cache(bytes_per_token=16, bytes_per_sequence=256, block_size=4, cache_bytes=64 * 100, max_running=4)
    memory = SequenceMemory(plan, snapshot_every=1000)
    assert memory.is_within_half(50, 0)
    assert not memory.is_within_half(51, 0)
    assert memory.is_within_half(2, 12)
    assert not memory.is_within_half(3, 12)


@EVERY_KIND
def test_a_marked_beginning_outlives_a_crowd(plan):
    small = replace(plan, num_blocks=plan.num_blocks and 60, num_state_slots=12)
    engine = serve(small)
    params = SamplingParams(1, temperature=0.0, ignore_eos=True)
    request = EngineRequest("m", tuple(numbers(1, 150)), params, marks=(100,), mark_ttl_s=(300.0,))
    engine.add_request(request)
    drain(engine)
    for start in range(1000, 20_000, 1000):
        ask(engine, numbers(start, 150))
    assert cached(engine, numbers(1, 100) + numbers(50_000, 20)) == [100]
    assert cached(engine, numbers(1000, 150)) == [0]


def test_common_beginnings():
    a = np.array([1, 2, 3], np.int32)
    assert [num_equal(a, np.array(b, np.int32)) for b in ([], [2], [1, 2], [1, 2, 4], [1, 2, 3, 4])] == [0, 0, 2, 2, 3]
