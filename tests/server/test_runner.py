"""Real models through scheduler and runner: whatever the company and the chunks, the tokens are those of alone."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from devices import DEVICES
from fakes import drain, make_request, tokens_of
from tiny_models import KINDS, VOCAB_SIZE, write_tiny_model

from server.cache.planner import CachePlan
from server.config import ConfigError, EngineConfig
from server.engine import Engine
from server.request import EngineRequest, SamplingParams
from server.runner import Runner, choose_device, choose_dtype
from server.scheduler import SchedulerLimits
from server.sequence import ScheduledBatch, ScheduledSequence, Sequence

MAX_CONTEXT = 80


@pytest.fixture(scope="module", params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture(scope="module", params=KINDS)
def runner(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, device: torch.device) -> Runner:
    torch.set_num_threads(1)
    directory = write_tiny_model(request.param, tmp_path_factory.mktemp(request.param))
    return Runner(directory, dtype=torch.float32, device=device)


def start(
    runner: Runner,
    *,
    num_blocks: int = 200,
    slots: int = 8,
    step: int = 512,
    chunk: int = 512,
    overlaps: bool = False,
    captures: bool = True,
) -> Engine:
    """An engine over fresh caches. captures: decode steps are replayed once they can be."""
    needs = runner.decoder.config.cache_needs(4)
    plan = CachePlan(
        bytes_per_token=needs.bytes_per_token,
        bytes_per_sequence=needs.bytes_per_sequence,
        block_size=3,
        num_blocks=num_blocks if needs.bytes_per_token else 0,
        num_state_slots=slots,
    )
    runner.allocate(plan)
    if captures and runner.device.type == "cpu":
        assert runner.capture(max_running=slots, max_context=MAX_CONTEXT) is None
    return Engine(runner, plan, SchedulerLimits(slots, step, chunk, MAX_CONTEXT), (), overlaps=overlaps)


def answer(engine: Engine, requests: list[EngineRequest]) -> dict[str, list[int]]:
    for request in requests:
        engine.add_request(request)
    return {request_id: tokens_of(outputs) for request_id, outputs in drain(engine).items()}


def answer_each_alone(runner: Runner, requests: list[EngineRequest]) -> dict[str, list[int]]:
    return {
        request.request_id: answer(start(runner, captures=False), [request])[request.request_id] for request in requests
    }


def sampled(request_id: str, prompt: list[int], seed: int | None) -> EngineRequest:
    params = SamplingParams(12, temperature=1.0, top_p=0.95, top_k=40, min_p=0.01, seed=seed, ignore_eos=True)
    return EngineRequest(request_id, tuple(prompt), params)


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    """Of very different lengths, among them one token, exact blocks, and more than one chunk of the scan."""
    rng = random.Random(1)
    return [[rng.randrange(VOCAB_SIZE) for _ in range(length)] for length in (1, 50, 3, 17, 2, 33, 9, 4, 26, 6, 1, 12)]


@pytest.mark.parametrize(("step", "chunk"), [(512, 512), (13, 7), (9, 1), (31, 30)])
def test_ragged_batches_and_odd_chunks_are_as_if_alone(runner, prompts, step, chunk):
    requests = [make_request(f"r{i}", prompt, 3 + 5 * (i % 5)) for i, prompt in enumerate(prompts)]
    engine = start(runner, step=step, chunk=chunk)
    together = answer(engine, requests)
    assert together == answer_each_alone(runner, requests)
    assert engine.stats().generation_tokens == sum(request.params.max_tokens for request in requests)
    # Were all answers alike, equal ones would prove nothing.
    assert len({tuple(tokens[:3]) for tokens in together.values()}) > len(prompts) // 2


def test_a_preempted_sequence_is_as_if_alone(tmp_path, device):
    runner = Runner(write_tiny_model("transformer", tmp_path), dtype=torch.float32, device=device)
    rng = random.Random(2)
    requests = [
        make_request(f"r{i}", [rng.randrange(VOCAB_SIZE) for _ in range(5 + 4 * i)], MAX_CONTEXT - 40) for i in range(6)
    ]
    engine = start(runner, num_blocks=MAX_CONTEXT // 3 + 12, step=11, chunk=5)
    together = answer(engine, requests)
    assert engine.stats().num_preemptions >= 3
    assert together == answer_each_alone(runner, requests)


def test_a_seed_gives_the_same_tokens_whatever_the_company(runner, prompts):
    requests = [sampled(f"r{i}", prompt, seed=i) for i, prompt in enumerate(prompts)]
    alone = answer_each_alone(runner, requests)
    assert answer(start(runner), requests) == alone
    assert answer(start(runner, slots=3, step=17, chunk=5), requests[::-1]) == alone


def test_seeds_matter(runner, prompts):
    same = [sampled(f"r{seed}", prompts[3], seed) for seed in range(8)]
    assert len({tuple(tokens) for tokens in answer(start(runner), same).values()}) == 8


def test_without_a_seed_every_request_draws_its_own(runner, prompts):
    same = [sampled(f"r{i}", prompts[3], None) for i in range(8)]
    assert len({tuple(tokens) for tokens in answer(start(runner), same).values()}) == 8


def test_steps_that_overlap_change_nothing(runner, prompts):
    """Of every kind of request: what is decided before tokens are known is the same, and so is what is computed."""
    greedy = answer(start(runner), [make_request(f"r{i}", prompt, 20) for i, prompt in enumerate(prompts)])
    ends = [tokens[min(len(tokens) - 1, 3 + i)] for i, tokens in enumerate(greedy.values())]
    kinds = (
        SamplingParams(20, temperature=0.0, ignore_eos=True),
        SamplingParams(20, temperature=1.0, seed=5, ignore_eos=True, logprobs=2),
        SamplingParams(20, temperature=0.0, ignore_eos=True, frequency_penalty=1.5, min_tokens=3),
        SamplingParams(20, temperature=0.0, prompt_logprobs=1),
        SamplingParams(0, temperature=0.0, prompt_logprobs=0),
        SamplingParams(1, temperature=0.0),
    )
    requests = [
        EngineRequest(f"r{i}-{kind}", tuple(prompt), replace(params, stop_token_ids=(ends[i],)))
        for i, prompt in enumerate(prompts)
        for kind, params in enumerate(kinds)
    ]

    def said(*, overlaps: bool) -> tuple[dict[str, list[object]], int]:
        engine = start(runner, num_blocks=MAX_CONTEXT // 3 + 10, slots=5, step=40, chunk=16, overlaps=overlaps)
        for request in requests:
            engine.add_request(request)
        outputs = drain(engine)
        told = {
            name: [
                tokens_of(each),
                each[-1].finish_reason,
                [output.logprobs for output in each if output.logprobs],
                [output.prompt_logprobs for output in each if output.prompt_logprobs],
            ]
            for name, each in outputs.items()
        }
        stats = engine.stats()
        assert stats.free_blocks == stats.num_blocks
        assert stats.free_state_slots == stats.num_state_slots
        return told, stats.steps

    (apart, steps), (overlapping, more_steps) = said(overlaps=False), said(overlaps=True)
    assert overlapping.keys() == apart.keys()
    for name, told in apart.items():
        assert overlapping[name][:2] == told[:2], name
        for mine, others in zip(overlapping[name][2:], told[2:], strict=True):
            # A prompt's come in chunks, which are others.
            ids = (b"".join(each.token_ids for each in told) for told in (mine, others))
            assert next(ids) == next(ids)
            values = (b"".join(each.values for each in told) for told in (mine, others))
            np.testing.assert_allclose(*(np.frombuffer(each, np.float32) for each in values), atol=1e-5)
    assert {told[1] for told in apart.values()} == {"stop", "length"}
    # Steps too many are those of sequences that ended unforeseen.
    assert more_steps > steps


def test_a_step_in_which_nothing_is_sampled(runner, prompts):
    engine = start(runner, step=512, chunk=10)
    engine.add_request(make_request("long", prompts[1], 2))
    assert engine.step() == []
    assert {request_id for request_id, _ in [step for _ in range(5) for step in engine.step()]} == {"long"}


def test_a_state_slot_is_taken_over_as_if_new(runner, prompts):
    """Slots and blocks are not cleared between sequences; nothing of the last owner may be read."""
    request = make_request("r", prompts[3], 10)
    alone = answer(start(runner), [request])
    engine = start(runner, num_blocks=MAX_CONTEXT // 3 + 1, slots=1)
    for number, prompt in enumerate(prompts[:4]):
        answer(engine, [make_request(f"before{number}", prompt, 5)])
        assert answer(engine, [request]) == alone


def forced_logits(runner: Runner, token_ids: list[int], chunks: list[int]) -> torch.Tensor:
    """(chunks, vocab): logits after each chunk of a given text, as the runner computes them."""
    seen: list[torch.Tensor] = []
    hook = runner.decoder.register_forward_hook(lambda *call: seen.append(call[-1].cpu()))
    start(runner, captures=False)  # replayed steps call no hooks
    sequence = Sequence(make_request("r", token_ids, 1), 0, 0.0, token_ids, block_table=list(range(40)), state_slot=1)
    for size in chunks:
        [token] = runner.run(ScheduledBatch((ScheduledSequence(sequence, size, True),))).tokens.values()
        assert token == int(seen[-1].argmax())
        sequence.num_computed += size
    hook.remove()
    return torch.cat(seen)


def test_bfloat16_is_float32_but_for_its_rounding(runner, tmp_path, device):
    """The default on a GPU, tested on every device. bfloat16 keeps 8 bits: an error of some percent of the logits'
    spread, which turns the likeliest token only where two are about equally likely.
    """
    kind = runner.decoder.config.kind
    rounded = Runner(write_tiny_model(kind, tmp_path), dtype=torch.bfloat16, device=device)
    rng = random.Random(5)
    text, chunks = [rng.randrange(VOCAB_SIZE) for _ in range(118)], [17, *[1] * 60, 9, *[1] * 32]
    exact, close = forced_logits(runner, text, chunks), forced_logits(rounded, text, chunks)
    assert rounded.decoder.embedding.weight.dtype == torch.bfloat16
    assert 0 < (close - exact).abs().max() < 0.15 * exact.std()
    assert (close.argmax(-1) == exact.argmax(-1)).float().mean() >= 0.95


def test_device_and_dtype():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert choose_device(EngineConfig(device="cpu")) == cpu
    assert choose_dtype(EngineConfig(), cpu) == torch.float32
    assert choose_dtype(EngineConfig(), cuda) == torch.bfloat16
    assert choose_dtype(EngineConfig(dtype="float16"), cpu) == torch.float16


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there():
    assert choose_device(EngineConfig()) == torch.device("cpu")
    with pytest.raises(ConfigError, match="--device cuda: torch sees no CUDA device"):
        choose_device(EngineConfig(device="cuda"))
