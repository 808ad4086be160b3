"""A stream's events, beside what the `openai` client sees of them."""

import json

import pytest

from models.embedded import embedded_directory
from server.api import openai as api
from server.api.logprobs import Telling
from server.hosting import TextOutput
from server.request import SequenceUsage, TokenLogprob
from server.tokenizer import ModelTokenizer

USAGE = SequenceUsage(3, 0, 4, 0.0, 0.0, 0.0, 0, 0, 0)


async def outputs(texts):
    for number, text in enumerate(texts, 1):
        last = number == len(texts)
        yield [TextOutput(text, number, "length" if last else None, USAGE if last else None)]


@pytest.mark.parametrize(("wait_s", "comments"), [(-1.0, 1), (60.0, 0)])
async def test_tokens_without_text_send_comments_in_between(monkeypatch, wait_s, comments):
    monkeypatch.setattr(api, "SILENT_EVERY_S", wait_s)
    source = outputs(["", "a", "", "b"])
    telling = Telling(ModelTokenizer(embedded_directory("embedded:mamba")), True, (1, 2, 3), None)
    shape = api.Shape(chat=True, answer_id="x", model="m", created_s=0, include_usage=True, tellings=[telling])
    said = b"".join([e async for e in api.events(await anext(source), source, shape)]).decode()
    assert said.endswith("\n\n")
    events = said.removesuffix("\n\n").split("\n\n")
    assert events[-1] == "data: [DONE]"
    assert sum(event.startswith(": ") for event in events) == comments
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-1] if event.startswith("data: {")]
    texts = [c["choices"][0]["delta"].get("content") for c in chunks if c["choices"]]
    assert texts == ["", "a", "b", None]
    assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * 4
    assert chunks[-1]["usage"]["completion_tokens"] == 4


@pytest.mark.parametrize("chat", [True, False])
async def test_what_comes_together_goes_out_together_in_an_event_for_each_token(chat):
    """Events are written in parts; joined they are the chunks."""
    telling = Telling(ModelTokenizer(embedded_directory("embedded:mamba")), chat, (1, 2, 3), 0)
    shape = api.Shape(chat, [telling], "x", "m", 0, include_usage=False, num_choices=2)
    texts = ['"quoted"\n', "日本 \u2028", "{}", "\\"]
    told = [((TokenLogprob(40 + number, -0.5, 1), number),) for number in range(len(texts))]
    together = [
        TextOutput(text, 1, None, None, number % 2, logprobs)
        for number, (text, logprobs) in enumerate(zip(texts, told, strict=True))
    ]

    async def rest():
        yield [TextOutput("", 2, "length", USAGE, 1)]
        yield [TextOutput("!", 2, "stop", USAGE, 0)]

    first, *others = [e async for e in api.events(together, rest(), shape)]
    events = first.decode().split("\n\n")[2 if chat else 0 : -1]
    expected = [
        shape.chunk(output.index, output.text, None, logprobs=telling.generated(output.logprobs)) for output in together
    ]
    assert [json.loads(event.removeprefix("data: ")) for event in events] == expected
    assert len(others) == 2
    assert others[1].count(b"data: {") == 2
    assert others[1].endswith(b"data: [DONE]\n\n")
