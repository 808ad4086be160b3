"""Log-probabilities through the real `openai` client: shapes, streams, several choices, echoed prompts."""

import math

import pytest
import torch
from server_checks import assert_idle, refusal
from transformers import AutoModelForCausalLM

from models.embedded import embedded_directory
from server.api.logprobs import place_tokens
from server.tokenizer import ModelTokenizer

MODELS = ("embedded:transformer", "embedded:mamba")
PROMPT = "Ana Torres is a painter. She was born in 1812. When was she"
CHAT = [{"role": "user", "content": PROMPT}]
N = 3


@pytest.fixture(scope="module")
def tokenizer() -> ModelTokenizer:
    return ModelTokenizer(embedded_directory(MODELS[0]))


@pytest.fixture(scope="module")
def reference():
    return AutoModelForCausalLM.from_pretrained(embedded_directory(MODELS[0]), dtype=torch.float32).eval()


def ids_by_text(tokenizer: ModelTokenizer) -> dict[str, int]:
    return {tokenizer.token_bytes(token).decode(errors="replace"): token for token in range(tokenizer.vocab_size)}


def exact_logprobs(reference, token_ids: list[int]) -> torch.Tensor:
    """(l, vocab): of the token after each."""
    with torch.no_grad():
        return reference(torch.tensor([token_ids])).logits[0].log_softmax(-1)


@pytest.mark.parametrize("model", MODELS)
def test_a_chats_tokens_streamed_and_whole(client, server, model):
    options = {"model": model, "messages": CHAT, "max_tokens": 10, "n": N, "seed": 5, "temperature": 1.5}
    options |= {"logprobs": True, "top_logprobs": 2, "extra_body": {"ignore_eos": True}}
    whole = client.chat.completions.create(**options)
    chunks = list(client.chat.completions.create(**options, stream=True))
    streamed = [[] for _ in range(N)]
    for choice in (choice for chunk in chunks for choice in chunk.choices):
        streamed[choice.index] += choice.logprobs.content if choice.logprobs else []
    for each, choice in zip(streamed, whole.choices, strict=True):
        for one, other in zip(each, choice.logprobs.content, strict=True):
            # What is found in the cache may differ from what is computed in the last bits.
            assert (one.token, one.bytes) == (other.token, other.bytes)
            assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
            assert [top.token for top in one.top_logprobs] == [top.token for top in other.top_logprobs]
        assert len(choice.logprobs.content) == 10
        assert choice.logprobs.refusal is None
        for entry in choice.logprobs.content:
            assert bytes(entry.bytes).decode(errors="replace") == entry.token
            assert len(entry.top_logprobs) == 2
            assert entry.top_logprobs[0].logprob >= max(entry.logprob, entry.top_logprobs[1].logprob)
        assert not math.isclose(choice.logprobs.content[0].logprob, 0)
    assert len({str(each) for each in streamed}) == N
    assert_idle(server)


def test_who_does_not_ask_gets_none(client):
    assert client.chat.completions.create(model=MODELS[0], messages=CHAT, max_tokens=2).choices[0].logprobs is None
    for chunk in client.completions.create(model=MODELS[0], prompt=PROMPT, max_tokens=2, stream=True):
        assert chunk.choices[0].logprobs is None


@pytest.mark.parametrize("top", [0, 3])
def test_a_completions_tokens_are_those_of_the_model(client, tokenizer, reference, top):
    options = {"model": MODELS[0], "prompt": PROMPT, "max_tokens": 12, "seed": 3, "logprobs": top}
    # What is told is the model's own distribution, whatever is drawn from.
    options |= {"temperature": 1.7, "top_p": 0.9, "extra_body": {"ignore_eos": True}}
    choice = client.completions.create(**options).choices[0]
    prompt = tokenizer.encode(PROMPT, add_special_tokens=True)
    told = choice.logprobs
    ids = ids_by_text(tokenizer)
    generated = [ids[text] for text in told.tokens]
    exact = exact_logprobs(reference, prompt + generated)[len(prompt) - 1 : -1]
    assert told.token_logprobs == pytest.approx(
        exact.gather(-1, torch.tensor(generated)[:, None])[:, 0].tolist(), abs=1e-4
    )
    for place, likeliest in enumerate(told.top_logprobs):
        best = exact[place].topk(top)
        wanted = {
            tokenizer.token_bytes(int(i)).decode(): float(v) for v, i in zip(best.values, best.indices, strict=True)
        }
        wanted.setdefault(told.tokens[place], told.token_logprobs[place])
        assert likeliest == pytest.approx(wanted, abs=1e-4)
    for place, text in zip(told.text_offset, told.tokens, strict=True):
        assert not tokenizer.has_text(ids[text]) or choice.text.startswith(text, place)


@pytest.mark.parametrize(("stream", "max_tokens"), [(False, 0), (False, 4), (True, 0), (True, 4)])
def test_an_echoed_prompt_is_scored(client, tokenizer, reference, stream, max_tokens):
    """What lm_eval's local-completions asks for, to score what stands in the prompt."""
    token_ids = tokenizer.encode(PROMPT, add_special_tokens=True)
    for prompt in (PROMPT, token_ids, [token_ids]):
        options = {"model": MODELS[0], "prompt": prompt, "max_tokens": max_tokens, "echo": True, "logprobs": 1, "n": 2}
        answer = client.completions.create(**options, temperature=0, stream=stream, extra_body={"ignore_eos": True})
        told = [{"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []} for _ in range(2)]
        texts = ["", ""]
        for choice in (choice for chunk in (answer if stream else [answer]) for choice in chunk.choices):
            texts[choice.index] += choice.text
            for name, values in told[choice.index].items():
                values += getattr(choice.logprobs, name) if choice.logprobs else []
        assert texts[0] == texts[1]
        assert told[0] == told[1]
        assert texts[0].startswith(PROMPT)
        assert [len(values) for values in told[0].values()] == [len(token_ids) + max_tokens] * 4
        assert (told[0]["token_logprobs"][0], told[0]["top_logprobs"][0]) == (None, None)
        exact = exact_logprobs(reference, token_ids)[:-1].gather(-1, torch.tensor(token_ids[1:])[:, None])[:, 0]
        assert told[0]["token_logprobs"][1 : len(token_ids)] == pytest.approx(exact.tolist(), abs=1e-4)
        for place, text in zip(told[0]["text_offset"], told[0]["tokens"], strict=True):
            # The first token's space is in no text that begins with it.
            assert texts[0].startswith(text.lstrip() if place == 0 else text, place)


def test_a_prompt_is_echoed_without_being_scored(client):
    options = {"model": MODELS[1], "prompt": PROMPT, "max_tokens": 3, "temperature": 0}
    plain = client.completions.create(**options)
    echoed = client.completions.create(**options, echo=True)
    assert echoed.choices[0].text == PROMPT + plain.choices[0].text
    assert echoed.choices[0].logprobs is None
    streamed = client.completions.create(**options, echo=True, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == echoed.choices[0].text
    assert client.completions.create(**(options | {"max_tokens": 0}), echo=True).usage.completion_tokens == 0
    one = client.completions.create(model=MODELS[1], prompt=[7], max_tokens=0, echo=True, logprobs=1).choices[0]
    assert (one.logprobs.token_logprobs, one.logprobs.text_offset) == ([None], [0])


@pytest.mark.parametrize("model", MODELS)
def test_a_prompts_own_field(client, http, model):
    body = {"prompt_logprobs": 2}
    plain = client.completions.create(model=model, prompt=PROMPT, max_tokens=0, n=2, extra_body=body)
    assert plain.choices[0].prompt_logprobs == plain.choices[1].prompt_logprobs
    token_ids = http.post("/tokenize", json={"model": model, "messages": CHAT}).json()["tokens"]
    told = client.chat.completions.create(model=model, messages=CHAT, max_tokens=1, extra_body=body).prompt_logprobs
    assert told[0] is None
    assert len(told) == len(token_ids)
    for token, entries in zip(token_ids[1:], told[1:], strict=True):
        ranks = {entry["rank"] for entry in entries.values()}
        assert {1, 2} <= ranks == {1, 2, entries[str(token)]["rank"]}
        assert all(set(entry) == {"logprob", "rank", "decoded_token"} for entry in entries.values())
    again = client.chat.completions.create(model=model, messages=CHAT, max_tokens=1, extra_body=body)
    assert again.prompt_logprobs == told
    assert again.usage.prompt_tokens_details.cached_tokens == 0


def test_the_token_that_ends_an_answer_is_told_of(client, tokenizer):
    """There are as many entries as tokens are counted: who cuts off the last always cuts off a generated one."""
    options = {"model": MODELS[0], "prompt": "Question: Who", "max_tokens": 30, "temperature": 2.0, "seed": 4}
    options["logprobs"] = 0
    first = client.completions.create(**options, extra_body={"ignore_eos": True}).choices[0].logprobs.tokens
    ends = next(place for place in range(1, 30) if first[place] not in first[:place])
    body = {"ignore_eos": True, "stop_token_ids": [ids_by_text(tokenizer)[first[ends]]]}
    answer = client.completions.create(**options, extra_body=body)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].logprobs.tokens == first[: ends + 1]
    assert answer.usage.completion_tokens == ends + 1
    assert answer.choices[0].text == client.completions.create(**(options | {"max_tokens": ends})).choices[0].text


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("completions", {"logprobs": 21}, "logprobs"),
        ("completions", {"logprobs": -1}, "logprobs"),
        ("completions", {"logprobs": True}, "logprobs"),
        ("completions", {"top_logprobs": 2}, "top_logprobs"),
        ("completions", {"max_tokens": 0}, "max_tokens"),
        ("completions", {"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
        ("completions", {"prompt_logprobs": 21}, "prompt_logprobs"),
        ("chat/completions", {"logprobs": 1}, "logprobs"),
        ("chat/completions", {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ("chat/completions", {"top_logprobs": 2}, "top_logprobs"),
        ("chat/completions", {"echo": True}, "echo"),
        ("chat/completions", {"max_tokens": 0}, "max_tokens"),
    ],
)
def test_what_cannot_be_told_is_refused(http, path, body, param):
    what = {"messages": CHAT} if path.startswith("chat") else {"prompt": PROMPT}
    answer = http.post(f"/v1/{path}", json={"model": MODELS[0]} | what | body)
    assert (answer.status_code, refusal(answer)["param"]) == (400, param)


class Spelled:
    """A tokenizer whose tokens are written down."""

    def __init__(self, *tokens: bytes) -> None:
        self.tokens = tokens

    def token_bytes(self, token_id: int) -> bytes:
        return self.tokens[token_id]


@pytest.mark.parametrize(
    ("tokens", "text", "places"),
    [
        ((b"<s>", b" Who", b" is"), "Who is", [0, 0, 3]),
        (("€".encode()[:1], "€".encode()[1:], b"x"), "€x", [0, 0, 1]),
        ((b"a", b"<sep>", b"b"), "ab", [0, 1, 1]),
        ((b"a", b"b", b"c"), "a  b c", [0, 1, 4]),
    ],
)
def test_where_tokens_stand_in_a_text(tokens, text, places):
    assert place_tokens(Spelled(*tokens), range(len(tokens)), text) == places
