"""Whether an answer contains an accepted one, word by word.

Short-answer containment, as Natural Questions are scored in "Lost in the Middle" (best_subspan_em), but on whole
words: "5" does not occur in "1905". Case counts only where a name would else be found in every other sentence: "U.S."
in "He told us", the novel "It" in "It is cold". A known weakness stays: an answer that lists several candidates, or
denies the accepted one, contains it too. The verdict on the first line alone stands beside the main one for that
reason.

What an answer says may be written otherwise ("19 June 2018", "three", "nonpartisan"; see evals.scoring.spelling); of
documents that is not asked, where an accepted answer either stands or does not.
"""

import re
from collections.abc import Iterable, Sequence

from evals.scoring.normalize import ARTICLES, bare_words, words
from evals.scoring.spelling import UNITED_STATES, says, says_person

POLAR = frozenset({"yes", "no"})
# What may stand before "yes" and "no", which must come first: they also occur inside other answers.
_POLAR_LEAD_IN = re.compile(
    r"^(?:(?:so|therefore|thus) )?(?:(?:the|my|best|final|correct|short) )*"
    r"(?:(?:answer|guess)(?: to (?:this|that|your) question)?(?: (?:is|was|would be|must be))?"
    r"|i (?:think|believe|guess|(?:would )?say))(?: that)?(?: the answer is)? "
)
# Words of every sentence that are also names of books, films and bands. Not "may" and "will": May, Will.
_FUNCTION_WORDS = frozenset(
    "all am and any are as at be both but by can did do does down each few for from had has have he her here hers him "
    "his how i if in into is it its just me more most my no nor not now of off on once only or other our out over own "
    "same she so some such than that their them then there they this those to too under until up us very was we were "
    "what when where which while who whom why with yes you your".split()
)
_MAX_ACRONYM = 3
_APOSTROPHE = "['\u2019]"


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

    An answer without a single word ("?!") occurs nowhere. "Yes" and "no" must be the first word after "The answer is"
    and the like, since both occur inside other answers ("there is no record"). An answer of articles alone (the blood
    group "A") must be all of the text. A short name that is also a common word must be all of the text or written as
    a name (see `_is_written`).
    """
    needle, haystack = words(answer), words(text)
    if not needle or not haystack:
        return False
    if set(needle) <= POLAR:
        spoken = _POLAR_LEAD_IN.sub("", " ".join(haystack)).split()
        return tuple(spoken[: len(needle)]) == needle
    if set(needle) <= ARTICLES:
        return haystack == needle
    bare_needle, bare_haystack = bare_words(answer), bare_words(text)
    cased = bare_words(answer, keep_case=True)
    if len(cased) == 1 and _is_common(cased[0]):
        # "The Who" is found with its article, in any case.
        with_article = len(needle) > 1 and has_run(needle, haystack)
        return with_article or bare_haystack == bare_needle or _is_written(cased[0], text)
    return has_run(needle, haystack) or has_run(bare_needle, bare_haystack)


def _is_common(name: str) -> bool:
    """Whether a name of one word reads like another word in lower case: "US", "IT", "It", "Her"; not "us", "Ana"."""
    return _is_acronym(name) or (name[0].isupper() and name.casefold() in _FUNCTION_WORDS)


def _is_acronym(name: str) -> bool:
    return name.isalpha() and name.isupper() and len(name) <= _MAX_ACRONYM


def _is_written(name: str, text: str) -> bool:
    """Whether a common word stands in the text as a name: an acronym in capitals, any other with one, unless that is
    but the beginning of a sentence that goes on in lower case ("It is cold")."""
    if _is_acronym(name):
        return name in words(text, keep_case=True)
    for found in re.finditer(rf"\b{re.escape(name)}\b(?!{_APOSTROPHE}\w)", text):
        before = text[: found.start()].rstrip(" \t\"\u201c\u2018'*_(")
        begins = not before or before[-1] in ".!?:;\n"
        if not (begins and re.match(r"\s+[a-z]", text[found.end() :])):
            return True
    return False


def gives(text: str, answer: str) -> bool:
    """Whether `answer` occurs in `text` as `contains` has it, or written otherwise."""
    if contains(text, answer):
        return True
    needle, cased = words(answer), bare_words(answer, keep_case=True)
    # For these it matters how they are written.
    common = len(cased) == 1 and _is_common(cased[0]) and cased[0] not in UNITED_STATES
    if not needle or set(needle) <= POLAR | ARTICLES or common:
        return False
    return says(text, answer) or says_person(text, answer)


def find_accepted(text: str, accepted: Iterable[str]) -> str | None:
    """The first accepted answer that `text` gives, as the dataset writes it."""
    return next((answer for answer in accepted if gives(text, answer)), None)
