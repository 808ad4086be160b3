"""Text to tokens and back, for one checkpoint: its tokenizer.json and its chat template."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from models.errors import ModelError

REPLACEMENT = "\ufffd"
MAX_HELD = 8  # tokens: more than any character has bytes
MAX_PENDING = 3  # replacement characters at the end of a text that the next tokens may still make a character of


class ChatTemplateError(Exception):
    """The chat template refuses these messages, or there is none."""


class ModelTokenizer:
    """Owns a checkpoint's tokenizer and its chat template. The template runs sandboxed.

    Raises:
        ModelError: a file is missing or cannot be read.
    """

    def __init__(self, directory: Path) -> None:
        file = directory / "tokenizer.json"
        if not file.is_file():
            raise ModelError(f"{directory} has no tokenizer.json")
        try:
            self._tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises nothing narrower
            raise ModelError(f"{file} is not a tokenizer: {error}") from error
        # A file may store how its training cut and padded texts. A prompt is never cut in silence.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        added = self._tokenizer.get_added_tokens_decoder()
        self._special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        config_file = directory / "tokenizer_config.json"
        config = _read_json(config_file) if config_file.is_file() else {}
        self._special = {name: _token_text(config.get(name)) for name in ("bos_token", "eos_token", "pad_token")}
        self._template = _chat_template(directory, config)

    @property
    def has_chat_template(self) -> bool:
        return self._template is not None

    @property
    def vocab_size(self) -> int:
        return int(self._tokenizer.get_vocab_size())

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        # The batch call works without the GIL, and so leaves the event loop free; the plain one holds it throughout.
        [encoding] = self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return list(encoding.ids)

    def has_text(self, token_id: int) -> bool:
        """Whether `decode` looks at it: it passes over special tokens, and over ids that it does not know."""
        return token_id not in self._special_ids and self._tokenizer.id_to_token(token_id) is not None

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=skip_special_tokens))

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
                messages=messages, add_generation_prompt=add_generation_prompt, tools=None, **self._special
            )
        except (TemplateError, TypeError, ValueError, OverflowError) as error:
            raise ChatTemplateError(f"the model's chat template refuses these messages: {error}") from error


class IncrementalDetokenizer:
    """Turns tokens into text as they come; the pieces joined are the text of the whole.

    A token may be a part of a character, and a decoder may treat the first token of a text differently. So a
    window of the last tokens is decoded again with the newest, and what was not given out yet is what they add. The
    window stays short whatever comes: a long run of tokens without text, or of bytes that are no text, moves it too.
    """

    def __init__(self, tokenizer: ModelTokenizer) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []
        self._num_shown = 0  # tokens of the window whose text was given out when they came
        self._given = 0  # characters of the window's text that were given out

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


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{file} is not a JSON object")
    return content


def _token_text(token: object) -> str | None:
    """A special token, which is written plainly or as an object with its properties."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _chat_template(directory: Path, config: Mapping[str, Any]) -> Template | None:
    file = directory / "chat_template.jinja"
    source = file.read_text(encoding="utf-8") if file.is_file() else config.get("chat_template")
    if isinstance(source, list):  # several named ones
        source = next((entry["template"] for entry in source if entry.get("name") == "default"), None)
    if source is None:
        return None
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    try:
        return environment.from_string(source)
    except TemplateError as error:
        raise ModelError(f"{directory}: the chat template cannot be read: {error}") from error


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)
