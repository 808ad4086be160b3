"""Contexts under a name: who goes on from one is answered as if it had sent all of it, and computes only the rest."""

import uuid

import pytest
from server_checks import refusal

from server.contexts import Context, Contexts, TooManyContextsError

MODELS = ("embedded:transformer", "embedded:mamba")
EVERY_MODEL = pytest.mark.parametrize("model", MODELS)
DOCUMENT = "Ana Torres is a painter. She was born in Porto in 1962. " * 12


def fresh(text: str) -> str:
    """Known to nobody."""
    return f"Note {uuid.uuid4().hex}: {text}"


def make(http, **body) -> dict:
    answer = http.post("/v1/fathom/contexts", json=body)
    assert answer.status_code == 201, answer.text
    return answer.json()


def figures(answer) -> tuple[str, int, int]:
    """Text, tokens of the prompt, those of them that were found."""
    choice, usage = answer.choices[0], answer.usage
    text = choice.text if hasattr(choice, "text") else choice.message.content
    return text, usage.prompt_tokens, usage.prompt_tokens_details.cached_tokens


@EVERY_MODEL
def test_a_chat_goes_on_as_if_all_was_sent(client, http, model):
    messages = [{"role": "system", "content": "Answer from the note."}, {"role": "user", "content": fresh(DOCUMENT)}]
    made = make(http, model=model, messages=messages, name="note")
    assert (made["name"], made["kind"], made["ttl"], made["model"]) == ("note", "messages", "1h", model)
    questions = ("Where was Ana Torres born?", "When?")
    for question in questions:
        asked = [{"role": "user", "content": question}]
        options = {"model": model, "max_tokens": 8, "temperature": 0}
        short = client.chat.completions.create(messages=asked, extra_body={"context": "note"}, **options)
        whole = client.chat.completions.create(
            messages=[*messages, *asked], extra_body={"cache_salt": uuid.uuid4().hex}, **options
        )
        text, num_prompt, num_cached = figures(short)
        assert (text, num_prompt) == figures(whole)[:2]
        # The document's end is marked: little more than the question is computed, Mamba's state or not.
        assert num_cached > made["num_tokens"] - 40


@EVERY_MODEL
@pytest.mark.parametrize("as_ids", [False, True])
def test_a_prompt_goes_on_as_if_all_was_sent(client, http, model, as_ids):
    def written(text: str) -> str | list[int]:
        if not as_ids:
            return text
        body = {"model": model, "prompt": text, "add_special_tokens": False}
        return http.post("/tokenize", json=body).json()["tokens"]

    document, rest = written(fresh(DOCUMENT)), written("She lived in")
    name = make(http, model=model, prompt=document, ttl="5m")["name"]
    further = make(http, model=model, prompt=rest, context=name)
    assert further["name"] != name
    options = {"model": model, "max_tokens": 6, "temperature": 0}
    short = client.completions.create(prompt=rest, extra_body={"context": name}, **options)
    whole = client.completions.create(prompt=document + rest, extra_body={"cache_salt": uuid.uuid4().hex}, **options)
    assert figures(short)[:2] == figures(whole)[:2]
    assert figures(short)[2] >= figures(short)[1] - (9 if not as_ids else 1) - len(rest)
    longer = client.completions.create(prompt=rest, extra_body={"context": further["name"]}, **options)
    assert figures(longer)[1] > figures(short)[1]


def test_contexts_are_listed_shown_and_dropped(http):
    model = "embedded:mamba"
    names = [make(http, model=model, prompt=fresh("x"))["name"] for _ in range(2)]
    listed = {each["name"]: each for each in http.get("/v1/fathom/contexts", params={"model": model}).json()["data"]}
    assert set(names) <= set(listed)
    assert "fathom" not in listed[names[0]]
    assert http.get(f"/v1/fathom/contexts/{names[0]}").json()["num_tokens"] == listed[names[0]]["num_tokens"]
    assert http.get("/v1/fathom/contexts", params={"model": "other"}).json()["data"] == []
    assert http.delete(f"/v1/fathom/contexts/{names[0]}").json()["deleted"] is True
    for method in ("get", "delete"):
        answer = getattr(http, method)(f"/v1/fathom/contexts/{names[0]}")
        assert answer.status_code == 404
        assert refusal(answer)["code"] == "context_not_found"
    assert http.get(f"/v1/fathom/contexts/{names[1]}").status_code == 200


def test_a_salt_stays_with_its_context(http):
    model, salt = "embedded:mamba", uuid.uuid4().hex
    name = make(http, model=model, prompt=fresh(DOCUMENT), cache_salt=salt)["name"]
    body = {"model": model, "prompt": "x", "context": name, "max_tokens": 1}
    for salted in (body, body | {"cache_salt": salt}):
        usage = http.post("/v1/completions", json=salted).json()["usage"]
        assert usage["prompt_tokens_details"]["cached_tokens"] > 100
    assert refusal(http.post("/v1/completions", json=body | {"cache_salt": "other"}))["param"] == "cache_salt"


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("completions", {"prompt": [1, 2], "context": "text"}, "context"),
        ("completions", {"prompt": "x", "context": "ids"}, "context"),
        ("completions", {"prompt": "x", "context": "chat"}, "context"),
        ("completions", {"prompt": "x", "context": "nothing"}, "context"),
        ("completions", {"prompt": "x", "context": "no name!"}, "context"),
        ("completions", {"prompt": "x", "context": "text", "model": "embedded:transformer"}, "context"),
        ("chat/completions", {"messages": [{"role": "user", "content": "x"}], "context": "text"}, "context"),
        ("fathom/contexts", {"prompt": "x", "messages": [{"role": "user", "content": "x"}]}, "prompt"),
        ("fathom/contexts", {}, "prompt"),
        ("fathom/contexts", {"prompt": ""}, "prompt"),
        ("fathom/contexts", {"prompt": "x", "ttl": "2h"}, "ttl"),
        ("fathom/contexts", {"prompt": [10**6]}, "prompt"),
        ("fathom/contexts", {"prompt": "x", "temperature": 0}, "temperature"),
        ("fathom/contexts", {"prompt": "x", "context": "chat"}, "context"),
    ],
)
def test_refusals_name_the_field(http, path, body, param):
    model = "embedded:mamba"
    make(http, model=model, prompt="a b c", name="text")
    make(http, model=model, prompt=[5, 6, 7], name="ids")
    make(http, model=model, messages=[{"role": "user", "content": "x"}], name="chat")
    answer = http.post(f"/v1/{path}", json={"model": model} | body)
    assert answer.status_code == (404 if body.get("context") == "nothing" else 400)
    assert refusal(answer)["param"] == param


def context(name: str, num_bytes: int = 10, ttl_s: float = 300.0) -> Context[str]:
    return Context(name, "model", "content", num_bytes, 5, "5m", ttl_s)


def test_contexts_are_bounded_and_end_with_their_time():
    contexts = Contexts[str](max_contexts=2, max_bytes=100)
    contexts.keep("a", context("x"), 0.0)
    contexts.keep("b", context("x", 50, ttl_s=600.0), 0.0)
    with pytest.raises(TooManyContextsError, match="2 contexts"):
        contexts.keep("a", context("y"), 1.0)
    with pytest.raises(TooManyContextsError, match="50 bytes are kept and this one has 51"):
        contexts.keep("a", context("x", 51), 1.0)
    contexts.keep("a", context("x", 50), 1.0)  # in the place of the former
    assert [each.num_bytes for each in contexts.of("a", 2.0)] == [50]
    assert contexts.find("c", "x", 2.0) is None
    # Used at 200 it is there until 500; only looked at, until 301.
    assert contexts.find("a", "x", 200.0, use=True) is not None
    assert contexts.find("a", "x", 499.0) is not None
    assert contexts.find("a", "x", 501.0) is None
    assert contexts.find("b", "x", 501.0) is not None
    assert not contexts.drop("b", "x", 601.0)
    contexts.keep("a", context("y"), 601.0)
    assert contexts.drop("a", "y", 602.0)
