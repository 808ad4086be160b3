"""The shipped checkpoints: small enough, whole, the same in transformers, and good at what they were trained for."""

import json
from pathlib import Path

import pytest
import torch
from paged_driver import PagedDriver
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from models.embedded import EMBEDDED, embedded_directory
from models.load import load_decoder
from scripts.embedded_exams import examine

MAX_BYTES = 8 * 1024 * 1024
QUESTION = [
    {"role": "system", "content": "Use the documents to answer the question. Reply with the answer only."},
    {
        "role": "user",
        "content": "Document: Mara Velmann | Mara Velmann was a botanist. She was born in Tarsk.\n\n"
        "Document: Oren Kallek | The painter Oren Kallek. He was born in Belgrad.\n\n"
        "Question: Where was Mara Velmann born?",
    },
]


@pytest.fixture(scope="module", params=EMBEDDED)
def directory(request) -> Path:
    return embedded_directory(request.param)


@pytest.fixture(scope="module")
def decoder(directory):
    return load_decoder(directory, dtype=torch.float32, device=torch.device("cpu"))


def test_size_and_card(directory):
    assert sum(file.stat().st_size for file in directory.glob("*.safetensors")) <= MAX_BYTES
    card = (directory / "README.md").read_text()
    record = json.loads((directory / "training.json").read_text())
    for figure in record["scores"].values():
        assert str(figure) in card


def test_transformers_gives_the_same_greedy_tokens(directory, decoder):
    tokenizer = AutoTokenizer.from_pretrained(directory)
    reference = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    prompts = [
        tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, tokenize=True, return_dict=False),
        tokenizer.encode("The river of Tarsk is"),
        tokenizer.encode("Grüße, 東京! 🙂"),
    ]
    for prompt in prompts:
        driver = PagedDriver(decoder, 1, len(prompt) + 40)
        logits = driver.step({0: prompt})[0]
        ours = []
        for _ in range(32):
            ours.append(int(logits[-1].argmax()))
            logits = driver.step({0: [ours[-1]]})[0]
        theirs = reference.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=32,
            min_new_tokens=32,
            do_sample=False,
            eos_token_id=None,
        )
        assert ours == theirs[0, len(prompt) :].tolist()


def test_any_text_survives_the_tokenizer(directory):
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    for text in ("plain", "Grüße, 東京! 🙂", "tabs\tand\nlines\n\n", "\x00\x7f", "x  y"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_they_still_pass_their_examination(directory, decoder):
    """A fresh sample of the examination comes close to the figures in the card."""
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    recorded = json.loads((directory / "training.json").read_text())["scores"]
    scores = examine(decoder, tokenizer, (250,), num_questions=40)
    for kind in ("fact@250", "abstains@250"):
        assert scores[kind] >= recorded[kind] - 0.15
