"""Text as the grader compares it: lower case, no accents, no articles, no punctuation, split into words.

The steps are SQuAD's (lower case, punctuation, articles, white space), with these deliberate differences, each of
which keeps two different answers apart or two spellings of one answer together:

- punctuation separates words instead of vanishing ("well-known" is "well known", "1914-1918" is two years),
  but an apostrophe joins ("don't" is "dont"), a possessive 's is dropped and dotted initials close up ("U.S." is "us");
- numbers keep their sign and decimal point ("3.5" is not "35") and lose thousands separators ("1,000" is "1000");
- compatibility forms and accents are folded (full-width digits, ligatures, "Beyoncé" is "beyonce");
- an article is dropped only before another word, so that "hepatitis A" stays apart from "hepatitis B", and never
  with a full stop, so that "A. Smith" keeps an initial;
- a plus or sharp at the end of a word stays ("A+", "C#"), a raised digit stands apart (mostly a footnote's mark);
- an ideograph or kana is a word of its own, for these scripts have no spaces.

Where the case tells two words apart ("US" and "us"), it can be kept; dotted initials are then capitals.
"""

import re
import unicodedata
from functools import lru_cache

ARTICLES = frozenset({"a", "an", "the"})

_APOSTROPHES = "'\u2018\u2019\u02bc`\u00b4"
_DASHES = "\u2010\u2011\u2012\u2013\u2014\u2015\u2212"
# Quotes and dashes first: NFKC turns an acute accent that stands alone into a space and a combining mark.
_ONE_FORM = str.maketrans({**dict.fromkeys(_APOSTROPHES, "'"), **dict.fromkeys(_DASHES, "-")})
_POSSESSIVE = re.compile(r"(?<=\w)'s\b|(?<=s)'(?!\w)")
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,]*\d)")
_INITIALS = re.compile(r"(?<!\w)(?:[^\W\d_]\.\s?){2,}")
# To `re` a vowel sign of Devanagari and the like is no part of a word.
_MARKS = "".join(chr(code) for code in range(0x0300, 0x1E00) if unicodedata.category(chr(code)).startswith("M"))
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_ARTICLE = re.compile(r"(?<![\w.'\u2019-])(?:a|an|the)(?=\s+[^\w\s]*\w)", re.IGNORECASE)
_WORD = re.compile(
    r"(?<!\S)-\d+(?:\.\d+)?(?!\w)"  # a negative number
    r"|\d+\.\d+(?!\w)"  # a decimal
    rf"|[{_UNSPACED}]"  # one ideograph or kana
    rf"|(?:[^\W_{_UNSPACED}]|[{_MARKS}])+(?:[+#]+(?!\w))?"
)


_RAISED = re.compile(r"(?<=\w)(?=[\u00b2\u00b3\u00b9\u2070\u2074-\u2079])")


def fold(text: str, *, keep_case: bool = False) -> str:
    """Lower case, without accents, with one form for each quote, dash and compatibility character."""
    one_form = text.translate(_ONE_FORM)
    if one_form.isascii():  # Most text: without accents, and what follows would change its case alone.
        return one_form if keep_case else one_form.lower()
    composed = unicodedata.normalize("NFKC", _RAISED.sub(" ", one_form)).translate(_ONE_FORM)
    decomposed = unicodedata.normalize("NFKD", composed if keep_case else composed.casefold())
    # Only the accents of European scripts: elsewhere a combining mark is part of the letter.
    bare = "".join(char for char in decomposed if not "\u0300" <= char <= "\u036f")
    return unicodedata.normalize("NFC", bare)


@lru_cache(maxsize=512)  # an answer is looked at many times while it is graded
def words(text: str, *, keep_case: bool = False) -> tuple[str, ...]:
    """The words of a text, articles included."""
    folded = _POSSESSIVE.sub("", fold(text, keep_case=keep_case)).replace("'", "")
    folded = _THOUSANDS.sub(lambda number: number[0].replace(",", ""), folded)
    folded = _INITIALS.sub(lambda run: _closed_up(run[0], capitals=keep_case), folded)
    folded = folded.replace("%", " percent ").replace("&", " and ")
    return tuple(_WORD.findall(folded))


def _closed_up(initials: str, *, capitals: bool) -> str:
    letters = re.sub(r"[.\s]", "", initials)
    return (letters.upper() if capitals else letters) + " "


def bare_words(text: str, *, keep_case: bool = False) -> tuple[str, ...]:
    """The words of a text, without the articles that stand before another word."""
    return words(_ARTICLE.sub(" ", text), keep_case=keep_case)


def normalize(text: str) -> str:
    """The words of a text without articles, joined by single spaces."""
    return " ".join(bare_words(text))
