"""A stream's events, beside what the `openai` client sees of them."""

import json

import pytest

from models.embedded import embedded_directory
from server.api import openai as api
from server.api.logprobs import Telling
from server.hosting import TextOutput
from server.request import SequenceUsage
from server.tokenizer import ModelTokenizer

USAGE = SequenceUsage(3, 0, 4, 0.0, 0.0, 0.0, 0, 0, 0)


async def outputs(texts):
    for number, text in enumerate(texts, 1):
        last = number == len(texts)
        yield TextOutput(text, number, "length" if last else None, USAGE if last else None)


@pytest.mark.parametrize(("wait_s", "comments"), [(-1.0, 2), (60.0, 0)])
async def test_tokens_without_text_send_comments_in_between(monkeypatch, wait_s, comments):
    monkeypatch.setattr(api, "SILENT_EVERY_S", wait_s)
    source = outputs(["", "a", "", "b"])
    telling = Telling(ModelTokenizer(embedded_directory("embedded:mamba")), True, (1, 2, 3), None)
    shape = api.Shape(chat=True, answer_id="x", model="m", created_s=0, include_usage=True, tellings=[telling])
    events = [e async for e in api.events(await anext(source), source, shape)]
    assert all(event.endswith("\n\n") for event in events)
    assert sum(event.startswith(": ") for event in events) == comments
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-1] if event.startswith("data: {")]
    texts = [c["choices"][0]["delta"].get("content") for c in chunks if c["choices"]]
    assert texts == ["", "a", "b", None]
    assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * 4
    assert chunks[-1]["usage"]["completion_tokens"] == 4
