"""Blocks and states that share their bytes: either takes what the other gives up, and nothing lies on anything."""

import random

import pytest
from fakes import drain, make_engine, make_request

from server.cache.blocks import Arena, Pool
from server.cache.planner import CachePlan, plan_cache
from server.engine import Engine

BLOCK, STATE = 128, 1000


def arena_plan(cache_bytes: int) -> CachePlan:
    return plan_cache(
        bytes_per_token=8, bytes_per_sequence=STATE, block_size=16, cache_bytes=cache_bytes, max_running=64
    )


def serve(cache_bytes: int, **options) -> Engine:
    options = {"max_running": 8, "max_context": 2_000, "prefill_chunk": 256, "step_tokens": 512} | options
    return make_engine(arena_plan(cache_bytes), snapshot_every=512, **options)[0]


def ask(engine: Engine, start: int, length: int) -> None:
    engine.add_request(make_request(f"r{start}-{random.random()}", range(start, start + length), 2, ignore_eos=True))
    drain(engine)


class Rows:
    """Two pools over one arena, and what each row holds, copied as the arena says."""

    def __init__(self, total_bytes: int, num_blocks: int, num_slots: int) -> None:
        self.blocks = Pool(num_blocks, row_bytes=3)
        self.slots = Pool(num_slots, row_bytes=10, from_top=True)
        self.arena = Arena(total_bytes, self.blocks, self.slots, self.move)
        self.held: dict[tuple[str, int], int] = {}
        self.moves: list[tuple[str, int, int]] = []

    def move(self, kind: str, moves: dict[int, int]) -> None:
        for source, target in moves.items():
            self.moves.append((kind, source, target))
            self.held[kind, target] = self.held.pop((kind, source))

    def take(self, kind: str, count: int) -> None:
        for number in (self.blocks if kind == "block" else self.slots).allocate(count):
            assert (kind, number) not in self.held
            self.held[kind, number] = len(self.held)

    def give(self, kind: str, *numbers: int) -> None:
        for number in numbers:
            del self.held[kind, number]
        (self.blocks if kind == "block" else self.slots).release(numbers)


def test_blocks_grow_from_the_begin_and_slots_from_the_end():
    rows = Rows(100, 30, 9)
    rows.take("block", 4)
    rows.take("slot", 2)
    assert set(rows.held) == {("block", 0), ("block", 1), ("block", 2), ("block", 3), ("slot", 8), ("slot", 7)}
    assert (rows.blocks.num_free, rows.slots.num_free) == ((100 - 20) // 3 - 4, (100 - 12) // 10 - 2)
    rows.take("block", rows.blocks.num_free)
    assert not rows.moves
    assert rows.slots.num_free == 0
    with pytest.raises(ValueError, match="1 asked for, 0 free"):
        rows.slots.allocate(1)


def test_who_lies_outermost_moves_where_the_other_kind_grows():
    rows = Rows(100, 30, 9)
    rows.take("block", 30)
    rows.give("block", 3, 10, 20, 29)
    rows.take("slot", 1)
    assert not rows.moves
    # Bytes for another slot are free, but not side by side: from 80 on they lie, and block 26 ends at 81.
    rows.take("slot", 1)
    assert rows.moves == [("block", 26, 3), ("block", 27, 10), ("block", 28, 20)]
    assert rows.blocks.extent == 26
    rows.arena.check()
    rows.blocks.check(number for kind, number in rows.held if kind == "block")


def test_any_order_of_taking_and_giving_back_keeps_rows_apart():
    rng = random.Random(3)
    for _ in range(60):
        rows = Rows(100, 30, 9)
        for _ in range(80):
            kind = rng.choice(("block", "slot"))
            pool = rows.blocks if kind == "block" else rows.slots
            if rng.random() < 0.55 and pool.num_free:
                rows.take(kind, rng.randrange(1, pool.num_free + 1))
            elif held := [number for each, number in rows.held if each == kind]:
                rows.give(kind, *rng.sample(held, rng.randrange(1, len(held) + 1)))
            rows.arena.check()
            for each, other in (("block", rows.blocks), ("slot", rows.slots)):
                other.check([number for holder, number in rows.held if holder == each])
            places = [
                range(3 * n, 3 * n + 3) if k == "block" else range(10 + 10 * n, 20 + 10 * n) for k, n in rows.held
            ]
            taken = [byte for place in places for byte in place]
            assert len(taken) == len(set(taken))
            assert max(taken, default=0) < 100


def test_an_overlap_is_seen():
    rows = Rows(100, 30, 9)
    rows.take("block", 28)
    rows.slots.arena = None
    rows.slots.allocate(2)
    with pytest.raises(AssertionError, match="overlap"):
        rows.arena.check()


def test_states_take_the_bytes_of_blocks_and_give_them_back():
    """Many short prompts leave states, one long prompt takes their place, and the other way round."""
    engine = serve(20_032)
    plan = arena_plan(20_032)
    for start in range(1, 3_000, 100):
        ask(engine, start, 20)
    short = engine.stats()
    assert short.snapshots >= 0.8 * plan.num_state_slots
    ask(engine, 10_000, 1_900)
    long = engine.stats()
    assert long.cached_blocks >= 1_900 // 16
    assert long.snapshots <= (20_032 - long.cached_blocks * BLOCK) // STATE < short.snapshots
    for start in range(20_001, 24_000, 100):
        ask(engine, start, 20)
    again = engine.stats()
    assert again.snapshots >= 0.8 * plan.num_state_slots
    assert again.cached_blocks < long.cached_blocks / 2


def test_how_many_more_fit_is_told():
    engine = serve(20_032, max_context=1_000)
    longest = 63 * BLOCK + STATE
    stats = engine.stats()
    assert (stats.fit_8k, stats.fit_8k_now) == (20_032 // longest,) * 2  # the longest context is less than 8,192
    assert (stats.fit_longest, stats.fit_longest_now) == (20_032 // longest,) * 2
    engine.add_request(make_request("long", range(500), 10, ignore_eos=True))
    engine.step()
    stats = engine.stats()
    held = len(engine.scheduler.running["long"].block_table) * BLOCK + STATE
    assert (stats.fit_longest, stats.fit_longest_now) == (20_032 // longest, (20_032 - held) // longest)
    drain(engine)
    ask(engine, 2_000, 400)
    assert engine.stats().cached_blocks > 0
    assert engine.stats().fit_longest_now == 20_032 // longest


def test_the_longest_that_fits_runs_alone_and_none_is_refused_for_lack_of_bytes():
    plan = arena_plan(20_032)
    assert plan.max_tokens is not None
    engine = serve(20_032, max_context=plan.max_tokens)
    for number in range(6):
        engine.add_request(make_request(f"s{number}", range(number * 50, number * 50 + 20), 40, ignore_eos=True))
    engine.add_request(make_request("long", range(1, plan.max_tokens - 9), 10, ignore_eos=True))
    outputs = drain(engine)
    assert outputs["long"][-1].finish_reason == "length"
    assert all(outputs[f"s{number}"][-1].finish_reason == "length" for number in range(6))
