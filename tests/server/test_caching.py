"""The prefix cache as clients see and steer it: salts, marks, what there is, and its end."""

import uuid

import numpy as np
import pytest
from fakes import drain, make_engine
from jinja2 import Environment
from server_checks import refusal

from server.api.marks import find_marks
from server.api.schemas import Message
from server.cache.planner import CachePlan
from server.cache.runs import num_equal
from server.chat_template import ChatTemplateError
from server.request import EngineRequest, SamplingParams

MODELS = ("embedded:transformer", "embedded:mamba")
EVERY_MODEL = pytest.mark.parametrize("model", MODELS)


def new_text() -> str:
    """Known to nobody."""
    return f"{uuid.uuid4().hex} " * 8


@EVERY_MODEL
def test_only_requests_of_the_same_salt_find_each_other(client, model):
    prompt, a, b = new_text(), *(uuid.uuid4().hex for _ in "ab")

    def cached(**body: str) -> int:
        answer = client.completions.create(model=model, prompt=prompt, max_tokens=1, extra_body=body)
        return answer.usage.prompt_tokens_details.cached_tokens

    assert [cached(cache_salt=a), cached(cache_salt=b)] == [0, 0]
    assert cached() < 16  # others may have begun with the same letters
    known = cached(cache_salt=a)
    assert known > 64
    # A hint for a router before several servers: one server is not divided by it.
    assert cached(cache_salt=b, prompt_cache_key="x") == cached(prompt_cache_key="y") == known


MARK = {"type": "ephemeral", "ttl": "1h"}


def asked(document: str, question: str, **mark: dict) -> list[dict]:
    return [
        {"role": "user", "content": [{"type": "text", "text": document, **mark}, {"type": "text", "text": question}]}
    ]


def test_the_state_at_a_mark_is_found_again(client, http):
    """A state cannot be cut back: without a mark the second question finds it at a regular place before."""
    model, found = "embedded:mamba", []
    for mark in ({}, {"cache_control": MARK}):
        document = new_text() + "\n"
        chats = [asked(document, question, **mark) for question in ("Who?", "And when?")]
        tokens = [http.post("/tokenize", json={"model": model, "messages": chat}).json()["tokens"] for chat in chats]
        options = {"model": model, "max_tokens": 1, "extra_body": {"cache_salt": uuid.uuid4().hex}}
        usages = [client.chat.completions.create(messages=chat, **options).usage for chat in chats]
        assert usages[0].prompt_tokens_details.cached_tokens == 0
        common = num_equal(*(np.array(each, np.int32) for each in tokens))
        found.append((usages[1].prompt_tokens_details.cached_tokens, common))
    assert found[0][0] < found[0][1]
    assert found[1][0] == found[1][1]


def test_a_mark_leaves_a_snapshot():
    plan = CachePlan(0, 1000, 16, 0, 200)
    engine, _ = make_engine(plan, max_context=1000, prefill_chunk=256, step_tokens=512, snapshot_every=512)
    params = SamplingParams(1, temperature=0.0, ignore_eos=True)
    engine.add_request(EngineRequest("a", tuple(range(300)), params, marks=(100, 201), mark_ttl_s=(300.0, 3600.0)))
    drain(engine)
    for name, shared, known in (("b", 150, 100), ("c", 250, 201)):
        engine.add_request(EngineRequest(name, (*range(shared), *range(1000, 1030)), params))
        assert drain(engine)[name][-1].usage.cached_tokens == known


class Letters:
    """A tokenizer with a token for each character, and a template."""

    def __init__(self, template: str) -> None:
        self._template = Environment().from_string(template)

    def render_chat(self, messages, _):
        if "no digits" in messages[0]["content"] and any(c.isdigit() for c in messages[-1]["content"]):
            raise ChatTemplateError("a digit")
        return self._template.render(messages=messages)

    def encode(self, text, *, add_special_tokens):
        assert not add_special_tokens
        return [ord(character) for character in text]


@pytest.mark.parametrize(
    ("template", "first", "positions", "ttl_s"),
    [
        ("{% for m in messages %}<{{ m.content }}>{% endfor %}", "abc ", (5, 8), (300.0, 3600.0)),
        # Stripped: up to where the part ends in the prompt.
        ("{% for m in messages %}<{{ m.content | trim }}>{% endfor %}", "abc ", (4, 7), (300.0, 3600.0)),
        # Changed or left out altogether: what is before it, or nothing.
        ("{{ messages[0].content | upper }}{{ messages[1].content }}", "abc ", (5,), (3600.0,)),
        ("{% for m in messages %}<{{ m.content }}>{% endfor %}", "no digits", (10,), (300.0,)),
        # Both at the same place: the longer time.
        ("{{ messages[0].content }}{{ messages[1].content[1:] }}", "abc ", (4,), (3600.0,)),
    ],
)
def test_where_a_marked_part_ends(template, first, positions, ttl_s):
    messages = [
        Message(role="user", content=[{"type": "text", "text": first, "cache_control": {"type": "ephemeral"}}]),
        Message(
            role="user",
            content=[{"type": "text", "text": "x", "cache_control": MARK}, {"type": "text", "text": "yz"}],
        ),
    ]
    tokenizer = Letters(template)
    chat = [message.as_template_input() for message in messages]
    marks = find_marks(
        tokenizer, messages, tokenizer.encode(tokenizer.render_chat(chat, True), add_special_tokens=False)
    )
    assert (marks.positions, marks.ttl_s) == (positions, ttl_s)


def test_entries_tell_what_was_found_and_when():
    plan = CachePlan(8, 1000, 16, 400, 200)
    engine, _ = make_engine(plan, max_context=1000, prefill_chunk=512, step_tokens=512, snapshot_every=512)
    params = SamplingParams(1, temperature=0.0, ignore_eos=True)
    shared, other = tuple(range(100)), tuple(range(1000, 1050))
    prompts = {"first": (*shared, 500), "second": (*shared, 600, 601), "third": (*shared, 700), "other": other}
    for name, prompt in prompts.items():
        marks = {"marks": (90,), "mark_ttl_s": (60.0,)} if name == "first" else {}
        engine.add_request(EngineRequest(name, prompt, params, **marks))
        drain(engine)
    content = engine.cache_content(10)
    # Each leaves a state before its last token and after it; the first, for all that go on from there, one at its mark.
    assert [(e.tokens, e.hits, e.num_snapshots) for e in content.entries] == [
        (50, 0, 2),
        (101, 2, 3),
        (102, 2, 4),
        (101, 2, 3),
    ]
    assert [e.age_s for e in content.entries] == sorted(e.age_s for e in content.entries)
    assert [(e.kv_bytes, e.state_bytes) for e in content.entries[:2]] == [(4 * 16 * 8, 2000), (7 * 16 * 8, 3000)]
    assert (content.num_entries, len(engine.cache_content(2).entries)) == (4, 2)
    assert (content.num_snapshots, content.num_cached_blocks) == (
        engine.stats().snapshots,
        engine.stats().cached_blocks,
    )

    engine.add_request(EngineRequest("runs", other, SamplingParams(5, temperature=0.0, ignore_eos=True)))
    engine.step()
    freed = engine.clear_cache()
    assert (freed.kv_bytes, freed.state_bytes) == (freed.num_blocks * 128, freed.num_snapshots * 1000)
    assert freed.num_snapshots == content.num_snapshots
    assert [entry.tokens for entry in engine.cache_content(10).entries] == [49]
    assert drain(engine)["runs"][-1].usage.completion_tokens == 5
    engine.clear_cache()
    engine.scheduler.check()
    assert engine.scheduler.memory.blocks.num_free == plan.num_blocks
    assert engine.scheduler.memory.slots.num_free == plan.num_state_slots


@EVERY_MODEL
def test_the_endpoint_shows_what_is_kept_and_clears_it(client, http, model):
    of = {"model": model}
    assert http.delete("/v1/fathom/cache", params=of).json()["freed"].keys() == {
        "num_blocks", "kv_bytes", "num_snapshots", "state_bytes",
    }  # fmt: skip
    prompt, options = new_text(), {"model": model, "max_tokens": 1, "extra_body": {"cache_salt": "secret salt"}}
    num_tokens = client.completions.create(prompt=prompt, **options).usage.prompt_tokens
    client.completions.create(prompt=prompt, **options)
    answer = http.get("/v1/fathom/cache", params=of)
    assert "secret" not in answer.text
    body, [info] = answer.json(), [m.fathom for m in client.models.list() if m.id == model]
    assert body.keys() == {"object", "model", "totals", "num_entries", "entries"}
    assert (body["object"], body["model"], body["num_entries"]) == ("fathom.cache", model, 1)
    [entry], totals = body["entries"], body["totals"]
    assert entry.keys() == {"tokens", "kv_bytes", "state_bytes", "num_snapshots", "tier", "hits", "age_s"}
    assert (entry["tokens"], entry["hits"], entry["tier"]) == (num_tokens, 1, "device")
    assert entry["state_bytes"] == entry["num_snapshots"] * info["bytes_per_sequence"]
    assert 0 <= entry["age_s"] < 60
    assert [totals[name] for name in ("host_pieces", "host_bytes", "disk_pieces", "disk_bytes")] == [0] * 4
    for name in ("blocks", "cached_blocks", "slots", "snapshots"):
        assert (totals[f"num_{name}"] > 0) >= (totals[f"{name}_bytes"] > 0)
    assert totals["snapshots_bytes"] == entry["state_bytes"] < totals["slots_bytes"] or not entry["state_bytes"]
    assert totals["cached_blocks_bytes"] == entry["kv_bytes"] < totals["blocks_bytes"] or not entry["kv_bytes"]
    freed = http.delete("/v1/fathom/cache", params=of).json()
    assert (freed["object"], freed["model"]) == ("fathom.cache.cleared", model)
    assert (freed["freed"]["kv_bytes"], freed["freed"]["state_bytes"]) == (entry["kv_bytes"], entry["state_bytes"])
    assert http.get("/v1/fathom/cache", params=of).json()["entries"] == []
    assert client.completions.create(prompt=prompt, **options).usage.prompt_tokens_details.cached_tokens == 0


@pytest.mark.parametrize(
    ("params", "param", "words"),
    [
        ({}, "model", "say which of"),
        ({"model": MODELS[0], "limit": 0}, "limit", "greater than or equal to 1"),
        ({"model": MODELS[0], "limit": 1001}, "limit", "less than or equal to 1000"),
        ({"model": MODELS[0], "limit": "all"}, "limit", "valid integer"),
        ({"model": MODELS[0], "salt": "x"}, "salt", "unknown field"),
    ],
)
def test_bad_questions_about_the_cache(http, params, param, words):
    answer = http.get("/v1/fathom/cache", params=params)
    assert (answer.status_code, refusal(answer)["param"]) == (400, param)
    assert words in refusal(answer)["message"]
    assert http.get("/v1/fathom/cache", params={"model": "none"}).status_code == 404
