"""A byte-pair vocabulary of made-up words, each one token, so that prompts are of known length as ids and as text.

Every word is a space and up to three syllables. All of it is ASCII: a streamed token is never held back as half a
letter.
"""

import json
import random
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, product
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from loadtest.bench.shapes import END_TOKEN_ID, PAD_TOKEN_ID

SPECIALS = {PAD_TOKEN_ID: "<pad>", END_TOKEN_ID: "<end>"}
SYLLABLES = [consonant + vowel for consonant, vowel in product("bcdfghjklmnpqrstvwxyz", "aeiou")]
SPACE = "\u0120"  # how byte-level vocabularies spell a space
WORD = Regex(r" ?[a-z]+|\s+|[^\sa-z]+")


def write_tokenizer(directory: Path, vocab_size: int) -> int:
    """Write tokenizer.json and tokenizer_config.json; returns the first id of a word, all later ids being words too."""
    tokens = [*SPECIALS.values(), *sorted(pre_tokenizers.ByteLevel.alphabet())]
    merges = [(syllable[0], syllable[1]) for syllable in SYLLABLES]
    first_word = len(tokens) + len(merges)
    if vocab_size <= first_word:
        raise ValueError(f"a vocabulary of {vocab_size} has no room for words after {first_word} tokens")
    for number in range(3):
        parts = product(SYLLABLES, repeat=number + 1)
        fitting = islice(parts, vocab_size - len(tokens) - len(merges))
        merges += [(SPACE + "".join(part[:-1]), part[-1]) for part in fitting]
    tokens += [first + second for first, second in merges]
    vocab = {token: place for place, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(WORD, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIALS.values()))
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    settings |= {"pad_token": SPECIALS[PAD_TOKEN_ID], "eos_token": SPECIALS[END_TOKEN_ID]}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return first_word


@dataclass(frozen=True)
class Words:
    """The words that prompts of one model are made of."""

    tokenizer: Tokenizer

    @classmethod
    def read(cls, directory: Path) -> "Words":
        return cls(Tokenizer.from_file(str(directory / "tokenizer.json")))

    @cached_property
    def ids(self) -> list[int]:
        """Tokens that are a space and letters, and are cut from a text as what they are."""
        spelled = {token[1:]: number for token, number in self.tokenizer.get_vocab().items() if _is_word(token)}
        found = set[int]()
        for space in ("", " "):  # some tokenizers put the first space there themselves
            texts = [space + word for word in spelled]
            cut = [encoding.ids for encoding in self.tokenizer.encode_batch(texts, add_special_tokens=False)]
            found |= {number for number, ids in zip(spelled.values(), cut, strict=True) if ids == [number]}
        return sorted(found)

    def draw(self, rng: random.Random, count: int) -> tuple[int, ...]:
        return tuple(rng.choices(self.ids, k=count))

    def text(self, ids: tuple[int, ...]) -> str | None:
        """What is cut into just these tokens; None where there is no such text."""
        written = self.tokenizer.decode(list(ids), skip_special_tokens=False)
        for text in (written, f" {written}"):
            if tuple(self.cut(text)) == ids:
                return text
        return None

    def cut(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)


def _is_word(token: str) -> bool:
    return token.startswith(SPACE) and token[1:].isascii() and token[1:].isalpha()
