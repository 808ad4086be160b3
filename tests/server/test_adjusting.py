"""Penalties, biases and least lengths through the engine: as written out by hand, in any company, preempted or not."""

import random
from dataclasses import replace

import pytest
import torch
from fakes import drain, make_request, tokens_of
from tiny_models import VOCAB_SIZE, write_tiny_model

from server.adjusting import Adjusting
from server.cache.planner import CachePlan
from server.engine import Engine
from server.request import EngineRequest, TokenOutput
from server.runner import Runner
from server.scheduler import SchedulerLimits
from server.sequence import Sequence

EOS = 5
MAX_CONTEXT = 96


@pytest.fixture(scope="module")
def runner(tmp_path_factory) -> Runner:
    torch.set_num_threads(1)
    directory = write_tiny_model("transformer", tmp_path_factory.mktemp("transformer"))
    return Runner(directory, dtype=torch.float32, device=torch.device("cpu"))


def start(runner: Runner, *, num_blocks: int = 200) -> Engine:
    plan = CachePlan(runner.decoder.config.cache_needs(4).bytes_per_token, 0, 4, num_blocks, 8)
    runner.allocate(plan)
    return Engine(runner, plan, SchedulerLimits(8, 512, 64, MAX_CONTEXT), (EOS,))


def answer(engine: Engine, requests: list[EngineRequest]) -> dict[str, list[TokenOutput]]:
    for request in requests:
        engine.add_request(request)
    return drain(engine)


def asking(name: str, prompt: list[int], num_tokens: int = 30, *, ignore_eos: bool = True, **params) -> EngineRequest:
    request = make_request(name, prompt, num_tokens, ignore_eos=ignore_eos)
    return replace(request, params=replace(request.params, **params))


def plain_answer(runner: Runner, request: EngineRequest) -> list[int]:
    """The greedy loop over whole texts with every change written out for each token."""
    params, prompt = request.params, list(request.token_ids)
    generated: list[int] = []
    while len(generated) < params.max_tokens:
        with torch.no_grad():
            text = torch.tensor([prompt + generated])
            logits = runner.decoder.logits(runner.decoder.forward_dense(text))[0, -1].tolist()
        for token, bias in params.logit_bias:
            logits[token] += bias
        for token in range(VOCAB_SIZE):
            if token in prompt or token in generated:
                logits[token] *= params.repetition_penalty if logits[token] < 0 else 1 / params.repetition_penalty
            logits[token] -= params.frequency_penalty * generated.count(token)
            logits[token] -= params.presence_penalty * (token in generated)
        generated.append(max(range(VOCAB_SIZE), key=logits.__getitem__))
    return generated


@pytest.fixture(scope="module")
def requests() -> list[EngineRequest]:
    rng = random.Random(7)
    kinds = [
        {"presence_penalty": 1.5},
        {"frequency_penalty": 0.7},
        {"frequency_penalty": -0.5},
        {"repetition_penalty": 1.4},
        {"logit_bias": ((3, 4.0), (9, -100.0), (11, 2.5))},
        {"presence_penalty": 0.5, "frequency_penalty": 0.3, "repetition_penalty": 0.8, "logit_bias": ((3, 3.0),)},
        {},
    ]
    lengths = (4, 9, 1, 17, 6, 12, 8)
    return [
        asking(f"r{number}", [rng.randrange(VOCAB_SIZE) for _ in range(length)], **kind)
        for number, (kind, length) in enumerate(zip(kinds, lengths, strict=True))
    ]


def test_they_are_as_written_out(runner, requests):
    found = answer(start(runner), requests)
    expected = {request.request_id: plain_answer(runner, request) for request in requests}
    assert {name: tokens_of(outputs) for name, outputs in found.items()} == expected
    plain = [replace(each, params=replace(requests[-1].params)) for each in requests]
    changed = [name for name, outputs in answer(start(runner), plain).items() if tokens_of(outputs) != expected[name]]
    assert len(changed) >= len(requests) - 2  # else it would prove nothing


def test_preemption_changes_nothing(runner, requests):
    expected = {name: tokens_of(outputs) for name, outputs in answer(start(runner), requests).items()}
    engine = start(runner, num_blocks=MAX_CONTEXT // 4 + 8)
    assert {name: tokens_of(outputs) for name, outputs in answer(engine, requests).items()} == expected
    assert engine.stats().num_preemptions >= 2


def test_a_completion_is_not_ended_too_early(runner):
    biased = {"logit_bias": ((EOS, 100.0), (7, 90.0), (8, 80.0))}
    requests = [
        asking("eos", [1, 2, 3], ignore_eos=False, **biased),
        asking("late", [1, 2, 3], ignore_eos=False, min_tokens=4, **biased),
        asking("stop", [1, 2, 3], ignore_eos=False, min_tokens=4, stop_token_ids=(7, 10**6), **biased),
        asking("ignored", [1, 2, 3], 5, min_tokens=4, **biased),
    ]
    found = {name: (tokens_of(outputs), outputs[-1]) for name, outputs in answer(start(runner), requests).items()}
    assert found["eos"][0] == []
    assert found["late"][0] == [7] * 4
    assert found["stop"][0] == [8] * 4
    assert found["ignored"][0] == [EOS] * 5
    assert [found[name][1].finish_reason for name in found] == ["stop", "stop", "stop", "length"]
    assert found["late"][1].usage.completion_tokens == 5


def test_what_is_told_is_the_models_own_distribution(runner):
    plain = asking("plain", [1, 2, 3], 1, logprobs=2)
    biased = asking("biased", [1, 2, 3], 1, logprobs=2, logit_bias=((9, 100.0),), repetition_penalty=2.0)
    found = answer(start(runner), [plain, biased])
    [[one], [other]] = ([o.logprobs.entries()[0] for o in found[name] if o.logprobs] for name in ("plain", "biased"))
    assert other.token_id == 9
    assert other.top == one.top
    assert other.rank > 1


def test_each_step_counts_only_what_is_new(monkeypatch):
    adjusting = Adjusting(VOCAB_SIZE, torch.device("cpu"))
    counted: list[int] = []
    add = adjusting._counts.add
    monkeypatch.setattr(
        adjusting._counts, "add", lambda slots, tokens: counted.append(len(tokens)) or add(slots, tokens)
    )
    sequences = [
        Sequence(asking(name, [1] * 500, presence_penalty=1.0), 0, 0.0, [1] * 500 + [2] * 100) for name in "ab"
    ]
    for step in range(5):
        adjusting.adjust(torch.zeros(2, VOCAB_SIZE), sequences)
        for sequence in sequences:
            sequence.token_ids.append(step)
    assert counted == [100, 100, 2, 2, 2, 2]
    untouched = torch.zeros(1, VOCAB_SIZE)
    assert adjusting.adjust(untouched, [Sequence(make_request("c", [1], 1), 0, 0.0, [1])]) is untouched
    assert not adjusting._kept
