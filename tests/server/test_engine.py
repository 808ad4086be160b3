"""The engine over a scripted model: how a completion ends, what its usage says, and what the engine counts."""

import itertools
import time

import pytest
from fakes import EOS, drain, make_engine, make_request, planned_tokens, tokens_of

from server.cache.planner import CachePlan
from server.config import LEAST, ConfigError, EngineConfig
from server.request import EngineRequest, SamplingParams

HYBRID = CachePlan(bytes_per_token=10, bytes_per_sequence=1000, block_size=4, num_blocks=16, num_state_slots=4)


def script(*tokens: int):
    return planned_tokens({(1, 2, 3): tokens})


def test_the_token_that_ends_a_completion_is_counted_but_not_given():
    engine, _ = make_engine(HYBRID, next_token=script(7, 8, EOS, 9))
    engine.add_request(make_request("a", (1, 2, 3), 10))
    outputs = drain(engine)["a"]
    assert [(output.token_ids, output.finish_reason) for output in outputs] == [
        ((7,), None),
        ((8,), None),
        ((), "stop"),
    ]
    assert outputs[-1].usage.completion_tokens == 3


def test_eos_is_a_token_like_any_other_if_so_asked():
    engine, _ = make_engine(HYBRID, next_token=script(7, EOS, EOS, 9, 9))
    engine.add_request(make_request("a", (1, 2, 3), 4, ignore_eos=True))
    outputs = drain(engine)["a"]
    assert (tokens_of(outputs), outputs[-1].finish_reason) == ([7, EOS, EOS, 9], "length")


def test_stop_tokens_hold_even_where_eos_is_ignored():
    engine, _ = make_engine(HYBRID, next_token=script(7, EOS, 9, 7))
    engine.add_request(make_request("a", (1, 2, 3), 4, stop_token_ids=(9, 11), ignore_eos=True))
    outputs = drain(engine)["a"]
    assert (tokens_of(outputs), outputs[-1].finish_reason) == ([7, EOS], "stop")


def test_a_stop_token_as_the_last_allowed_token_is_a_stop():
    engine, _ = make_engine(HYBRID, next_token=script(7, EOS))
    engine.add_request(make_request("a", (1, 2, 3), 2))
    outputs = drain(engine)["a"]
    assert (tokens_of(outputs), outputs[-1].finish_reason) == ([7], "stop")


def test_the_context_ends_a_completion_whatever_was_asked():
    engine, _ = make_engine(HYBRID, next_token=script(*range(5, 30)), max_context=8)
    engine.add_request(make_request("a", (1, 2, 3), 100))
    outputs = drain(engine)["a"]
    assert (tokens_of(outputs), outputs[-1].finish_reason) == ([5, 6, 7, 8, 9], "length")


def test_usage_adds_up(monkeypatch):
    """On a clock that ticks once at each look: one to arrive, two for each step."""
    ticks = itertools.count(100)
    monkeypatch.setattr(time, "monotonic", lambda: float(next(ticks)))
    engine, _ = make_engine(HYBRID, next_token=script(5, 6, 7), step_tokens=4, prefill_chunk=2)
    engine.add_request(make_request("a", (1, 2, 3), 3))
    usage = drain(engine)["a"][-1].usage
    assert (usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens) == (3, 0, 3)
    # Arrives at 100; steps look at 101-102, 103-104 (first token), 105-106, 107-108 (last token).
    assert (usage.queue_s, usage.prefill_s, usage.decode_s) == (1.0, 3.0, 4.0)
    # Five tokens are remembered at the end; the sixth never had to be.
    assert (usage.kv_bytes, usage.state_bytes, usage.peak_bytes) == (80, 1000, 1080)


def test_peak_bytes_remember_what_preemption_gave_up():
    engine, _ = make_engine(CachePlan(10, 0, 1, 12, 4), max_context=12)
    for name, start in (("old", 1), ("young", 20)):
        engine.add_request(make_request(name, range(start, start + 4), 8, ignore_eos=True))
    while not engine.stats().num_preemptions:
        engine.step()
    usage = engine.abort("young").usage
    assert usage.kv_bytes == 0
    assert usage.peak_bytes == 60


def test_stats_count_what_was_done():
    engine, _ = make_engine(HYBRID, next_token=lambda _: 5)
    for number in range(6):
        engine.add_request(make_request(f"r{number}", (1, 2, 3), 4))
    engine.step()
    stats = engine.stats()
    assert (stats.num_running, stats.num_waiting, stats.free_state_slots, stats.free_blocks) == (4, 2, 0, 12)
    engine.abort("r5")
    engine.abort("r0")
    drain(engine)
    stats = engine.stats()
    assert (stats.finished, stats.aborted, stats.prompt_tokens, stats.generation_tokens) == (4, 2, 15, 17)
    assert (stats.free_blocks, stats.num_blocks, stats.free_state_slots, stats.num_state_slots) == (16, 16, 4, 4)
    assert (stats.num_running, stats.num_waiting) == (0, 0)


def test_a_request_keeps_its_seed_and_gets_one_otherwise():
    engine, _ = make_engine(HYBRID)
    for number, seed in enumerate((7, None, None)):
        params = SamplingParams(4, seed=seed)
        engine.add_request(EngineRequest(f"r{number}", (1,), params))
    seeds = [sequence.seed for sequence in engine.scheduler.waiting.values()]
    assert seeds[0] == 7
    assert len(set(seeds)) == 3


def test_requests_that_make_no_sense_cannot_be_made():
    with pytest.raises(ValueError, match="at least one token"):
        make_request("a", (), 1)
    with pytest.raises(ValueError, match="max_tokens must be at least 0, got -1"):
        make_request("a", (1,), -1)


@pytest.mark.parametrize("name", sorted(LEAST))
def test_an_option_below_its_least_is_refused_by_its_flag(name):
    options = {"max_running": 1, name: LEAST[name]}
    assert getattr(EngineConfig(**options), name) == LEAST[name]
    flag = f"--{name.replace('_', '-')}"
    with pytest.raises(ConfigError, match=f"{flag} must be at least {LEAST[name]}, got {LEAST[name] - 1}"):
        EngineConfig(**(options | {name: LEAST[name] - 1}))


def test_options_that_contradict_each_other_are_refused():
    with pytest.raises(ConfigError, match="--step-tokens 8 must be at least --max-running 9"):
        EngineConfig(step_tokens=8, max_running=9)
    with pytest.raises(ConfigError, match="--cache-gib must be more than 0"):
        EngineConfig(cache_bytes=0)
