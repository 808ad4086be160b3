"""Text to tokens and back, for one checkpoint: its vocabulary and its chat template."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from server.chat_template import ChatTemplateError, read_chat_template
from server.checkpoint_json import read_json
from server.vocabulary.added import CONFIG, read_special_tokens
from server.vocabulary.read import read_vocabulary

REPLACEMENT = "\ufffd"
MAX_HELD = 8  # tokens: more than any character has bytes
MAX_PENDING = 3  # replacement characters at the end of a text that the next tokens may still make a character of


class ModelTokenizer:
    """Owns a checkpoint's vocabulary and its chat template. The template runs sandboxed.

    Raises:
        ModelError: a file is missing or cannot be read.
    """

    def __init__(self, directory: Path) -> None:
        config = read_json(directory / CONFIG)
        special = read_special_tokens(directory, config)
        self._vocabulary = read_vocabulary(directory, config, special)
        # Only those that there are: a template tests for the others, or writes nothing for them.
        self._named = dict(special.named)
        self._template = read_chat_template(directory, config)

    @property
    def has_chat_template(self) -> bool:
        return self._template is not None

    @property
    def vocab_size(self) -> int:
        return self._vocabulary.size

    def least_tokens(self, num_bytes: int) -> int:
        """How many tokens a text of so many bytes in UTF-8 has at least; 0 where the vocabulary does not say."""
        most = self._vocabulary.max_token_bytes
        return -(-num_bytes // most) if most else 0

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return self._vocabulary.encode(text, add_special_tokens=add_special_tokens)

    def has_text(self, token_id: int) -> bool:
        """Whether `decode` looks at it: it passes over special tokens, and over ids that it does not know."""
        return self._vocabulary.has_text(token_id)

    def token_bytes(self, token_id: int) -> bytes:
        """What a token stands for wherever it is in a text, which need not be whole characters."""
        return self._vocabulary.token_bytes(token_id)

    @property
    def text_bytes(self) -> Callable[[int], bytes] | None:
        """A token's bytes in any text that `decode` makes of it; None if those hang on what stands beside it."""
        return self._vocabulary.text_bytes

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return self._vocabulary.decode(token_ids, skip_special_tokens=skip_special_tokens)

    def encode_chat(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True) -> list[int]:
        """Token ids of a chat, as the template renders it.

        Raises:
            ChatTemplateError: the template refuses the messages, or there is none.
        """
        # The template writes the special tokens itself.
        return self.encode(self.render_chat(messages, add_generation_prompt), add_special_tokens=False)

    def render_chat(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool) -> str:
        if self._template is None:
            raise ChatTemplateError("this model has no chat template; use /v1/completions")
        try:
            return self._template.render(
                messages=messages, add_generation_prompt=add_generation_prompt, tools=None, **self._named
            )
        except (TemplateError, TypeError, ValueError, OverflowError) as error:
            raise ChatTemplateError(f"the model's chat template refuses these messages: {error}") from error


class IncrementalDetokenizer:
    """Turns tokens into text as they come; the pieces joined are the text of the whole.

    A token may be a part of a character, and a decoder may treat the first token of a text differently. So a
    window of the last tokens is decoded again with the newest, and what was not given out yet is what they add. The
    window stays short whatever comes: a long run of tokens without text, or of bytes that are no text, moves it too.

    Args:
        prompt: what the text goes on from, if it is to be the rest of that text, with the space between them.
    """

    def __init__(self, tokenizer: ModelTokenizer, prompt: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []
        self._num_shown = 0  # tokens of the window whose text was given out when they came
        self._given = 0  # characters of the window's text that were given out
        # Behind a special token a new text begins.
        tail = list(itertools.takewhile(tokenizer.has_text, reversed(prompt[-MAX_HELD:])))[::-1]
        if tail:
            text = tokenizer.decode(tail)
            self._keep(tail, pending=min(MAX_PENDING, len(text) - len(text.rstrip(REPLACEMENT))))

    def add(self, token_ids: Sequence[int], *, last: bool = False) -> str:
        """The text that these tokens complete; with `last`, whatever is left, even half a character."""
        self._window.extend(token for token in token_ids if self._tokenizer.has_text(token))
        text = self._tokenizer.decode(self._window)
        given, end = self._given, len(text)
        if last:
            return text[given:]
        if text.endswith(REPLACEMENT):
            if len(self._window) - self._num_shown <= MAX_HELD:
                return ""
            # No character takes so many tokens. All but the end is broken for good; that may still become one.
            end -= min(MAX_PENDING, end - len(text.rstrip(REPLACEMENT)))
            self._keep(self._window[-MAX_HELD:], pending=len(text) - end)
        elif end > given:
            self._keep(self._window[self._num_shown :], pending=0)
        else:
            # They add nothing: what stays of them is for a decoder that treats the begin of a text differently.
            del self._window[max(self._num_shown, MAX_HELD) :]
        return text[given:end]

    def _keep(self, window: list[int], *, pending: int) -> None:
        """Go on with these last tokens, all of whose text but the last `pending` characters is given out."""
        self._window = window
        self._num_shown = len(window)
        self._given = max(0, len(self._tokenizer.decode(window)) - pending)
