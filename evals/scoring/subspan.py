"""The plain measure that others publish: whether an accepted answer is a part of the answer, both normalised.

SQuAD's normalisation (lower case, without ASCII punctuation and articles) and the test for a part of the text,
best_subspan_em of "Lost in the Middle", on the whole answer. Beside our grader it tells what that does otherwise.
"""

import re
import string
from collections.abc import Iterable

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def squad_normalised(text: str) -> str:
    bare = text.lower().translate(_PUNCTUATION)
    return " ".join(re.sub(r"\b(?:a|an|the)\b", " ", bare).split())


def has_subspan(answer: str, accepted: Iterable[str], *, whole_words: bool = False) -> bool:
    """By single characters ("5" is in "1905"), or by whole words."""
    edge = " " if whole_words else ""
    text = f"{edge}{squad_normalised(answer)}{edge}"
    spans = filter(None, map(squad_normalised, accepted))
    return any(f"{edge}{span}{edge}" in text for span in spans)
