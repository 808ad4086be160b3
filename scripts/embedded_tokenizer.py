"""The embedded models' tokenizer: a byte-level BPE trained on the text of many small worlds."""

import json
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from evals.datasets.world import WorldConfig
from evals.datasets.world_questions import load_world
from evals.prompts import ABSTENTION, SYSTEM_PROMPTS, render_document, render_question
from scripts.embedded_episodes import SPECIAL_TOKENS

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] not in ('system', 'user', 'assistant') -%}"
    "{{- raise_exception('Roles must be system, user or assistant, not ' ~ message['role']) -}}"
    "{%- endif -%}"
    "{{- '<|' ~ message['role'] ~ '|>' ~ (message['content'] | trim) ~ '<|end|>' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)


def corpus(seed: int, num_worlds: int) -> Iterator[str]:
    """Documents, questions and answers as they occur in prompts."""
    yield from [*SYSTEM_PROMPTS.values(), ABSTENTION] * 2000
    for number in range(num_worlds):
        dataset = load_world(
            WorldConfig(seed=seed + number, num_entities=400, num_questions=600, surnames=120, near_duplicate_share=0.0)
        )
        for document in dataset.documents:
            yield render_document(document)
        for question in dataset.questions:
            yield render_question(question.text)
            yield from question.answers


def train_tokenizer(vocab_size: int, seed: int) -> Tokenizer:
    """Any UTF-8 text can be encoded. A space is added before the text and one is dropped when decoding, so that a
    name has the same tokens at the start of an answer as within a sentence. Line ends stand alone, so that a
    document's tokens do not depend on what follows it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Prepend(" ")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex("\n+"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(seed, num_worlds=40), trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, directory: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json, as transformers reads them too."""
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|end|>",
        "pad_token": "<|pad|>",
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 32768,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
