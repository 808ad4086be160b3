"""How log-probabilities are written: in OpenAI's two shapes, and a prompt's in vLLM's."""

import codecs
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from server.request import Logprobs, TokenLogprob
from server.tokenizer import ModelTokenizer

LOOK_AHEAD = 32  # characters: as far a token is looked for that is not where the last one ended

# A token, what is told of it (nothing of a prompt's first), and how many characters of the text come before it.
Placed = tuple[int, TokenLogprob | None, int]


@dataclass(frozen=True, slots=True)
class Echo:
    """A prompt that is given back: its text, and how many characters of it come before each token."""

    text: str
    places: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Telling:
    """What one request wants to be told of tokens.

    token_ids: the prompt. num_top: of how many of the likeliest beside each generated token; None: of none, nor of the
    token itself. prompt_top: the same of the prompt, in a field of its own.
    """

    tokenizer: ModelTokenizer
    chat: bool
    token_ids: Sequence[int]
    num_top: int | None
    prompt_top: int | None = None
    echo: Echo | None = None
    _texts: dict[int, str] = field(default_factory=dict)

    @property
    def echoes_scores(self) -> bool:
        """Whether the prompt is given back with its log-probabilities, which are known only once it is computed."""
        return self.echo is not None and self.num_top is not None and len(self.token_ids) > 1

    def generated(self, entries: Iterable[tuple[TokenLogprob, int]]) -> dict[str, Any] | None:
        """A choice's `logprobs` for some of its tokens; None where there are none, or nobody asks."""
        behind = len(self.echo.text) if self.echo else 0
        placed: list[Placed] = [(entry.token_id, entry, behind + place) for entry, place in entries]
        return self._written(placed)

    def whole(self, prompt: Logprobs | None, entries: Iterable[tuple[TokenLogprob, int]]) -> dict[str, Any] | None:
        """The same of all of a choice's tokens, behind the prompt's where that is given back."""
        behind = len(self.echo.text) if self.echo else 0
        placed: list[Placed] = [(entry.token_id, entry, behind + place) for entry, place in entries]
        return self._written(self._echoed(prompt) + placed)

    def echoed(self, prompt: Logprobs | None) -> dict[str, Any] | None:
        """The same of the prompt that is given back."""
        return self._written(self._echoed(prompt))

    def prompt_body(self, prompt: Logprobs | None) -> dict[str, Any]:
        """The field that tells of the prompt: nothing of the first token, of each other one its log-probability, its
        rank, and the likeliest in its place, by token id.
        """
        if self.prompt_top is None:
            return {}
        told: list[dict[str, Any] | None] = [None]
        for entry in prompt.entries() if prompt else ():
            likeliest = enumerate(entry.top[: self.prompt_top], 1)
            ranked = [(entry.token_id, entry.logprob, entry.rank), *((*pair, rank) for rank, pair in likeliest)]
            told.append(
                {
                    str(token_id): {"logprob": logprob, "rank": rank, "decoded_token": self._text(token_id)}
                    for token_id, logprob, rank in ranked
                }
            )
        return {"prompt_logprobs": told}

    def _echoed(self, prompt: Logprobs | None) -> list[Placed]:
        if self.echo is None or self.num_top is None:
            return []
        entries = [None, *(prompt.entries() if prompt else ())]
        return list(zip(self.token_ids, entries, self.echo.places, strict=True))

    def _written(self, placed: Sequence[Placed]) -> dict[str, Any] | None:
        if self.num_top is None or not placed:
            return None
        if self.chat:
            entries = [entry for _, entry, _ in placed if entry is not None]
            return {"content": [self._chat_entry(entry, self.num_top) for entry in entries], "refusal": None}
        return {
            "tokens": [self._text(token_id) for token_id, _, _ in placed],
            "token_logprobs": [entry and entry.logprob for _, entry, _ in placed],
            "top_logprobs": [entry and self._top(entry, self.num_top) for _, entry, _ in placed],
            "text_offset": [place for _, _, place in placed],
        }

    def _chat_entry(self, entry: TokenLogprob, num_top: int) -> dict[str, Any]:
        likeliest = [self._chat_token(*pair) for pair in entry.top[:num_top]]
        return {**self._chat_token(entry.token_id, entry.logprob), "top_logprobs": likeliest}

    def _chat_token(self, token_id: int, logprob: float) -> dict[str, Any]:
        content = self.tokenizer.token_bytes(token_id)
        return {"token": content.decode(errors="replace"), "logprob": logprob, "bytes": list(content)}

    def _top(self, entry: TokenLogprob, num_top: int) -> dict[str, float]:
        """By text, the token itself last if it is not among them; of tokens that read alike, the likelier."""
        found: dict[str, float] = {}
        for token_id, logprob in (*entry.top[:num_top], (entry.token_id, entry.logprob)):
            found.setdefault(self._text(token_id), logprob)
        return found

    def _text(self, token_id: int) -> str:
        """As OpenAI writes it, where a token is no whole character."""
        text = self._texts.get(token_id)
        if text is None:
            content = self.tokenizer.token_bytes(token_id)
            try:
                text = content.decode()
            except UnicodeDecodeError:
                text = "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)
            self._texts[token_id] = text
        return text


def echo_of(tokenizer: ModelTokenizer, prompt: str | Sequence[int], token_ids: Sequence[int]) -> Echo:
    """A prompt as it is given back: the client's own text, or that of the client's tokens without special ones."""
    text = prompt if isinstance(prompt, str) else tokenizer.decode(token_ids)
    return Echo(text, place_tokens(tokenizer, token_ids, text))


def place_tokens(tokenizer: ModelTokenizer, token_ids: Sequence[int], text: str) -> list[int]:
    """How many characters of a text come before each of its tokens. One that is not in the text, as a special one that
    was put before it, takes none; nor does one that only begins a character.
    """
    places, place = [], 0
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for token_id in token_ids:
        places.append(place)
        piece = decoder.decode(tokenizer.token_bytes(token_id))
        if not piece:
            continue
        # A vocabulary may write a space before a text that has none.
        for spelled in (piece, piece.removeprefix(" ")):
            if text.startswith(spelled, place):
                place += len(spelled)
                break
        else:
            found = text.find(piece, place, place + len(piece) + LOOK_AHEAD)
            place = place if found < 0 else found + len(piece)
    return places
