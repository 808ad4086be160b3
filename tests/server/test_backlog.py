"""The bound on the prompt tokens that wait: what waits, who is refused, and that nothing accepted is lost."""

import asyncio

import pytest
from fakes import make_engine, make_request
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import write_tiny_model

from server.backlog import Backlog
from server.cache.planner import CachePlan
from server.config import EngineConfig
from server.errors import from_engine_error
from server.process import EngineClient, QueueTokensFullError

PLAN = CachePlan(bytes_per_token=10, bytes_per_sequence=0, block_size=4, num_blocks=64, num_state_slots=4)


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(0, 3)), max_size=40))
def test_no_more_wait_than_may_but_for_one_alone(moves):
    backlog, waiting = Backlog(50), {}
    for number, (size, leaving) in enumerate(moves):
        fits = not waiting or sum(waiting.values()) + size <= 50
        if fits:
            backlog.refuse_or_pass(size, 1.0)
            backlog.add(f"r{number}", size)
            waiting[f"r{number}"] = size
        else:
            with pytest.raises(QueueTokensFullError):
                backlog.refuse_or_pass(size, 1.0)
        for request_id in list(waiting)[:leaving]:
            del waiting[request_id]
            backlog.leave(request_id)
            backlog.leave(request_id)
        assert backlog.num_tokens == sum(waiting.values())


def test_the_refusal_says_when_to_come_again():
    backlog = Backlog(50)
    backlog.add("r", 40)
    with pytest.raises(QueueTokensFullError) as raised:
        backlog.refuse_or_pass(11, 2.0)
    refusal = from_engine_error(raised.value)
    assert (refusal.status, refusal.code, refusal.headers["Retry-After"]) == (429, "queue_full", "2")
    assert "40 prompt tokens wait already, and with 11 more they would be above 50" in refusal.message


def test_the_engine_says_whom_it_begins_with():
    """Those of whom a step computes a part, but no token; the others' tokens say it."""
    engine, _ = make_engine(PLAN, step_tokens=8, prefill_chunk=4)
    for name, length in (("long", 10), ("short", 3), ("later", 9)):
        engine.add_request(make_request(name, [len(name)] * length, 2, ignore_eos=True))
    seen, answered = [], []
    while engine.has_work:
        outputs = engine.step()
        seen += engine.begun
        answered += [request_id for request_id, _ in outputs if request_id not in answered]
    assert seen == ["long", "later"]
    assert sorted(answered) == ["later", "long", "short"]
    assert engine.step() == []
    assert engine.begun == []


async def test_what_waits_is_counted_until_it_begins(tmp_path):
    directory = write_tiny_model("mamba", tmp_path)
    config = EngineConfig(device="cpu", threads=1, max_running=1, max_queue=20, max_queue_tokens=100)
    client = EngineClient("tiny", directory, config)

    async def read(name: str, num_prompt: int, num_tokens: int, count: int = 1, prompts: int = 1) -> int:
        requests = [make_request(f"{name}{n}", [1] * num_prompt, num_tokens, ignore_eos=True) for n in range(count)]
        outputs = client.generate(*requests, num_prompts=prompts)
        return sum([len(output.token_ids) async for together in outputs for _, output in together])

    async def until(queued: int) -> None:
        async with asyncio.timeout(20):
            while client.num_queued_tokens != queued:
                await asyncio.sleep(0.01)

    await client.start()
    try:
        await client.wait_ready(60)
        # Longer than the bound, but nothing waits; once it has begun it counts no longer.
        first = asyncio.create_task(read("first", 150, 3000))
        await asyncio.sleep(0)
        await until(0)
        waiting = [asyncio.create_task(read("second", 60, 5, count=2)), asyncio.create_task(read("third", 40, 5))]
        await until(100)
        with pytest.raises(QueueTokensFullError, match="100 prompt tokens wait already, and with 1 more"):
            await read("fourth", 1, 5)
        with pytest.raises(QueueTokensFullError, match="100 prompt tokens wait already, and with 6 more"):
            await read("of three prompts", 2, 5, count=6, prompts=3)
        first.cancel()
        assert await asyncio.gather(*waiting) == [10, 5]
        assert client.num_queued_tokens == 0
        assert await read("fifth", 1, 5) == 5
    finally:
        await client.stop()
