"""Whose turn it is: shares between tenants, priorities, deadlines, and how long a step may take."""

from dataclasses import replace

from fakes import ScriptedModel, drain, make_engine, make_request, tokens_of

from server.cache.planner import CachePlan
from server.engine import Engine
from server.speed import StepSpeed

WIDE = CachePlan(8, 0, 16, 4000, 64)


def numbers(start: int, count: int) -> list[int]:
    return list(range(start, start + count))


def add(engine: Engine, name: str, prompt: list[int], max_tokens: int = 2, **fields) -> None:
    engine.add_request(replace(make_request(name, prompt, max_tokens, ignore_eos=True), **fields))


def order_of_ends(engine: Engine) -> list[str]:
    ends = []
    while engine.has_work:
        ends += [request_id for request_id, output in engine.step() if output.finish_reason]
        engine.scheduler.check()
    return ends


def first_batch_with(model: ScriptedModel, name: str) -> int:
    return next(i for i, batch in enumerate(model.batches) if any(each == name for each, _ in batch))


def test_a_crowd_of_long_prompts_does_not_hold_up_another_tenant():
    engine, model = make_engine(WIDE, policy="fair", step_tokens=512, prefill_chunk=256, max_context=5000)
    for i in range(20):
        add(engine, f"long{i}", numbers(1000 * i, 2000), tenant="a")
    for _ in range(3):
        engine.step()
    add(engine, "short", numbers(1, 50), tenant="b")
    before = len(model.batches)
    engine.step()
    assert first_batch_with(model, "short") == before
    # Nothing long is computed beside what gets its first token.
    assert model.batches[-1] == [("short", 50)]
    assert order_of_ends(engine)[0] == "short"


def test_first_come_lets_the_crowd_go_first():
    engine, model = make_engine(WIDE, policy="first-come", step_tokens=512, prefill_chunk=256, max_context=5000)
    for i in range(6):
        add(engine, f"long{i}", numbers(1000 * i, 2000), tenant="a")
    add(engine, "short", numbers(1, 50), tenant="b")
    assert order_of_ends(engine).index("short") >= 4
    assert first_batch_with(model, "short") > 12


def test_tenants_that_always_ask_get_the_same_number_of_tokens():
    engine, model = make_engine(
        WIDE, policy="fair", max_running=4, step_tokens=200, prefill_chunk=100, max_context=5000
    )
    for i in range(60):
        add(engine, f"a{i}", numbers(100_000 + 1000 * i, 500), tenant="a")
    for i in range(300):
        add(engine, f"b{i}", numbers(500_000 + 1000 * i, 100), tenant="b")
    served = {"a": 0, "b": 0}
    for _ in range(100):
        engine.step()
        for name, size in model.batches[-1]:
            served[name[0]] += size
    assert 0.9 < served["a"] / served["b"] < 1.1


def test_who_was_away_has_saved_nothing_up():
    engine, model = make_engine(
        WIDE, policy="fair", max_running=2, step_tokens=100, prefill_chunk=100, max_context=5000
    )
    add(engine, "b", numbers(1, 10), tenant="b")
    drain(engine)
    for i in range(10):
        add(engine, f"a{i}", numbers(1000 * i, 500), tenant="a")
    for _ in range(30):
        engine.step()
    for i in range(10):
        add(engine, f"b{i}", numbers(50_000 + 1000 * i, 500), tenant="b")
    start = len(model.batches)
    for _ in range(20):
        engine.step()
    served = {"a": 0, "b": 0}
    for batch in model.batches[start:]:
        for name, size in batch:
            served[name[0]] += size
    assert served["a"] > 0.3 * served["b"]


def test_a_tenant_that_holds_all_places_gives_one_up():
    engine, _ = make_engine(WIDE, policy="fair", max_running=4, max_context=5000, step_tokens=64)
    for i in range(8):
        add(engine, f"a{i}", numbers(1000 * i, 20), 200, tenant="a")
    for _ in range(5):
        engine.step()
    add(engine, "b", numbers(1, 20), 3, tenant="b")
    engine.step()
    engine.step()
    assert "b" in engine.scheduler.running
    assert engine.stats().num_preemptions == 1
    outputs = drain(engine)
    assert engine.stats().num_preemptions == 1
    assert {len(tokens_of(outputs[f"a{i}"])) for i in range(4, 8)} == {200}


def test_a_tenant_that_holds_all_blocks_gives_some_up():
    engine, _ = make_engine(CachePlan(8, 0, 4, 40, 16), policy="fair", max_context=80, step_tokens=64)
    for i in range(4):
        add(engine, f"a{i}", numbers(1000 * i, 36), 40, tenant="a")
    for _ in range(8):
        engine.step()
    add(engine, "b", numbers(1, 20), 3, tenant="b")
    ends = order_of_ends(engine)
    assert ends[0] == "b"


def test_the_more_important_go_first_and_are_preempted_last():
    engine, model = make_engine(WIDE, policy="fair", max_running=1, max_context=5000)
    add(engine, "first", numbers(1, 20), priority=0)
    engine.step()
    add(engine, "later", numbers(100, 20), priority=5)
    add(engine, "urgent", numbers(200, 20), priority=-1)
    assert order_of_ends(engine) == ["first", "urgent", "later"]
    engine, model = make_engine(CachePlan(8, 0, 4, 12, 8), max_context=40, step_tokens=64)
    for name, priority in (("low", 1), ("high", 0)):
        add(engine, name, numbers(1000 * priority, 20), 16, priority=priority)
    ends = order_of_ends(engine)
    assert engine.stats().num_preemptions >= 1
    assert ends == ["high", "low"]
    assert model.batches


def test_shortest_first():
    engine, _ = make_engine(WIDE, policy="shortest", max_running=1, max_context=5000)
    for name, length in (("running", 10), ("long", 300), ("short", 20), ("middle", 100)):
        add(engine, name, numbers(1000 * length, length))
    assert order_of_ends(engine) == ["running", "short", "middle", "long"]


def test_what_would_come_too_late_is_dropped():
    engine, _ = make_engine(WIDE, max_running=1, max_context=5000)
    add(engine, "running", numbers(1, 20), 50)
    add(engine, "late", numbers(100, 20), timeout_s=0.0)
    add(engine, "patient", numbers(200, 20), timeout_s=1000.0)
    outputs = drain(engine)
    last = outputs["late"][-1]
    assert (last.token_ids, last.finish_reason) == ((), "timeout")
    assert [outputs[name][-1].finish_reason for name in ("running", "patient")] == ["length", "length"]
    assert engine.stats().expired == 1
    engine.scheduler.check()


def test_a_step_takes_no_longer_than_the_gap_that_is_allowed():
    """By the speed that was measured: 1,000 tokens per second and a sixth of 0.6 seconds make a hundred tokens."""
    engine, model = make_engine(WIDE, max_gap_s=0.6, step_tokens=2048, prefill_chunk=1024, max_context=5000)
    add(engine, "long", numbers(1, 4000))
    add(engine, "other", numbers(5000, 4), 500, tenant="b")
    engine.step()
    engine.scheduler._speed = StepSpeed()
    batch = engine.scheduler.schedule(0.0)
    assert batch.num_tokens > 512
    engine.scheduler.note_speed(batch, batch.num_tokens / 1000)
    assert 64 <= engine.scheduler.schedule(0.0).num_tokens <= 100
    assert model.batches


def test_chunks_end_at_fixed_positions():
    engine, model = make_engine(WIDE, step_tokens=300, prefill_chunk=200, max_context=5000)
    add(engine, "a", numbers(1, 1000))
    add(engine, "b", numbers(5000, 1000))
    drain(engine)
    done = {"a": 0, "b": 0}
    for batch in model.batches:
        for name, size in batch:
            done[name] += size
            assert done[name] % 64 == 0 or done[name] >= 1000
