"""From a checkpoint's files to its vocabulary, in whichever format it is."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from models.errors import ModelError
from server.vocabulary.added import SpecialTokens, read_added_tokens
from server.vocabulary.fast import read_tokenizer_json
from server.vocabulary.pieces import read_pieces
from server.vocabulary.ranks import is_rank_file, read_ranks

FAST, MODEL, RANKS = "tokenizer.json", "tokenizer.model", "*.tiktoken"
NOT_READ = ("tekken.json", "vocab.json", "merges.txt", "tiktoken.model", "spiece.model")


class Vocabulary(Protocol):
    """Texts as token ids, the tokens that stand beside the vocabulary included."""

    @property
    def size(self) -> int:
        """One more than the largest id."""
        ...

    @property
    def max_token_bytes(self) -> int | None:
        """The most bytes of a text, in UTF-8, that become one token; None where there is no bound."""
        ...

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...

    def has_text(self, token_id: int) -> bool:
        """Whether `decode` looks at it: it passes over special tokens, and over ids that it does not know."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """What a token stands for wherever it is in a text: a part of a character, a space before a word. A special
        token's are its name's; none for an id that it does not know.
        """
        ...

    @property
    def text_bytes(self) -> Callable[[int], bytes] | None:
        """A token's bytes in any text that `decode` makes of it without special tokens, where texts are nothing but
        those; None where they hang on what stands beside it.
        """
        ...

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str: ...


def read_vocabulary(directory: Path, config: Mapping[str, Any], special: SpecialTokens) -> Vocabulary:
    """The vocabulary of the first of the known files that is there.

    Args:
        config: tokenizer_config.json's content.
    Raises:
        ModelError: none of them is there, or it cannot be read.
    """
    if (directory / FAST).is_file():
        return read_tokenizer_json(directory / FAST)
    files = [directory / MODEL, *sorted(directory.glob(RANKS))]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        others = [name for name in NOT_READ if (directory / name).is_file()]
        raise ModelError(
            f"{directory} has no tokenizer: looked for {FAST}, {MODEL} (of SentencePiece or tiktoken) and {RANKS}"
            + (f"; not read: {', '.join(others)}" if others else "")
        )
    added = read_added_tokens(directory, config, special)
    try:
        ranked = is_rank_file(file)
    except OSError as error:
        raise ModelError(f"{file} cannot be read: {error}") from error
    return (read_ranks if ranked or file.suffix == ".tiktoken" else read_pieces)(file, added, special, config)
