"""The server against transformers: the same checkpoint gives the same greedy text."""

import random

import httpx
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from evals.datasets.world import WorldConfig
from evals.datasets.world_questions import load_world
from evals.prompts import build_messages
from models.embedded import EMBEDDED, embedded_directory

NUM_TOKENS = 24


def make_prompts(tokenizer) -> list[list[int]]:
    """Token ids: questions over a few documents, for words of many kinds, and noise, for whatever that brings up."""
    rng = random.Random(6)
    dataset = load_world(WorldConfig(seed=6, num_entities=40, num_questions=16))
    chats = [
        build_messages("must_answer", rng.sample(dataset.documents, 6), question.text) for question in dataset.questions
    ]
    noise = [[rng.randrange(10, len(tokenizer)) for _ in range(length)] for length in (1, 5, 16, 17, 70, 300)]
    return [
        *(tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False) for chat in chats),
        *noise,
    ]


def text_behind(tokenizer, prompt: list[int], token_ids: list[int]) -> str:
    """The rest of the prompt's text, half a character of that included; a text of its own behind a special token."""
    start = [] if prompt[-1] in tokenizer.all_special_ids else prompt[-1:]
    before, whole = (tokenizer.decode(tokens, skip_special_tokens=True) for tokens in (start, start + token_ids))
    return whole[len(before.rstrip("\ufffd")) :]


@pytest.mark.parametrize("name", EMBEDDED)
def test_transformers_gives_the_servers_greedy_tokens(server, name):
    directory = embedded_directory(name)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    reference = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    texts = []
    for prompt in make_prompts(tokenizer):
        theirs = reference.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=NUM_TOKENS,
            min_new_tokens=NUM_TOKENS,
            do_sample=False,
            eos_token_id=None,
        )[0, len(prompt) :]
        body = {"model": name, "prompt": prompt, "temperature": 0, "max_tokens": NUM_TOKENS, "ignore_eos": True}
        answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=120).json()
        texts.append(answer["choices"][0]["text"])
        assert texts[-1] == text_behind(tokenizer, prompt, theirs.tolist())
        assert answer["usage"]["completion_tokens"] == len(theirs) == NUM_TOKENS
    # Special tokens leave no text: were most answers empty or alike, equal ones would prove nothing.
    assert len(set(texts) - {""}) >= len(texts) // 2
