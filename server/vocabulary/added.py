"""The tokens that stand beside a vocabulary: texts that are one token wherever they occur, special ones among them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.errors import ModelError, UnsupportedModelError
from server.checkpoint_json import read_json

CONFIG = "tokenizer_config.json"
NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
MORE = ("additional_special_tokens", "extra_special_tokens")


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A text that is one token. `lstrip` and `rstrip`: the whitespace before or behind it goes with it."""

    token_id: int
    text: str
    special: bool
    lstrip: bool = False
    rstrip: bool = False


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """What a checkpoint says of special tokens. `named`: text by role, as bos_token; only those that there are.

    `texts`: of all special ones. `add_bos`, `add_eos`: whether a text gets them around it; None where nothing is said.
    """

    named: Mapping[str, str]
    texts: frozenset[str]
    add_bos: bool | None
    add_eos: bool | None


def read_special_tokens(directory: Path, config: Mapping[str, Any]) -> SpecialTokens:
    """Special tokens by tokenizer_config.json, or by special_tokens_map.json where the former is silent.

    Args:
        config: tokenizer_config.json's content.
    Raises:
        ModelError: the latter file cannot be read.
    """
    content = read_json(directory / "special_tokens_map.json") | dict(config)
    named = {name: text for name in NAMES if (text := _text(content.get(name))) is not None}
    more: list[Any] = []
    for key in MORE:
        several = content.get(key)
        more += several.values() if isinstance(several, dict) else several if isinstance(several, list) else ()
    texts = {text for entry in more if (text := _text(entry)) is not None}
    return SpecialTokens(
        named, frozenset(texts | set(named.values())), _flag(config, "add_bos_token"), _flag(config, "add_eos_token")
    )


def read_added_tokens(directory: Path, config: Mapping[str, Any], special: SpecialTokens) -> list[AddedToken]:
    """The tokens of added_tokens.json, and of `added_tokens_decoder` in tokenizer_config.json, which knows better.

    Raises:
        ModelError: an entry is not understood; the message names its file.
    """
    added: dict[str, AddedToken] = {}
    file = directory / "added_tokens.json"
    for text, token_id in read_json(file).items():
        if type(token_id) is not int or token_id < 0 or not text:
            raise ModelError(f"{file}: {text!r} has no token id, but {token_id!r}")
        added[text] = AddedToken(token_id, text, text in special.texts)
    decoder = config.get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict):
        raise ModelError(f"{directory / CONFIG}: added_tokens_decoder is not an object")
    for key, entry in decoder.items():
        token = _declared(directory / CONFIG, key, entry, special)
        added[token.text] = token
    return sorted(added.values(), key=lambda token: token.token_id)


def _declared(file: Path, key: str, entry: Any, special: SpecialTokens) -> AddedToken:
    text = _text(entry)
    if not (key.isascii() and key.isdigit()) or not isinstance(entry, dict) or not text:
        raise ModelError(f"{file}: added_tokens_decoder has an entry that is not understood: {key!r}: {entry!r:.80}")
    if entry.get("single_word"):
        raise UnsupportedModelError(f"{file}: added_tokens_decoder: single_word is not supported ({text!r})")
    return AddedToken(
        int(key),
        text,
        bool(entry.get("special")) or text in special.texts,
        lstrip=bool(entry.get("lstrip")),
        rstrip=bool(entry.get("rstrip")),
    )


def surrounding(special: SpecialTokens, ids: Mapping[str, int]) -> tuple[list[int], list[int]]:
    """The ids that a text gets before and behind it: unless anything else is said, bos where there is one, and no eos.

    Args:
        ids: of all texts that are one token.
    """
    bos, eos = (ids.get(special.named.get(name, "")) for name in ("bos_token", "eos_token"))
    before = [] if bos is None or special.add_bos is False else [bos]
    return before, [eos] if eos is not None and special.add_eos else []


def _text(token: object) -> str | None:
    """A token, which is written plainly or as an object with its properties."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _flag(config: Mapping[str, Any], name: str) -> bool | None:
    value = config.get(name)
    if value is None or isinstance(value, bool):
        return value
    raise ModelError(f"{CONFIG}: {name} must be true or false, not {value!r}")
