"""The prefix cache as clients see and steer it: salts, marks, what there is, and its end."""

import uuid

import numpy as np
import pytest
from fakes import drain, make_engine
from jinja2 import Environment

from server.api.marks import find_marks
from server.api.schemas import Message
from server.cache.planner import CachePlan
from server.cache.prefix import num_equal
from server.chat_template import ChatTemplateError
from server.request import EngineRequest, SamplingParams

MODELS = ("embedded:transformer", "embedded:mamba")
EVERY_MODEL = pytest.mark.parametrize("model", MODELS)


def new_text() -> str:
    """Known to nobody."""
    return f"{uuid.uuid4().hex} " * 8


@EVERY_MODEL
def test_only_requests_of_the_same_salt_find_each_other(client, model):
    prompt = new_text()

    def cached(**body: str) -> int:
        answer = client.completions.create(model=model, prompt=prompt, max_tokens=1, extra_body=body)
        return answer.usage.prompt_tokens_details.cached_tokens

    assert [cached(cache_salt="a"), cached(cache_salt="b"), cached()] == [0, 0, 0]
    known = cached(cache_salt="a")
    assert known > 0
    # A hint for a router before several servers: one server is not divided by it.
    assert cached(cache_salt="b", prompt_cache_key="x") == cached(prompt_cache_key="y") == known


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
        usages = [client.chat.completions.create(model=model, messages=chat, max_tokens=1).usage for chat in chats]
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
