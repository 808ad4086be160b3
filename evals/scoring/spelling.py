"""One spelling for what is written in several ways: numbers, dates, units, plurals, abbreviations, joined words.

"Twenty-one" and "21", "the 19th of June, 2018" and "June 19, 2018", "12.65 m" and "12.65 meters", "cells" and "cell",
"non-partisan" and "nonpartisan", "U.S." and "the United States" are one answer each; "June 1991" is said by "June 23,
1991", and James W. Marshall is James Marshall. It goes no further: a year alone is not its date, a family name not its
bearer, and no word stands for another that means the same.

Where it could take one thing for another it does not: what is capitalised keeps its s ("Peters" is not "Peter"), so
does what is counted ("a week", "741 weeks"), and "one" remains a word, for mostly it counts nothing.
"""

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache

from evals.scoring.normalize import bare_words

_DIGITS = dict(zip("one two three four five six seven eight nine".split(), range(1, 10), strict=True))
_SMALL = dict(
    zip(
        "zero two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
        "eighteen nineteen".split(),
        (0, *range(2, 20)),
        strict=True,
    )
)
_TENS = dict(zip("twenty thirty forty fifty sixty seventy eighty ninety".split(), range(20, 100, 10), strict=True))
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
# Not "first" and "second": those stand everywhere.
_ORDINALS = {"third": "3rd"} | dict(
    zip(
        "fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth fifteenth sixteenth "
        "seventeenth eighteenth nineteenth twentieth".split(),
        (f"{number}th" for number in range(4, 21)),
        strict=True,
    )
)
_ALIKE = {
    "bce": "bc", "st": "saint", "mt": "mount", "jr": "junior", "vs": "versus", "gray": "grey", "defence": "defense",
    "offence": "offense", "licence": "license", "programme": "program",
}  # fmt: skip
_UNITS = {
    "m": "meter", "meters": "meter", "metre": "meter", "metres": "meter", "km": "kilometer", "kilometers": "kilometer",
    "kilometres": "kilometer", "kilometre": "kilometer", "cm": "centimeter", "centimeters": "centimeter",
    "mm": "millimeter", "millimeters": "millimeter", "kg": "kilogram", "kilograms": "kilogram", "ft": "foot",
    "feet": "foot", "mi": "mile", "miles": "mile", "lb": "pound", "lbs": "pound", "pounds": "pound", "hrs": "hour",
    "hours": "hour", "mins": "minute", "minutes": "minute", "years": "year", "inches": "inch",
}  # fmt: skip
UNITED_STATES = frozenset({"US", "USA"})
_MONTHS = "january february march april may june july august september october november december".split()
_MONTH = rf"(?:{'|'.join(_MONTHS)}|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec)"
_DAY = r"(\d{1,2})(?:st|nd|rd|th)?"
_DATE = re.compile(rf"\b(?:({_MONTH}) {_DAY}|{_DAY} (?:of )?({_MONTH}))\b")
_DAY_OF_A_YEAR = re.compile(rf"({'|'.join(_MONTHS)}) \d{{1,2}}(?= \d{{4}}\b)")
# What an accepted answer may begin with that is no part of it: "in May", "c. 3000 BC".
_LEADING = frozenset("in on at from by about around approximately circa c over nearly almost usually to".split())


def says(text: str, answer: str) -> bool:
    """Whether `text` has the words of `answer` in a row, both in one spelling."""
    wanted = list(_respelled(answer))
    while len(wanted) > 1 and wanted[0] in _LEADING:
        del wanted[0]
    said = _respelled(text)
    if not wanted or not said:
        return False
    if _has_joined(wanted, said):
        return True
    if len(wanted) == 2 and wanted[0] in _MONTHS:
        return _has_joined(wanted, _DAY_OF_A_YEAR.sub(r"\1", " ".join(said)).split())
    return False


def says_person(text: str, answer: str) -> bool:
    """Whether `text` has a name that differs from `answer` by the initials of middle names alone."""
    name = bare_words(answer, keep_case=True)
    if not 2 <= len(name) <= 3 or not all(word.isalpha() and word[0].isupper() for word in name):
        return False
    words = bare_words(text, keep_case=True)
    for place, word in enumerate(words):
        if word.casefold() == name[0].casefold():
            for end in (place + 1, place + 2):
                if words[end : end + 1] == name[-1:] and _is_same_middle(name[1:-1], words[place + 1 : end]):
                    return True
    return False


def _is_same_middle(one: Sequence[str], other: Sequence[str]) -> bool:
    if not one or not other:
        return all(map(_is_initials, (*one, *other)))
    return one[0][0] == other[0][0] and (_is_initials(one[0]) or _is_initials(other[0]))


def _is_initials(name: str) -> bool:
    return name.isupper() and len(name) <= 2


def _has_joined(needle: Sequence[str], haystack: Sequence[str]) -> bool:
    """Whether the needle's letters stand in the haystack from the begin of a word to the end of one."""
    wanted, _, _ = _join(needle)
    text, begins, ends = _join(haystack)
    places = (found.start() for found in re.finditer(f"(?={re.escape(wanted)})", text))
    return any(place in begins and place + len(wanted) in ends for place in places)


def _join(words: Sequence[str]) -> tuple[str, set[int], set[int]]:
    """The words without spaces but beside numbers, and where words begin and end in that."""
    text, begins, ends = "", set(), set()
    for word in words:
        if text and (text[-1].isdigit() or word[0].isdigit()):
            text += " "
        begins.add(len(text))
        text += word
        ends.add(len(text))
    return text, begins, ends


# An answer is compared with each accepted one.
@lru_cache(maxsize=256)
def _respelled(text: str) -> tuple[str, ...]:
    words: list[str] = []
    for word in _numbers(bare_words(text, keep_case=True)):
        words += _spelled(word, counted=bool(words) and _NUMBER.fullmatch(words[-1]) is not None)
    whole = " ".join(words).replace("united states of america", "united states")
    return tuple(_DATE.sub(_month_first, whole).split())


def _month_first(date: re.Match[str]) -> str:
    month, day = (date[1], date[2]) if date[1] else (date[4], date[3])
    return f"{next(name for name in _MONTHS if name.startswith(month[:3]))} {day}"


def _spelled(word: str, *, counted: bool) -> list[str]:
    """One word in its one spelling; `counted` if a number stands before it."""
    if word in UNITED_STATES:
        return ["united", "states"]
    bare = word.casefold()
    if counted:
        return [_UNITS.get(bare, _ALIKE.get(bare, bare))]
    return [_as_american(_ALIKE.get(bare) or _ORDINALS.get(bare) or (bare if word != bare else _singular(bare)))]


def _singular(word: str) -> str:
    """The word without the s of its plural: by its letters alone, the same for both that are compared."""
    if len(word) < 4 or not word.isalpha() or not word.endswith("s") or word.endswith(("ss", "us", "is")):
        return word
    if word.endswith("ies"):
        return word[:-3] + "y"
    return word[:-2] if word.endswith(("sses", "xes", "ches", "shes")) else word[:-1]


def _as_american(word: str) -> str:
    if len(word) >= 7:
        word = re.sub(r"is(e|ed|ing|ation)$", r"iz\1", word)
    return re.sub(r"(?<=\w{3})our$", "or", re.sub(r"(?<=\w\w)tre$", "ter", word))


def _numbers(words: Sequence[str]) -> Iterator[str]:
    """The words, with numbers in figures: "two hundred and five", "2.5 million", "4.0"."""
    place = 0
    while place < len(words):
        value, used = _value([word.casefold() for word in words[place : place + 7]])
        if used == 0:
            yield words[place]
        else:
            yield str(int(value)) if value == int(value) else str(round(value, 9))
        place += max(used, 1)


def _value(words: Sequence[str]) -> tuple[float, int]:
    """What the first of the words count, and how many words that takes; (0, 0) where they count nothing."""
    value, used = _below_a_thousand(words)
    if used == 0 and (words[0] == "one" or _NUMBER.fullmatch(words[0])):
        scaled = len(words) > 1 and words[1] in _SCALES
        if scaled or "." in words[0]:
            value, used = float(_DIGITS.get(words[0]) or words[0]), 1
    if used and len(words) > used and words[used] in _SCALES:
        return value * _SCALES[words[used]], used + 1
    return value, used


def _below_a_thousand(words: Sequence[str]) -> tuple[float, int]:
    value, used = 0, 0
    if words[0] in _DIGITS and words[1:2] == ["hundred"]:
        value, used = 100 * _DIGITS[words[0]], 2
        used += words[2:3] == ["and"] and len(words) > 3 and words[3] in _TENS.keys() | _SMALL.keys() | {"one"}
    rest = words[used:]
    if rest and rest[0] in _TENS:
        value, used = value + _TENS[rest[0]], used + 1
        if len(rest) > 1 and rest[1] in _DIGITS:
            return value + _DIGITS[rest[1]], used + 1
    elif rest and rest[0] in (_SMALL | _DIGITS if used else _SMALL):
        return value + (_SMALL | _DIGITS)[rest[0]], used + 1
    return value, used
