"""Vocabularies of the `tokenizers` library: what tokenizer.json holds, and what is made of a file of ranks."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from tokenizers import Tokenizer

from models.errors import ModelError
from server.vocabulary.bound import max_token_bytes
from server.vocabulary.letters import BYTE_PIECE, SPACE, byte_letters
from server.vocabulary.reuse import ReusingEncoder, is_memoryless


class FastVocabulary:
    """A tokenizer of the library, which does all the work."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        # A file may store how its training cut and padded texts. A prompt is never cut in silence.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        added = tokenizer.get_added_tokens_decoder()
        self._special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        self._encoder = ReusingEncoder(tokenizer) if is_memoryless(tokenizer) else None
        self._max_token_bytes = max_token_bytes(tokenizer)
        self._added = {token_id: token.content for token_id, token in added.items()}
        self._decoders = _decoder_kinds(tokenizer)
        self._bytes = {letter: byte for byte, letter in enumerate(byte_letters())}
        # The library counts the tokens, but there may be gaps between their ids.
        self._with_text: dict[int, bool] = {}
        self._text_bytes: dict[int, bytes] = {}
        self._size = max(tokenizer.get_vocab().values(), default=-1) + 1

    @property
    def size(self) -> int:
        return self._size

    @property
    def max_token_bytes(self) -> int | None:
        return self._max_token_bytes

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        if self._encoder is not None:
            return self._encoder.encode(text, add_special_tokens=add_special_tokens)
        # The batch call works without the GIL, and so leaves the event loop free; the plain one holds it throughout.
        [encoding] = self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return list(encoding.ids)

    def has_text(self, token_id: int) -> bool:
        known = self._with_text.get(token_id)
        if known is None:
            known = token_id not in self._special_ids and self._tokenizer.id_to_token(token_id) is not None
            self._with_text[token_id] = known
        return known

    def token_bytes(self, token_id: int) -> bytes:
        text = self._added.get(token_id) or self._tokenizer.id_to_token(token_id) or ""
        if token_id in self._added:
            return text.encode()
        if "ByteLevel" in self._decoders:
            # A letter that stands for no byte is one that the decoder leaves as it is.
            return b"".join(bytes([self._bytes[a]]) if a in self._bytes else a.encode() for a in text)
        if "ByteFallback" in self._decoders and (match := BYTE_PIECE.fullmatch(text)):
            return bytes([int(match[1], 16)])
        return text.replace(SPACE, " ").encode()

    @property
    def text_bytes(self) -> Callable[[int], bytes] | None:
        return self._bytes_in_text if self._decoders == {"ByteLevel"} else None

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=skip_special_tokens))

    def _bytes_in_text(self, token_id: int) -> bytes:
        content = self._text_bytes.get(token_id)
        if content is None:
            text = (self._tokenizer.id_to_token(token_id) or "") if self.has_text(token_id) else ""
            # The decoder takes a token for text as soon as one of its letters stands for no byte.
            written = all(letter in self._bytes for letter in text)
            content = bytes(self._bytes[letter] for letter in text) if written else text.encode()
            self._text_bytes[token_id] = content
        return content


def _decoder_kinds(tokenizer: Tokenizer) -> frozenset[str]:
    """The names of the steps from tokens to text. Only a decoder's pickle tells of those within a sequence."""
    if tokenizer.decoder is None:
        return frozenset()
    content = json.loads(tokenizer.decoder.__getstate__())
    return frozenset(step["type"] for step in (content, *content.get("decoders", ())))


def read_tokenizer_json(file: Path) -> FastVocabulary:
    """Raises: ModelError, where the library cannot read the file."""
    try:
        return FastVocabulary(Tokenizer.from_file(str(file)))
    except Exception as error:  # the library raises nothing narrower
        raise ModelError(f"{file} is not a tokenizer: {error}") from error
