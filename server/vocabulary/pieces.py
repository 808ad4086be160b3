"""Vocabularies of SentencePiece, whose library encodes and decodes what lies between added tokens."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from sentencepiece import SentencePieceProcessor

from models.errors import ModelError
from server.vocabulary.added import AddedToken, SpecialTokens, surrounding
from server.vocabulary.letters import BYTE_PIECE, SPACE

# Appended to a model, which is a protobuf message, these override fields of its normalizer_spec (field 3): messages
# that come twice are merged. Source: sentencepiece_model.proto, add_dummy_prefix = 3, remove_extra_whitespaces = 4.
NO_PREFIX = b"\x1a\x02\x18\x00"
AS_IT_IS = b"\x1a\x04\x18\x00\x20\x00"
WHITESPACE = re.compile(r"\s+")

Prefix = Literal["every", "first", "never"]


class PieceVocabulary:
    """A SentencePiece model and the tokens added to it.

    Such a model writes a space before a text. `prefix`: before the text between any two added tokens ("every", the
    way of the first Llama tokenizers, `legacy` in their config), only at the begin of the whole ("first"), or "never".
    Decoding takes the same spaces away again.

    Args:
        model: the file's content.
    Raises:
        ValueError: that is no model.
    """

    def __init__(self, model: bytes, added: Sequence[AddedToken], special: SpecialTokens, *, prefix: Prefix) -> None:
        self._whole = self._rest = self._plain = _processor(model)
        self._prefix: Prefix = "never"
        if self._whole.normalize("x").startswith(SPACE):
            self._rest = self._plain = _processor(model + NO_PREFIX)
            self._prefix = prefix
        if SPACE * 2 not in self._whole.normalize("x  x"):
            # It merges spaces. Decoding then drops all at the begin, and a text that comes in parts would lose some.
            self._plain = _processor(model + AS_IT_IS)
        self._num_pieces = int(self._whole.get_piece_size())
        tokens = [*_special_pieces(self._whole, special), *added]
        self._by_id = {token.token_id: token for token in tokens}
        self._by_text = {token.text: token for token in self._by_id.values()}
        longest_first = sorted(self._by_text, key=len, reverse=True)
        self._added = re.compile("|".join(map(re.escape, longest_first)))
        named = _own_names(self._whole) | dict(special.named)
        ids = {text: token.token_id for text, token in self._by_text.items()}
        self._before, self._behind = surrounding(replace(special, named=named), ids)

    @property
    def size(self) -> int:
        return max(self._num_pieces, 1 + max(self._by_id))

    @property
    def max_token_bytes(self) -> int | None:
        return None  # runs of spaces, and of what it does not know, may become one

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        token_ids = list(self._before) if add_special_tokens else []
        for start, part in self._parts(text):
            if isinstance(part, AddedToken):
                token_ids.append(part.token_id)
            else:
                # The library works without the GIL, and so leaves the event loop free.
                token_ids += (self._whole if self._has_prefix(first=start == 0) else self._rest).encode(part)
        return token_ids + self._behind if add_special_tokens else token_ids

    @property
    def text_bytes(self) -> None:
        """A space before a word stands there or not by what comes before it."""
        return None

    def has_text(self, token_id: int) -> bool:
        added = self._by_id.get(token_id)
        return 0 <= token_id < self._num_pieces if added is None else not added.special

    def token_bytes(self, token_id: int) -> bytes:
        added = self._by_id.get(token_id)
        if added is not None:
            return added.text.encode()
        if not 0 <= token_id < self._num_pieces:
            return b""
        piece = self._plain.id_to_piece(token_id)
        if self._plain.is_byte(token_id) and (match := BYTE_PIECE.fullmatch(piece)):
            return bytes([int(match[1], 16)])
        return str(piece).replace(SPACE, " ").encode()

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        texts: list[str] = []
        run: list[int] = []
        for token_id in token_ids:
            added = self._by_id.get(token_id)
            if added is None:
                if 0 <= token_id < self._num_pieces:
                    run.append(token_id)
            elif not (added.special and skip_special_tokens):
                texts += [self._run_text(run, first=not texts), added.text]
                run = []
        return "".join([*texts, self._run_text(run, first=not texts)])

    def _run_text(self, run: list[int], *, first: bool) -> str:
        """The text of pieces without added tokens between them."""
        if not run:
            return ""
        text = str(self._plain.decode(run))
        if self._has_prefix(first=first) and self._plain.id_to_piece(run[0]).startswith(SPACE):
            return text.removeprefix(" ")
        return text

    def _has_prefix(self, *, first: bool) -> bool:
        return self._prefix == "every" or (self._prefix == "first" and first)

    def _parts(self, text: str) -> Iterator[tuple[int, str | AddedToken]]:
        """The added tokens in a text and what lies between them, each with the place where it begins."""
        start = 0
        for match in self._added.finditer(text):
            if match.start() < start:
                continue  # in the whitespace that went with the token before
            token = self._by_text[match.group()]
            between = text[start : match.start()]
            if token.lstrip:
                between = between.rstrip()
            if between:
                yield start, between
            yield match.start(), token
            start = match.end()
            if token.rstrip and (space := WHITESPACE.match(text, start)):
                start = space.end()
        if start < len(text):
            yield start, text[start:]


def read_pieces(
    file: Path, added: Sequence[AddedToken], special: SpecialTokens, config: Mapping[str, Any]
) -> PieceVocabulary:
    """A SentencePiece model as a vocabulary.

    Args:
        config: tokenizer_config.json's content.
    Raises:
        ModelError: the file cannot be read, or is no such model.
    """
    if config.get("add_prefix_space") is False:
        prefix: Prefix = "never"
    else:
        # Tokenizers from before `legacy` was written down are of the old kind.
        prefix = "first" if config.get("legacy") is False else "every"
    try:
        return PieceVocabulary(file.read_bytes(), added, special, prefix=prefix)
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} is not a SentencePiece model: {error}") from error


def _processor(model: bytes) -> SentencePieceProcessor:
    """Raises: ValueError."""
    if not model:
        raise ValueError("it is empty")  # of which the library would make a model without pieces
    try:
        processor = SentencePieceProcessor(model_proto=model)
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    if not processor.get_piece_size():
        raise ValueError("it has no pieces")
    return processor


def _special_pieces(processor: SentencePieceProcessor, special: SpecialTokens) -> Iterator[AddedToken]:
    """Pieces that a text never gives, as those of begin and end, and whatever the checkpoint calls special."""
    ids = list(range(processor.get_piece_size()))
    kinds = zip(ids, processor.id_to_piece(ids), processor.is_control(ids), processor.is_unknown(ids), strict=True)
    for token_id, piece, control, unknown in kinds:
        if control or unknown or piece in special.texts:
            yield AddedToken(token_id, piece, special=True)


def _own_names(processor: SentencePieceProcessor) -> dict[str, str]:
    """Begin and end as the model itself has them; an id below 0 says that there is none."""
    ids = {"bos_token": processor.bos_id(), "eos_token": processor.eos_id()}
    return {name: processor.id_to_piece(token_id) for name, token_id in ids.items() if token_id >= 0}
