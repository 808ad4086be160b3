"""Log-probabilities through the engine: every token once, in order, whatever the chunks, the company and the cache."""

import random
from dataclasses import replace

import pytest
import torch
from fakes import drain, hashed_token, make_engine, make_request, scripted_logprobs, tokens_of
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import KINDS, VOCAB_SIZE, write_tiny_model
from transformers import AutoModelForCausalLM

from server.cache.planner import CachePlan
from server.engine import Engine
from server.messages import Outputs, encode, from_engine
from server.request import EngineRequest, TokenOutput, join_logprobs
from server.runner import Runner
from server.scheduler import SchedulerLimits

PLANS = {
    "attention": CachePlan(10, 0, 4, 24, 6),
    "state": CachePlan(0, 1000, 4, 0, 6),
    "hybrid": CachePlan(10, 1000, 4, 24, 6),
}


def asking(request: EngineRequest, *, logprobs: int | None = None, prompt: int | None = None) -> EngineRequest:
    return replace(request, params=replace(request.params, logprobs=logprobs, prompt_logprobs=prompt))


def entries(outputs: list[TokenOutput]) -> list:
    return [entry for output in outputs if output.logprobs for entry in output.logprobs.entries()]


def prompt_entries(outputs: list[TokenOutput]) -> list:
    return [entry for output in outputs if output.prompt_logprobs for entry in output.prompt_logprobs.entries()]


def scripted_entries(tokens: list[int], start: int) -> list:
    """What the scripted model says of tokens[start:]."""
    places = range(start, len(tokens))
    return scripted_logprobs([tokens[:place] for place in places], tokens[start:]).entries()


@pytest.mark.parametrize("kind", PLANS)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_every_token_is_scored_once_and_by_what_stands_before_it(kind, data):
    """Prompts that share beginnings, known or not, in small chunks, with preemptions."""
    plan = PLANS[kind]
    chunk = data.draw(st.integers(1, 12))
    engine, _ = make_engine(plan, step_tokens=max(chunk, plan.num_state_slots), prefill_chunk=chunk, snapshot_every=3)
    requests: list[EngineRequest] = []
    outputs: dict[str, list[TokenOutput]] = {}
    for number in range(data.draw(st.integers(1, 5))):
        shared = data.draw(st.integers(0, 14))
        prompt = [*range(20, 20 + shared), *data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=8))]
        request = make_request(f"r{number}", prompt, data.draw(st.integers(0, 9)), ignore_eos=True)
        wants = [data.draw(st.sampled_from((None, 0))) for _ in range(2)]
        requests.append(asking(request, logprobs=wants[0] if request.params.max_tokens else None, prompt=wants[1]))
        engine.add_request(requests[-1])
        for _ in range(data.draw(st.integers(0, 4))):
            for request_id, output in engine.step():
                outputs.setdefault(request_id, []).append(output)
            engine.scheduler.check()
    for request_id, late in drain(engine).items():
        outputs.setdefault(request_id, []).extend(late)
    for request in requests:
        mine, params = outputs[request.request_id], request.params
        generated = tokens_of(mine)
        assert len(generated) == params.max_tokens == mine[-1].usage.completion_tokens
        text = [*request.token_ids, *generated]
        assert generated == [hashed_token(text[:place]) for place in range(len(request.token_ids), len(text))]
        wanted = scripted_entries(list(request.token_ids), 1) if params.prompt_logprobs is not None else []
        assert prompt_entries(mine) == wanted
        assert entries(mine) == (scripted_entries(text, len(request.token_ids)) if params.logprobs is not None else [])


def test_a_prompt_that_is_scored_is_computed_whole_and_still_found_by_others():
    engine, model = make_engine(PLANS["hybrid"], snapshot_every=4)
    prompt = tuple(range(1, 14))
    for number, wants in enumerate((None, 0, 0, None)):
        engine.add_request(asking(make_request(f"r{number}", prompt, 2, ignore_eos=True), prompt=wants))
        [usage] = [output.usage for output in drain(engine)[f"r{number}"] if output.usage]
        assert usage.cached_tokens == (12 if number == 3 else 0)
    assert sum(tokens for step in model.batches for name, tokens in step if name == "r2") == 14


def test_those_who_only_score_wait_for_nobody_and_end_without_a_token():
    engine, _ = make_engine(PLANS["attention"], step_tokens=80, prefill_chunk=4, max_context=70)
    prompt = tuple(range(1, 30))
    for name in ("a", "b"):
        engine.add_request(asking(make_request(name, prompt, 0), prompt=0))
    outputs = drain(engine)
    for name in ("a", "b"):
        assert [output.token_ids for output in outputs[name]] == [()] * len(outputs[name])
        assert (outputs[name][-1].finish_reason, outputs[name][-1].usage.completion_tokens) == ("length", 0)
        assert prompt_entries(outputs[name]) == scripted_entries(list(prompt), 1)
    assert engine.stats().generation_tokens == 0


def test_the_token_that_ends_a_completion_is_told_of_as_well():
    engine, _ = make_engine(PLANS["attention"], next_token=lambda tokens: 9 if len(tokens) == 5 else 5)
    engine.add_request(asking(make_request("a", (1, 2, 3), 8, stop_token_ids=(9,)), logprobs=0))
    outputs = drain(engine)["a"]
    assert tokens_of(outputs) == [5, 5]
    assert [entry.token_id for entry in entries(outputs)] == [5, 5, 9]


def test_who_does_not_ask_has_nothing_on_the_wire():
    plain = encode(Outputs([("r", TokenOutput((5,), None, None))]))
    assert b"logprobs" not in plain
    assert b"usage" not in plain
    told = TokenOutput((5,), logprobs=scripted_logprobs([[1]], [5]))
    assert from_engine.decode(encode(Outputs([("r", told)]))).outputs == [("r", told)]


@pytest.fixture(scope="module", params=KINDS)
def checkpoint(request, tmp_path_factory):
    torch.set_num_threads(1)
    directory = write_tiny_model(request.param, tmp_path_factory.mktemp(request.param))
    return directory, Runner(directory, dtype=torch.float32, device=torch.device("cpu"))


def start(runner: Runner, *, chunk: int = 512, num_blocks: int = 300, slots: int = 6) -> Engine:
    needs = runner.decoder.config.cache_needs(4)
    blocks = num_blocks if needs.bytes_per_token else 0
    plan = CachePlan(needs.bytes_per_token, needs.bytes_per_sequence, 4, blocks, slots)
    runner.allocate(plan)
    return Engine(runner, plan, SchedulerLimits(slots, 512, chunk, 400), ())


def test_they_are_those_of_transformers(checkpoint):
    directory, runner = checkpoint
    reference = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    rng = random.Random(4)
    prompts = [[rng.randrange(VOCAB_SIZE) for _ in range(length)] for length in (1, 2, 70, 150, 9)]
    engine = start(runner, chunk=64)
    for number, prompt in enumerate(prompts):
        engine.add_request(asking(make_request(f"r{number}", prompt, 5, ignore_eos=True), logprobs=3, prompt=4))
    outputs = drain(engine)
    for number, prompt in enumerate(prompts):
        mine = outputs[f"r{number}"]
        text = [*prompt, *tokens_of(mine)]
        with torch.no_grad():
            exact = reference(torch.tensor([text])).logits[0].log_softmax(-1)
        told = [*prompt_entries(mine), *entries(mine)]
        assert [entry.token_id for entry in told] == text[1:]
        for place, entry in enumerate(told):
            assert entry.logprob == pytest.approx(float(exact[place, entry.token_id]), abs=1e-4)
            assert len(entry.top) == (4 if place < len(prompt) - 1 else 3)
            assert [value for _, value in entry.top] == pytest.approx(
                exact[place].topk(len(entry.top)).values.tolist(), abs=1e-4
            )
        # Greedy answers are the likeliest by the very same number.
        assert all((entry.rank, entry.top[0]) == (1, (entry.token_id, entry.logprob)) for entry in entries(mine))


def test_the_same_prompt_has_the_same_bits_in_any_company(checkpoint):
    """Chunks end at multiples of 64 in any company, and so do slices of logits."""
    _, runner = checkpoint
    rng = random.Random(5)
    prompts = [[rng.randrange(VOCAB_SIZE) for _ in range(length)] for length in (150, 200, 131, 64)]

    def scored(engine: Engine, chosen: list[int]) -> dict:
        for number in chosen:
            engine.add_request(asking(make_request(f"r{number}", prompts[number], 0), prompt=2))
        found = drain(engine)
        return {number: prompt_entries(found[f"r{number}"]) for number in chosen}

    alone = {number: scored(start(runner, chunk=64), [number])[number] for number in range(4)}
    engine = start(runner, chunk=64)
    assert scored(engine, [0, 1, 2, 3]) == alone
    assert scored(engine, [3, 0]) == {number: alone[number] for number in (3, 0)}  # all of it is in the cache by now


def test_the_logits_of_a_long_prompt_are_never_there_at_once(tmp_path):
    torch.set_num_threads(1)
    runner = Runner(write_tiny_model("mamba", tmp_path), dtype=torch.float32, device=torch.device("cpu"))
    needs = runner.decoder.config.cache_needs(4)
    plan = CachePlan(needs.bytes_per_token, needs.bytes_per_sequence, 16, 0, 2)
    runner.allocate(plan)
    engine = Engine(runner, plan, SchedulerLimits(1, 2048, 2048, 200_000, snapshot_every=50_000), ())
    seen: list[int] = []
    head = runner.decoder.logits
    runner.decoder.logits = lambda hidden: seen.append(len(hidden)) or head(hidden)
    prompt = [number % VOCAB_SIZE for number in range(100_000)]
    engine.add_request(asking(make_request("long", prompt, 0), prompt=1))
    outputs = drain(engine)["long"]
    assert max(seen) == 64
    assert len(join_logprobs([output.prompt_logprobs for output in outputs if output.prompt_logprobs])) == 99_999
