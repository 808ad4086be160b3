"""Several prompts in one request to /v1/completions: each is answered as it would be alone, through the real client."""

import uuid

import httpx
import pytest
from server_checks import assert_idle, refusal

from server.api.contexts import refuse_too_many
from server.contexts import Context
from server.errors import ApiError

MODELS = ("embedded:transformer", "embedded:mamba")
EVERY_MODEL = pytest.mark.parametrize("model", MODELS)
PROMPTS = ["Ana Torres is a painter. She was", "Question: Who", "In the year 1812, "]
N = 2


def as_ids(http, model: str) -> list[list[int]]:
    return [http.post("/tokenize", json={"model": model, "prompt": each}).json()["tokens"] for each in PROMPTS]


@EVERY_MODEL
@pytest.mark.parametrize("ids", [False, True])
def test_each_prompt_is_answered_as_it_is_alone(client, http, server, model, ids):
    prompts = as_ids(http, model) if ids else PROMPTS
    options = {"model": model, "temperature": 2.0, "max_tokens": 8, "seed": 7, "n": N}
    options["extra_body"] = {"ignore_eos": True}
    alone = [client.completions.create(prompt=prompt, **options) for prompt in prompts]
    whole = client.completions.create(prompt=prompts, **options)
    texts = [choice.text for answer in alone for choice in answer.choices]
    assert len(set(texts)) > N
    assert [(choice.index, choice.text) for choice in whole.choices] == list(enumerate(texts))
    assert whole.usage.prompt_tokens == sum(answer.usage.prompt_tokens for answer in alone)
    assert whole.usage.completion_tokens == 8 * len(texts)
    assert whole.usage.prompt_tokens_details.cached_tokens == whole.usage.prompt_tokens - len(PROMPTS)
    assert whole.fathom["peak_bytes"] == sum(answer.fathom["peak_bytes"] for answer in alone)

    chunks = list(
        client.completions.create(prompt=prompts, stream=True, stream_options={"include_usage": True}, **options)
    )
    streamed, reasons = [""] * len(texts), [[] for _ in texts]
    for choice in (choice for chunk in chunks for choice in chunk.choices):
        streamed[choice.index] += choice.text
        reasons[choice.index] += [choice.finish_reason] if choice.finish_reason else []
    assert (streamed, reasons) == (texts, [["length"]] * len(texts))
    assert (chunks[-1].choices, chunks[-1].usage) == ([], whole.usage)
    assert_idle(server)


@EVERY_MODEL
@pytest.mark.parametrize(("stream", "max_tokens"), [(False, 0), (True, 0), (False, 3), (True, 3)])
def test_each_prompt_is_given_back_and_scored(client, model, stream, max_tokens):
    """One of a single token has no score to wait for."""
    prompts = [[7], [5, 6, 7, 8], [9, 10]]
    options = {"model": model, "max_tokens": max_tokens, "echo": True, "logprobs": 1, "n": N, "temperature": 0}
    options["extra_body"] = {"ignore_eos": True}
    names = ("tokens", "token_logprobs", "text_offset")
    told = [{name: [] for name in names} for _ in range(len(prompts) * N)]
    texts = [""] * len(told)
    answer = client.completions.create(prompt=prompts, stream=stream, **options)
    for choice in (choice for chunk in (answer if stream else [answer]) for choice in chunk.choices):
        texts[choice.index] += choice.text
        for name in names if choice.logprobs else ():
            told[choice.index][name] += getattr(choice.logprobs, name)
    for place, prompt in enumerate(prompts):
        alone = client.completions.create(prompt=prompt, **options).choices
        for index, wanted in enumerate(alone, N * place):
            assert texts[index] == wanted.text
            assert told[index]["tokens"] == wanted.logprobs.tokens
            assert told[index]["text_offset"] == wanted.logprobs.text_offset
            assert told[index]["token_logprobs"][0] is None
            assert told[index]["token_logprobs"][1:] == pytest.approx(wanted.logprobs.token_logprobs[1:], abs=1e-4)


def test_each_prompts_own_field(client):
    told = client.completions.create(
        model=MODELS[0], prompt=PROMPTS, max_tokens=0, n=N, extra_body={"prompt_logprobs": 0}
    )
    for place, prompt in enumerate(PROMPTS):
        alone = client.completions.create(
            model=MODELS[0], prompt=prompt, max_tokens=0, extra_body={"prompt_logprobs": 0}
        )
        for choice in told.choices[N * place : N * place + N]:
            assert choice.prompt_logprobs == alone.choices[0].prompt_logprobs


def test_each_goes_on_from_a_context(client, http):
    beginning = f"Note {uuid.uuid4().hex}: Ana Torres was born in 1812. " * 4
    made = http.post("/v1/fathom/contexts", json={"model": MODELS[1], "prompt": beginning}).json()
    options = {"model": MODELS[1], "max_tokens": 4, "temperature": 0}
    short = client.completions.create(prompt=PROMPTS, extra_body={"context": made["name"]}, **options)
    whole = client.completions.create(prompt=[beginning + prompt for prompt in PROMPTS], **options)
    assert [choice.text for choice in short.choices] == [choice.text for choice in whole.choices]
    context = Context("long", MODELS[1], "x" * 80_000, 80_000, 20_000, "1h", 3600.0)
    refuse_too_many(context, ["x"] * 800)
    with pytest.raises(ApiError, match="prompt: 900 behind a context of 80,000 bytes are 72,000,000 bytes"):
        refuse_too_many(context, ["x"] * 900)


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"prompt": ["x", ""], "max_tokens": 10**6}, "prompt.0", "context is"),
        ({"prompt": [[5], []]}, "prompt.1", "must not be empty"),
        ({"prompt": [[5], [6], [10**6]]}, "prompt.2", "outside the model's vocabulary"),
        ({"prompt": ["x", 5]}, "prompt.1", "string"),
        ({"prompt": ["x"] * 9, "n": 120}, "prompt", "9 prompts, and n 120, ask for 1080 completions; at most 1024"),
    ],
)
def test_what_is_wrong_with_one_is_named_and_none_is_answered(http, server, body, param, words):
    answer = http.post("/v1/completions", json={"model": MODELS[0]} | body)
    assert (answer.status_code, refusal(answer)["param"]) == (400, param)
    assert words in refusal(answer)["message"]
    assert_idle(server)


@EVERY_MODEL
def test_each_prompt_is_observed_and_the_request_counted_once(client, server, model):
    names = [f'fathom_queue_seconds_count{{model="{model}"}}', f'fathom_request_prompt_tokens_count{{model="{model}"}}']
    names.append(f'fathom_requests_total{{model="{model}",outcome="length"}}')
    before = [server.metrics().get(name, 0) for name in names]
    client.completions.create(model=model, prompt=PROMPTS, n=N, max_tokens=1, extra_body={"ignore_eos": True})
    assert [server.metrics()[name] - was for name, was in zip(names, before, strict=True)] == [3, 3, 1]


def test_a_client_that_leaves_ends_all(server):
    body = {"model": MODELS[1], "prompt": PROMPTS, "max_tokens": 500_000, "ignore_eos": True, "n": N, "stream": True}
    with httpx.Client(base_url=server.url) as http, http.stream("POST", "/v1/completions", json=body) as answer:
        assert next(answer.iter_lines()).startswith(("data: ", ": "))
    assert_idle(server)
