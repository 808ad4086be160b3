"""Which detokenizer a vocabulary's texts need."""

import codecs
from collections.abc import Callable, Sequence
from typing import Protocol

from server.tokenizer import MAX_HELD, IncrementalDetokenizer, ModelTokenizer


class Detokenizer(Protocol):
    """Turns tokens into text as they come."""

    def add(self, token_ids: Sequence[int], *, last: bool = False) -> str:
        """The text that these tokens complete; with `last`, whatever is left, even half a character."""
        ...


class ByteDetokenizer:
    """For texts that are their tokens' bytes in a row: of a token no more than its own bytes is looked at.

    Args:
        prompt: what the text goes on from; a character that it leaves unfinished is the text's first.
    """

    def __init__(self, text_bytes: Callable[[int], bytes], prompt: Sequence[int] = ()) -> None:
        self._text_bytes = text_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.add(prompt[-MAX_HELD:])

    def add(self, token_ids: Sequence[int], *, last: bool = False) -> str:
        text_bytes = self._text_bytes
        return self._decoder.decode(b"".join([text_bytes(token_id) for token_id in token_ids]), last)


def detokenizer_of(tokenizer: ModelTokenizer, prompt: Sequence[int] = ()) -> Detokenizer:
    """One for a text of its own, or for the rest of the prompt's."""
    text_bytes = tokenizer.text_bytes
    return IncrementalDetokenizer(tokenizer, prompt) if text_bytes is None else ByteDetokenizer(text_bytes, prompt)
