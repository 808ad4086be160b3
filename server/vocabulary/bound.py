"""How many bytes of a text a token can stand for at most, so that one that is far too long is known without its tokens.

There is such a number only where every byte of a text is in some token: byte-pair encoding down to single bytes, with
nothing before it that takes characters away.
"""

from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from server.vocabulary.reuse import steps_of

SPACE = "\u2581"  # how vocabularies without a letter for each byte write a space
SINGLE_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
KEEPING = {"ByteLevel", "Split", "Digits", "Punctuation", "Metaspace"}
# What composed characters are made of has at most 3.5 times their bytes (U+0390: U+1FBE and two marks).
COMPOSED = 4


def max_token_bytes(tokenizer: Tokenizer) -> int | None:
    """The most bytes of a text, in UTF-8, that become one token; None where there is no bound."""
    model = tokenizer.model
    if not isinstance(model, BPE) or model.continuing_subword_prefix or model.end_of_word_suffix:
        return None
    added = tokenizer.get_added_tokens_decoder().values()
    shrinking = _shrinking(steps_of(tokenizer.normalizer, "normalizers"))
    steps = steps_of(tokenizer.pre_tokenizer, "pretokenizers")
    keeps = all(step["type"] in KEEPING and step.get("behavior") != "Removed" for step in steps)
    if shrinking is None or not keeps or any(token.lstrip or token.rstrip for token in added):
        return None
    vocabulary = tokenizer.get_vocab(with_added_tokens=False)
    if any(step["type"] == "ByteLevel" for step in steps):
        if not all(letter in vocabulary for letter in ByteLevel.alphabet()):
            return None
        longest = max(map(len, vocabulary))  # a letter for each byte
    elif model.byte_fallback and all(byte in vocabulary for byte in SINGLE_BYTES):
        longest = max(len(token.replace(SPACE, " ").encode()) for token in vocabulary)
    else:
        return None
    return shrinking * max([longest, *(len(token.content.encode()) for token in added)])


def _shrinking(normalizers: list[Mapping[str, Any]]) -> int | None:
    """By what factor a text may lose bytes before it is cut; None where that is not known."""
    factor = 1
    for step in normalizers:
        if step["type"] == "NFC":
            factor *= COMPOSED
        elif step["type"] == "Replace":
            if (step["pattern"], step["content"]) != ({"String": " "}, SPACE):
                return None
        elif step["type"] != "Prepend":
            return None
    return factor
