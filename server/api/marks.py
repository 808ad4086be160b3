"""Boundaries that a chat's client asks to be kept: after which token of the prompt each marked part ends."""

import asyncio
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from server.api.schemas import Message
from server.cache.runs import Tokens, num_equal
from server.chat_template import ChatTemplateError
from server.tokenizer import ModelTokenizer

LONG_PROMPT = 5000  # tokens from which looking for them leaves the event loop


@dataclass(frozen=True, slots=True)
class Marks:
    """positions: numbers of tokens, ascending. ttl_s: of each, how long it is asked to be kept."""

    positions: tuple[int, ...] = ()
    ttl_s: tuple[float, ...] = ()


NO_MARKS = Marks()


async def chat_marks(tokenizer: ModelTokenizer, messages: Sequence[Message], token_ids: Sequence[int]) -> Marks:
    """The marks of a chat whose whole prompt has these tokens."""
    if not any(message.marks for message in messages):
        return NO_MARKS
    if len(token_ids) < LONG_PROMPT:
        return find_marks(tokenizer, messages, token_ids)
    return await asyncio.to_thread(find_marks, tokenizer, messages, token_ids)


def find_marks(tokenizer: ModelTokenizer, messages: Sequence[Message], token_ids: Sequence[int]) -> Marks:
    """What is before the end of a marked part, as far as the prompt begins with the same tokens.

    Where a template changes a part, or a token reaches over its end, that is a little less than all of the part. Where
    it leaves the part out there is nothing to mark. Of marks that fall together the longest time holds.
    """
    prompt = np.array(token_ids, np.int32)
    chat = [message.as_template_input() for message in messages]
    found: dict[int, float] = {}
    for number, message in enumerate(messages):
        for num_chars, ttl_s in message.marks:
            position = num_equal(_tokens_before(tokenizer, chat, number, num_chars), prompt)
            found[position] = max(ttl_s, found.get(position, 0.0))
    found.pop(0, None)
    positions = sorted(found)
    return Marks(tuple(positions), tuple(found[position] for position in positions))


def _tokens_before(tokenizer: ModelTokenizer, chat: Sequence[Mapping[str, str]], number: int, num_chars: int) -> Tokens:
    """The tokens of the prompt's text up to a place in a message's content; none where that is not in it."""
    # Templates have rules of their own, so the place is looked for in what they write: a word that is in no text.
    word = uuid.uuid4().hex
    content = chat[number]["content"]
    marked = {**chat[number], "content": content[:num_chars] + word + content[num_chars:]}
    try:
        text = tokenizer.render_chat([*chat[:number], marked, *chat[number + 1 :]], True)
    except ChatTemplateError:
        text = ""  # it accepts the messages as they are, but not with a word more
    before, found, _ = text.partition(word)
    return np.array(tokenizer.encode(before, add_special_tokens=False) if found else [], np.int32)
