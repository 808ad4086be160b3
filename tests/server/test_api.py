"""The HTTP API through the real `openai` client over a real socket."""

import asyncio
import json

import httpx
import openai
import pytest
from server_checks import assert_idle, refusal

from evals.prompts import build_messages
from evals.records import Document
from server.api.generation import sampling_params
from server.api.schemas import CompletionRequest
from server.generation_config import SamplingDefaults

MODELS = ("embedded:transformer", "embedded:mamba")
DOCUMENT = Document("d", "Ana Torres", "Ana Torres is a painter. She was born in 1812.")
MARK = {"type": "ephemeral"}
MARKED = {"type": "text", "text": "x", "cache_control": MARK}
CHAT = build_messages("must_answer", [DOCUMENT], "When was Ana Torres born?")


@pytest.mark.parametrize("model", MODELS)
def test_chat_streamed_is_chat_whole(client, model):
    options = {"model": model, "messages": CHAT, "temperature": 0, "max_tokens": 12}
    client.chat.completions.create(**options)  # from here on the prompt is known
    whole = client.chat.completions.create(**options)
    chunks = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content != ""
    reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
    assert [reason for reason in reasons if reason] == [whole.choices[0].finish_reason]
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert all("usage" in chunk.model_fields_set and chunk.usage is None for chunk in chunks[:-1])
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    assert {chunk.id for chunk in chunks} == {chunks[0].id}


async def test_the_asynchronous_client(server):
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        options = {"messages": CHAT, "temperature": 0, "max_tokens": 8}
        answers = await asyncio.gather(*[client.chat.completions.create(model=m, **options) for m in MODELS * 4])
        texts = [answer.choices[0].message.content for answer in answers]
        assert texts == texts[:2] * 4
        stream = await client.chat.completions.create(model=MODELS[0], **options, stream=True)
        assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == texts[0]


@pytest.mark.parametrize("model", MODELS)
def test_plain_completions(client, http, model):
    options = {"model": model, "temperature": 0, "max_tokens": 6}
    client.completions.create(prompt="Ana Torres was born in", **options)  # from here on the prompt is known
    by_text = client.completions.create(prompt="Ana Torres was born in", **options)
    token_ids = http.post("/tokenize", json={"model": model, "prompt": "Ana Torres was born in"}).json()["tokens"]
    by_ids = client.completions.create(prompt=token_ids, **options)
    streamed = client.completions.create(prompt=[token_ids], stream=True, **options)
    assert by_text.choices[0].text == by_ids.choices[0].text == "".join(c.choices[0].text for c in streamed)
    assert by_text.usage == by_ids.usage
    assert by_text.usage.prompt_tokens == len(token_ids)


@pytest.mark.parametrize("model", MODELS)
def test_what_a_sequence_took_is_reported(client, model):
    answer = client.chat.completions.create(model=model, messages=CHAT, max_tokens=5).fathom
    [entry] = [m.fathom for m in client.models.list() if m.id == model]
    blocks = -(-client.chat.completions.create(model=model, messages=CHAT, max_tokens=1).usage.prompt_tokens // 16)
    assert answer["queue_s"] >= 0
    assert answer["prefill_s"] > 0
    assert answer["kv_bytes"] >= blocks * 16 * entry["bytes_per_token"]
    assert answer["state_bytes"] == entry["bytes_per_sequence"]
    assert answer["peak_bytes"] == answer["kv_bytes"] + answer["state_bytes"] > 0
    assert entry["kind"] == model.removeprefix("embedded:")
    last = list(client.chat.completions.create(model=model, messages=CHAT, max_tokens=5, stream=True))[-1]
    assert last.fathom.keys() == answer.keys()


def test_seeds_reproduce(client):
    options = {
        "model": MODELS[0],
        "prompt": "Question: Who",
        "max_tokens": 24,
        "temperature": 2.0,
        "extra_body": {"ignore_eos": True},
    }
    texts = [client.completions.create(seed=seed, **options).choices[0].text for seed in (7, 7, 8, -7)]
    assert texts[0] == texts[1]
    assert len(set(texts)) == 3


def test_what_was_there_changes_what_comes(client, http):
    options = {"model": MODELS[0], "prompt": "Question: Who", "max_tokens": 24, "temperature": 0}

    def text(**more) -> str:
        return client.completions.create(**options, extra_body={"ignore_eos": True} | more).choices[0].text

    plain = text()
    assert text(presence_penalty=0, frequency_penalty=0, repetition_penalty=1, logit_bias={}, min_tokens=0) == plain
    assert text(repetition_penalty=100) != plain
    [token_id] = http.post(
        "/tokenize", json={"model": MODELS[0], "prompt": "e", "add_special_tokens": False}
    ).json()["tokens"]  # fmt: skip
    only = client.completions.create(**options, logit_bias={str(token_id): 100}, n=2).choices
    # This vocabulary writes a space before a text's first word.
    assert ["".join(choice.text.split()) for choice in only] == ["e" * 24] * 2


def test_each_field_becomes_its_own():
    body = {"presence_penalty": 0.1, "frequency_penalty": -0.2, "repetition_penalty": 1.3, "logit_bias": {"5": -4}}
    more = {"min_tokens": 3, "logprobs": 1, "prompt_logprobs": 2}
    request = CompletionRequest.model_validate({"model": "m", "prompt": "x"} | body | more)
    params = sampling_params(request, 9, SamplingDefaults(repetition_penalty=1.1))
    assert (params.presence_penalty, params.frequency_penalty, params.repetition_penalty) == (0.1, -0.2, 1.3)
    assert (params.logit_bias, params.min_tokens) == (((5, -4.0),), 3)
    assert (params.logprobs, params.prompt_logprobs) == (1, 2)
    plain = CompletionRequest.model_validate({"model": "m", "prompt": "x", "echo": True, "logprobs": 4})
    assert sampling_params(plain, 9, SamplingDefaults(repetition_penalty=1.1)).repetition_penalty == 1.1
    assert sampling_params(plain, 9, SamplingDefaults()).prompt_logprobs == 4
    assert not sampling_params(plain, 9, SamplingDefaults()).adjusts


def test_stop_strings_are_looked_for_behind_the_least(client):
    options = {"model": MODELS[0], "prompt": "Question: Who", "max_tokens": 24, "temperature": 2.0, "seed": 3}
    free = client.completions.create(**options, extra_body={"ignore_eos": True}).choices[0].text
    stops = sorted(set(free))[:16]
    body = {"ignore_eos": True, "min_tokens": 6}
    cut = client.completions.create(**options, stop=stops, extra_body=body)
    assert cut.usage.completion_tokens > 6
    assert free.startswith(cut.choices[0].text)
    assert any(stop in cut.choices[0].text for stop in stops)
    assert client.completions.create(**options, stop=stops, extra_body={"ignore_eos": True}).usage.completion_tokens < 6


def test_top_k_of_one_is_greedy(client):
    def texts(**sampling) -> list[str]:
        """Several, as one of them may be empty or the same whatever is drawn."""
        options = {"model": MODELS[1], "max_tokens": 24, "seed": 7}
        body = {"temperature": 2, "ignore_eos": True} | sampling
        prompts = ("Question: Who", "She is a", "Ana Torres was born in")
        return [client.completions.create(prompt=p, **options, extra_body=body).choices[0].text for p in prompts]

    greedy = texts(temperature=0)
    assert texts() != greedy
    assert [texts(top_k=1), texts(min_p=1.0), texts(top_p=1e-9)] == [greedy] * 3


@pytest.mark.parametrize("stream", [False, True])
def test_stop_strings_cut_the_text_and_free_the_sequence(client, server, stream):
    options = {
        "model": MODELS[0],
        "prompt": "Question: Who",
        "max_tokens": 200,
        "temperature": 2,
        "extra_body": {"ignore_eos": True},
    }
    # Whatever the weights: a text that is long and not the same over and over.
    for seed in range(7, 30):
        options["seed"] = seed
        free = client.completions.create(**options).choices[0]
        if len(set(free.text)) > 24:
            break
    assert free.finish_reason == "length"
    substrings = (free.text[start : start + 4] for start in range(20, len(free.text) - 4))
    stop = next(substring for substring in substrings if free.text.index(substring) > 0)
    answer = client.completions.create(**options, stop=["never there", stop], stream=stream)
    if stream:
        answer = list(answer)
        text, reason = "".join(chunk.choices[0].text for chunk in answer), answer[-1].choices[0].finish_reason
    else:
        text, reason = answer.choices[0].text, answer.choices[0].finish_reason
        assert 1 <= answer.usage.completion_tokens < 200
    assert 0 < len(text) < len(free.text)
    assert (text, reason) == (free.text[: free.text.index(stop)], "stop")
    assert_idle(server)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_everything(server, stream):
    body = {"model": MODELS[1], "prompt": "The", "max_tokens": 500_000, "ignore_eos": True, "stream": stream}
    with httpx.Client(base_url=server.url) as http:
        if stream:
            with http.stream("POST", "/v1/completions", json=body) as answer:
                # A comment where this model says nothing that can be shown.
                assert next(answer.iter_lines()).startswith(("data: ", ": "))
        else:
            with pytest.raises(httpx.ReadTimeout):
                http.post("/v1/completions", json=body, timeout=httpx.Timeout(5, read=0.5))
    assert_idle(server)
    assert server.metrics()[f'fathom_requests_total{{model="{MODELS[1]}",outcome="disconnected"}}'] >= 1


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"foo": 1}, "foo", "unknown field"),
        ({"temperature": 3}, "temperature", "less than or equal to 2"),
        ({"temperature": "hot"}, "temperature", "number"),
        ({"top_p": 0}, "top_p", "greater than 0"),
        ({"max_tokens": -1}, "max_tokens", "greater than or equal to 0"),
        ({"max_tokens": 0}, "max_tokens", "at least 1, unless"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_completion_tokens", "contradicts"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"n": 129}, "n", "less than or equal to 128"),
        ({"n": 2, "best_of": 2}, "best_of", "not supported"),
        ({"logprobs": 2}, "logprobs", "boolean"),
        ({"tools": [{"type": "function"}]}, "tools", "not supported"),
        ({"response_format": {"type": "json_object"}}, "response_format", "not supported"),
        ({"frequency_penalty": 2.5}, "frequency_penalty", "less than or equal to 2"),
        ({"presence_penalty": -2.5}, "presence_penalty", "greater than or equal to -2"),
        ({"repetition_penalty": 0}, "repetition_penalty", "greater than 0"),
        ({"logit_bias": {"5": 101}}, "logit_bias", "numbers from -100 to 100"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "token ids as keys, not 'x'"),
        ({"logit_bias": {str(2**31): 1}}, "logit_bias", "token ids as keys"),
        ({"logit_bias": {"1000000": 1}}, "logit_bias", "outside the model's vocabulary"),
        ({"logit_bias": dict.fromkeys(map(str, range(1025)), 1)}, "logit_bias", "at most 1024"),
        ({"min_tokens": 4, "max_tokens": 3}, "min_tokens", "at most 3"),
        ({"stop": [""]}, "stop.0", "at least 1 character"),
        ({"stop": ["x"] * 17}, "stop", "at most 16"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "only allowed when stream"),
        ({"stream": "yes"}, "stream", "boolean"),
        ({"seed": 2**63}, "seed", "less than"),
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role", "'user'"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages", "Roles must be"),
        ({"messages": [{"role": "user", "content": "x", "name": "y"}]}, "messages.0.name", "not supported"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "text": "x"}]}]},
            "messages.0.content.0.type",
            "'text'",
        ),
        (
            {"messages": [{"role": "user", "content": [MARKED | {"cache_control": {"type": "persistent"}}]}]},
            "messages.0.content.0.cache_control.type",
            "'ephemeral'",
        ),
        (
            {"messages": [{"role": "user", "content": [MARKED | {"cache_control": MARK | {"ttl": "2h"}}]}]},
            "messages.0.content.0.cache_control.ttl",
            "'5m' or '1h'",
        ),
        (
            {"messages": [{"role": "user", "content": [MARKED] * 5}]},
            "messages",
            "hold 5 parts with cache_control; at most 4",
        ),
        ({"model": None}, "model", "string"),
        ({"cache_salt": ""}, "cache_salt", "at least 1 character"),
        ({"cache_salt": "x" * 257}, "cache_salt", "at most 256 characters"),
        ({"prompt_cache_key": "x" * 257}, "prompt_cache_key", "at most 256 characters"),
        ({"prompt_cache_key": 1}, "prompt_cache_key", "string"),
    ],
)
def test_bad_fields_are_named(http, change, param, words):
    answer = http.post("/v1/chat/completions", json={"model": MODELS[0], "messages": CHAT} | change)
    error = refusal(answer)
    assert (answer.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert words in error["message"]
    assert error["message"].startswith(param)


def test_neutral_values_of_unsupported_options_are_accepted(client):
    answer = client.chat.completions.create(
        model=MODELS[0],
        messages=CHAT,
        max_tokens=1,
        n=1,
        presence_penalty=0,
        logprobs=False,
        tools=[],
        response_format={"type": "text"},
        user="somebody",
    )
    assert answer.usage.completion_tokens == 1


@pytest.mark.parametrize(
    ("prompt", "words"),
    [([], "1 to 1024 prompts"), ([[]], "not be empty"), ([10**6], "vocabulary"), (["x"] * 1025, "at most 1024 may be")],
)
def test_bad_prompts(http, prompt, words):
    error = refusal(http.post("/v1/completions", json={"model": MODELS[0], "prompt": prompt}))
    assert error["param"] == "prompt"
    assert words in error["message"]


def test_too_long_is_refused_with_the_limit(client, http):
    limit = http.post("/tokenize", json={"model": MODELS[0], "prompt": "x"}).json()["max_model_len"]
    with pytest.raises(openai.BadRequestError) as raised:
        client.completions.create(model=MODELS[0], prompt=[5] * limit, max_tokens=1)
    assert raised.value.code == "context_length_exceeded"
    assert f"{limit} tokens" in raised.value.message
    with pytest.raises(openai.BadRequestError, match=f"{limit} to generate"):
        client.completions.create(model=MODELS[0], prompt="x", max_tokens=limit)


@pytest.mark.parametrize(
    ("content", "headers", "words"),
    [
        (b"{bad", {"Content-Type": "application/json"}, "not valid JSON"),
        (b"[]", {"Content-Type": "application/json"}, "JSON object"),
        (b"{}", {"Content-Type": "text/plain"}, "JSON object"),
        (b"", {"Content-Type": "application/json"}, "JSON object"),
        (b'{"model": "x"}', {"Content-Type": "application/json"}, "is required"),
    ],
)
def test_bodies_that_are_no_requests(http, content, headers, words):
    answer = http.post("/v1/chat/completions", content=content, headers=headers)
    assert answer.status_code == 400
    assert words in refusal(answer)["message"]


def test_unknown_models_and_routes(client, http):
    with pytest.raises(openai.NotFoundError, match="embedded:transformer, embedded:mamba"):
        client.chat.completions.create(model="gpt", messages=CHAT)
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt")
    assert client.models.retrieve(MODELS[0]).id == MODELS[0]
    assert refusal(http.get("/v2"))["code"] == "not_found"
    assert http.get("/v1/completions").status_code == 405


def test_bodies_above_the_limit(http):
    big = json.dumps({"model": MODELS[0], "prompt": "x" * (65 << 20)}).encode()
    pieces = (big[start : start + (1 << 20)] for start in range(0, len(big), 1 << 20))
    headers = {"Content-Type": "application/json"}
    for content in (big, pieces):
        answer = http.post("/v1/completions", content=content, headers=headers)
        assert answer.status_code == 413
        assert "limit of 67,108,864 bytes" in refusal(answer)["message"]
        assert refusal(answer)["code"] == "request_entity_too_large"


def test_tokenize_counts_what_usage_counts(client, http):
    tokens = http.post("/tokenize", json={"model": MODELS[0], "messages": CHAT}).json()
    usage = client.chat.completions.create(model=MODELS[0], messages=CHAT, max_tokens=1).usage
    assert tokens["count"] == len(tokens["tokens"]) == usage.prompt_tokens
    text = "Zwölf Boxkämpfer, 日本 🙂\n\n  and spaces "
    ids = http.post("/tokenize", json={"model": MODELS[0], "prompt": text}).json()["tokens"]
    assert http.post("/detokenize", json={"model": MODELS[0], "tokens": ids}).json() == {"prompt": text}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {"prompt": "x"}, "model"),
        ("/tokenize", {"model": MODELS[0]}, "prompt"),
        ("/tokenize", {"model": MODELS[0], "prompt": "x", "messages": CHAT}, "prompt"),
        ("/detokenize", {"model": MODELS[0], "tokens": [10**6]}, "tokens"),
        ("/detokenize", {"model": MODELS[0], "tokens": [-1]}, "tokens.0"),
    ],
)
def test_bad_tokenizing(http, path, body, param):
    answer = http.post(path, json=body)
    assert (answer.status_code, refusal(answer)["param"]) == (400, param)


def test_health_metrics_and_version(http, client):
    client.chat.completions.create(model=MODELS[0], messages=CHAT, max_tokens=2)
    health = http.get("/health")
    assert health.status_code == 200
    assert {name: entry["state"] for name, entry in health.json()["models"].items()} == dict.fromkeys(MODELS, "ready")
    text = http.get("/metrics").text
    assert 'fathom_engine_up{model="embedded:mamba"} 1.0' in text
    assert 'fathom_prefill_seconds_count{model="embedded:transformer"}' in text
    assert http.get("/version").json()["version"]
