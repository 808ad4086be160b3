"""Long texts that begin like one before are tokenized from where they part.

Byte-pair encoding joins neighbours within words, and a tokenizer cuts a text into words from left to right, looking no
further than the word's end. So where two texts are equal for a while their tokens become equal, and stay so: if the
tokens from some place on are the same, whatever lay before it, nothing before it plays a part any more. That is how a
text is taken up here: from a little before the end of what is known, and only if the new tokens fall in with the known
ones for a while. If they do not, the whole text is tokenized.
"""

import itertools
import json
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer
from tokenizers.models import BPE

LEAST_CHARS = 8192  # shorter texts take about a millisecond
MOST_CHARS = 1 << 25  # of all texts that are remembered; with their tokens some 16 bytes each at most
LEAD = 64  # tokens that are tokenized again for the text to fall in
WINDOW = 32  # tokens that must be the same
MARGIN = 16  # characters before the place where the texts part that count as being different already
WORDS_IN_WINDOW = re.compile(r"\w\s+\w.*\w\s+\w", re.DOTALL)  # several whole words, at which any cutting is in step
CUTTING = {"ByteLevel", "Split", "Digits", "Punctuation", "WhitespaceSplit"}
NORMALIZING = {"NFC", "Prepend", "Lowercase"}


@dataclass(frozen=True, slots=True)
class KnownText:
    """A text and its tokens: ids, and where in the text each begins and ends, all (t,)."""

    text: str
    ids: NDArray[np.int32]
    starts: NDArray[np.int32]
    ends: NDArray[np.int32]


class ReusingEncoder:
    """Encodes texts with a tokenizer for which `is_memoryless`, from the place where a known text ends to be the same.

    Args:
        least_chars: of a text that is worth it. most_chars: of all texts that are remembered, the latest.
    """

    def __init__(self, tokenizer: Tokenizer, *, least_chars: int = LEAST_CHARS, most_chars: int = MOST_CHARS) -> None:
        self._tokenizer, self._least, self._most = tokenizer, least_chars, most_chars
        self._known: OrderedDict[tuple[bool, str], KnownText] = OrderedDict()
        self._num_chars = 0
        self._lock = threading.Lock()
        self.num_reused = 0  # characters that were not tokenized again

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids, the same as the tokenizer's."""
        if len(text) < self._least:
            # The batch calls work without the GIL, and so leave the event loop free; the plain one holds it throughout.
            [short] = self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
            return list(short.ids)
        nearest, common = self._nearest(text, add_special_tokens)
        known = None
        if nearest is not None and common == len(text) == len(nearest.text):
            known = nearest
        elif nearest is not None and common >= self._least:
            known = self._go_on(nearest, common, text, add_special_tokens)
        if known is None:
            known = self._tokenize(text, 0, add_special_tokens)
        self._remember(known, add_special_tokens)
        ids: list[int] = known.ids.tolist()
        return ids

    def _nearest(self, text: str, add_special_tokens: bool) -> tuple[KnownText | None, int]:
        """Of what is known, the text that is the same for longest, and for how many characters."""
        with self._lock:
            known = [each for (flag, _), each in self._known.items() if flag == add_special_tokens]
        best, longest = None, 0
        for each in known:
            # Most have nothing in common, or much.
            if longest and each.text[longest - 1 : longest] != text[longest - 1 : longest]:
                continue
            if (common := num_common(each.text, text)) > longest:
                best, longest = each, common
        return best, longest

    def _go_on(self, known: KnownText, common: int, text: str, add_special_tokens: bool) -> KnownText | None:
        """The text taken up a little before it parts from a known one; None if its tokens do not fall in."""
        end = int(np.searchsorted(known.ends, common - MARGIN, side="right"))
        begin = end - WINDOW
        if begin < LEAD:
            return None
        begin = int(np.searchsorted(known.starts, known.starts[begin]))  # tokens of one character stay together
        if WORDS_IN_WINDOW.search(text, int(known.starts[begin]), int(known.ends[end - 1])) is None:
            return None
        new = self._tokenize(text, int(known.starts[begin - LEAD]), add_special_tokens)
        there = int(np.searchsorted(new.starts, known.starts[begin]))
        window, same = slice(begin, end), slice(there, there + end - begin)
        if not (
            np.array_equal(known.ids[window], new.ids[same])
            and np.array_equal(known.starts[window], new.starts[same])
            and np.array_equal(known.ends[window], new.ends[same])
        ):
            return None
        self.num_reused += int(known.starts[begin - LEAD])
        return KnownText(
            text,
            np.concatenate((known.ids[:begin], new.ids[there:])),
            np.concatenate((known.starts[:begin], new.starts[there:])),
            np.concatenate((known.ends[:begin], new.ends[there:])),
        )

    def _tokenize(self, text: str, start: int, add_special_tokens: bool) -> KnownText:
        """The text from `start` on, with what the tokenizer adds around it."""
        [encoding] = self._tokenizer.encode_batch([text[start:]], add_special_tokens=add_special_tokens)
        offsets = _offsets(encoding, len(text) - start) + start
        return KnownText(text, np.array(encoding.ids, np.int32), offsets[:, 0], offsets[:, 1])

    def _remember(self, known: KnownText, add_special_tokens: bool) -> None:
        key = (add_special_tokens, known.text)
        if len(known.text) > self._most:
            return
        with self._lock:
            if key not in self._known:
                self._num_chars += len(known.text)
                self._known[key] = known
            self._known.move_to_end(key)
            while self._num_chars > self._most:
                _, oldest = self._known.popitem(last=False)
                self._num_chars -= len(oldest.text)


def num_common(first: str, second: str) -> int:
    """How many characters two texts have in common from the begin on."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def is_memoryless(tokenizer: Tokenizer) -> bool:
    """Whether its tokens from some place on hang on nothing before: byte-pair encoding within words that are cut from
    left to right.
    """
    model = tokenizer.model
    if not isinstance(model, BPE) or model.dropout is not None:
        return False
    steps = steps_of(tokenizer.pre_tokenizer, "pretokenizers")
    cuts = any(step["type"] == "Split" or step.get("use_regex", False) for step in steps)
    as_they_are = all(step.get("behavior", "Isolated") == "Isolated" for step in steps)
    normalizers = steps_of(tokenizer.normalizer, "normalizers")
    return (
        cuts
        and as_they_are
        and {step["type"] for step in steps} <= CUTTING
        and {step["type"] for step in normalizers} <= NORMALIZING
    )


def steps_of(component: Any, inside: str) -> list[Mapping[str, Any]]:
    """What a normalizer or pre-tokenizer of the library is made of, as in tokenizer.json.

    Args:
        inside: where a sequence has its parts, "normalizers" or "pretokenizers".
    """
    if component is None:
        return []
    described = json.loads(component.__getstate__())
    steps: list[Mapping[str, Any]] = described[inside] if described["type"] == "Sequence" else [described]
    return steps


def _offsets(encoding: Encoding, length: int) -> NDArray[np.int32]:
    """(t, 2), where each token begins and ends. What stands around the text begins and ends where it does."""
    flat = itertools.chain.from_iterable(encoding.offsets)
    offsets = np.fromiter(flat, np.int32, 2 * len(encoding)).reshape(-1, 2)
    inside = np.flatnonzero(offsets[:, 1])
    if len(inside):
        offsets[inside[-1] + 1 :] = length
    return offsets
