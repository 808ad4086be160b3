"""Whether an answer contains an accepted one, word by word.

Short-answer containment, as Natural Questions are scored in "Lost in the Middle" (best_subspan_em), but on whole
words: "5" does not occur in "1905". A known weakness stays: an answer that lists several candidates, or denies the
accepted one, contains it too. The verdict on the first line alone stands beside the main one for that reason.
"""

from collections.abc import Iterable, Sequence

from evals.scoring.normalize import ARTICLES, bare_words, words

_POLAR = frozenset({"yes", "no"})


def has_run(needle: Sequence[str], haystack: Sequence[str]) -> bool:
    """Whether `needle`, which has at least one word, occurs in `haystack` as consecutive words."""
    if not needle:
        raise ValueError("an empty run of words occurs everywhere and nowhere")
    size = len(needle)
    return any(
        haystack[start] == needle[0] and tuple(haystack[start : start + size]) == tuple(needle)
        for start in range(len(haystack) - size + 1)
    )


def contains(text: str, answer: str) -> bool:
    """Whether `answer` occurs in `text` as a run of whole normalised words.

    An answer without a single word ("?!") occurs nowhere. "Yes" and "no" must be the first word, since both occur
    inside other answers ("there is no record"). An answer of articles alone (the blood group "A") must be all of
    the text.
    """
    needle, haystack = words(answer), words(text)
    if not needle or not haystack:
        return False
    if set(needle) <= _POLAR:
        return haystack[: len(needle)] == needle
    if set(needle) <= ARTICLES:
        return haystack == needle
    return has_run(needle, haystack) or has_run(bare_words(answer), bare_words(text))


def find_accepted(text: str, accepted: Iterable[str]) -> str | None:
    """The first accepted answer that `text` contains, as the dataset writes it."""
    return next((answer for answer in accepted if contains(text, answer)), None)
