"""Several completions of one prompt: `n` through the real `openai` client, streamed and whole."""

import uuid

import httpx
import pytest
from server_checks import assert_idle

MODELS = ("embedded:transformer", "embedded:mamba")
EVERY_MODEL = pytest.mark.parametrize("model", MODELS)
N = 4


def new_prompt() -> str:
    """Long enough that it pays to wait for who computes it."""
    return f"{uuid.uuid4().hex} " * 8


def by_index(chunks: list, *, chat: bool) -> tuple[list[str], list[list[str]]]:
    """Texts and finish reasons of the choices of a stream."""
    texts, reasons = [""] * N, [[] for _ in range(N)]
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += (choice.delta.content if chat else choice.text) or ""
            reasons[choice.index] += [choice.finish_reason] if choice.finish_reason else []
    return texts, reasons


@EVERY_MODEL
@pytest.mark.parametrize("chat", [True, False])
def test_each_choice_is_what_its_seed_gives_alone(client, server, model, chat):
    options = {"model": model, "temperature": 2.0, "max_tokens": 12, "extra_body": {"ignore_eos": True}}
    if chat:
        create, options["messages"] = client.chat.completions.create, [{"role": "user", "content": "Who is she?"}]
    else:
        create, options["prompt"] = client.completions.create, "Question: Who"
    alone = [create(**options, seed=2**63 - 2 + place - 2**63 * (place > 1)) for place in range(N)]
    whole = create(**options, seed=2**63 - 2, n=N)
    chunks = list(create(**options, seed=2**63 - 2, n=N, stream=True, stream_options={"include_usage": True}))

    assert [choice.index for choice in whole.choices] == list(range(N))
    texts = [choice.message.content if chat else choice.text for choice in whole.choices]
    assert texts == [(each.choices[0].message.content if chat else each.choices[0].text) for each in alone]
    assert len(set(texts)) > 1
    assert by_index(chunks, chat=chat) == (texts, [["length"]] * N)
    if chat:
        assert [chunk.choices[0].delta.role for chunk in chunks[:N]] == ["assistant"] * N
    assert whole.usage.prompt_tokens == alone[0].usage.prompt_tokens
    assert whole.usage.completion_tokens == 12 * N
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + 12 * N
    assert (chunks[-1].choices, chunks[-1].usage) == ([], whole.usage)
    assert [hasattr(chunk, "fathom") for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    for name in ("kv_bytes", "state_bytes", "peak_bytes"):
        assert whole.fathom[name] == N * alone[0].fathom[name]
    assert_idle(server)


@EVERY_MODEL
def test_the_prompt_is_computed_once_and_counted_once(client, server, model):
    def counted(name: str) -> float:
        return server.metrics()[f'{name}{{model="{model}"}}']

    names = ("fathom_engine_prompt_tokens_total", "fathom_engine_cached_tokens_total", "fathom_queue_seconds_count")
    outcome = f'fathom_requests_total{{model="{model}",outcome="length"}}'
    before, ended = [counted(name) for name in names], server.metrics().get(outcome, 0.0)
    body = {"ignore_eos": True, "cache_salt": uuid.uuid4().hex}  # not even a first letter is known
    options = {"model": model, "prompt": new_prompt(), "max_tokens": 3, "extra_body": body}
    usage = client.completions.create(**options, n=N).usage
    computed, cached, requests = (counted(name) - was for name, was in zip(names, before, strict=True))
    # Only the last token's logits are computed for each.
    assert computed == usage.prompt_tokens + N - 1
    assert cached == (N - 1) * (usage.prompt_tokens - 1)
    assert usage.prompt_tokens_details.cached_tokens == 0
    assert requests == server.metrics()[outcome] - ended == 1
    assert client.completions.create(**options).usage.prompt_tokens_details.cached_tokens == usage.prompt_tokens - 1


def test_without_a_seed_each_draws_its_own(client):
    answer = client.completions.create(
        model=MODELS[0], prompt="Question: Who", n=N, max_tokens=24, temperature=2.0, extra_body={"ignore_eos": True}
    )
    assert len({choice.text for choice in answer.choices}) > 1


def test_a_stop_string_ends_one_choice_alone(client, server):
    options = {"model": MODELS[0], "prompt": "Question: Who", "max_tokens": 60, "temperature": 2.0, "n": N}
    options |= {"extra_body": {"ignore_eos": True}, "seed": 11}
    texts = [choice.text for choice in client.completions.create(**options).choices]
    pieces = (text[start : start + 4] for text in texts for start in range(10, len(text) - 4))
    stop = next(piece for piece in pieces if sum(piece in text for text in texts) == 1)
    cut = client.completions.create(**options, stop=stop).choices
    assert [choice.text for choice in cut] == [text.partition(stop)[0] for text in texts]
    assert sorted(choice.finish_reason for choice in cut) == ["length"] * (N - 1) + ["stop"]
    assert_idle(server)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_every_choice(server, stream):
    gone = f'fathom_requests_total{{model="{MODELS[1]}",outcome="disconnected"}}'
    before = server.metrics().get(gone, 0.0)
    body = {"model": MODELS[1], "prompt": "The", "max_tokens": 500_000, "ignore_eos": True, "n": N, "stream": stream}
    with httpx.Client(base_url=server.url) as http:
        if stream:
            with http.stream("POST", "/v1/completions", json=body) as answer:
                assert next(answer.iter_lines()).startswith(("data: ", ": "))
        else:
            with pytest.raises(httpx.ReadTimeout):
                http.post("/v1/completions", json=body, timeout=httpx.Timeout(5, read=0.5))
    assert_idle(server)
    assert server.metrics()[gone] == before + 1
