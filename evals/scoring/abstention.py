"""What an answer claims, once every way of saying "I don't know" is taken out of it.

An answer may abstain and name something as well ("I'm not sure, but perhaps 1985"). What it names is its claim, by
this rule, which looks at no accepted answer and so treats right and wrong alike:

1. The answer is cut into clauses: at the ends of sentences and lines, at semicolons and single dashes, before "but",
   "perhaps", "my guess" ..., and at the comma after "While the documents do not say ...". An aside that abstains,
   in parentheses or between dashes ("1985 (the month is not mentioned)"), is put after all others.
2. A clause with a phrase of abstention claims nothing, whatever else it names ("I don't know whether it was 1985").
   Nor does a clause that only excuses itself, speaks of the documents or offers further help.
3. A clause before the first abstention is a claim: the answer came first, the doubt after it.
4. A clause after an abstention is a claim if it is offered: as a guess, or in the same sentence behind a semicolon, a
   dash or "While ...,"; and so is what follows it. Where the model was told always to answer, whatever comes after is
   what was asked for, and needs no such mark.
5. Without any abstention, the whole answer is the claim.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

from evals.records import Permission
from evals.scoring.refusals import claims_nothing, refuses

_GUESS_WORDS = (
    r"but|however|although|though|perhaps|maybe|probably|possibly|likely|presumably|(?:my )?(?:best )?guess"
    r"|i(?:'d|\u2019d| would) (?:guess|say)|i (?:think|believe|guess|suppose)|the answer (?:is|might|may|could)"
    r"|it (?:might|may|could) be"
)
_GUESS_START = re.compile(rf"(?:{_GUESS_WORDS})\b", re.IGNORECASE)
# A dash between words; without spaces only a long one is no hyphen and no range of years.
_DASH = r"(?:[^\S\n][-\u2013\u2014]{1,3}[^\S\n]|(?<=\w)\u2014(?=\w))"
_CUT = re.compile(
    r"\n+"
    r"|(?<=[!?])\s+"
    rf"|(?P<offering>;\s+|{_DASH})"
    # A full stop ends a sentence, unless it abbreviates: an initial, a title.
    r"|(?<!\bDr\.)(?<!\bMr\.)(?<!\bSt\.)(?<!\bJr\.)(?<!\bSr\.)(?<!\bMrs\.)(?<!\bProf\.)(?:(?<=\w\w\.)|(?<=\d\.))\s+"
    # From the beginning of a run: from each of its places, a long rule of dashes would take seconds.
    rf"|(?<![\s,:(-])[\s,:(-]+(?=(?:{_GUESS_WORDS})\b)",
    re.IGNORECASE,
)
_ASIDE = re.compile(rf"\((?P<bracketed>[^()]*)(?:\)|$)|{_DASH}(?P<dashed>[^\n\u2014]*?){_DASH}")
_CONCESSION = re.compile(r"(?:^|(?<=[.!?] ))((?:while|(?:even )?though|although|whereas)\b[^,;.\n]*),", re.I | re.M)


@dataclass(frozen=True, slots=True)
class _Clause:
    """Attributes:
    text: never empty. `offered`: whether it is a claim even behind an abstention. `abstains`: whether it is one.
    """

    text: str
    offered: bool
    abstains: bool


def abstains(text: str) -> bool:
    """Whether any clause of the text says that the answer is not known."""
    return any(clause.abstains for clause in _clauses(text))


def claim_of(answer: str, permission: Permission) -> str | None:
    """The part of an answer that names something; None when the answer only abstains."""
    clauses = _clauses(answer)
    if not any(clause.abstains for clause in clauses):
        return answer
    claims: list[str] = []
    claimed = True
    for clause in clauses:
        if clause.abstains:
            claimed = permission == "must_answer"
        elif not claims_nothing(clause.text):
            claimed = claimed or clause.offered
            claims += [clause.text] if claimed else []
    return " ".join(claims) or None


@lru_cache(maxsize=1024)  # of one answer they are wanted several times, of an accepted one at every budget
def _clauses(text: str) -> tuple[_Clause, ...]:
    whole = _CONCESSION.sub(lambda part: f"{part[1]};" if refuses(part[1]) else part[0], _with_asides_last(text))
    clauses: list[_Clause] = []
    start, offering = 0, False
    for cut in [*_CUT.finditer(whole), None]:
        clause = whole[start : cut.start() if cut else len(whole)].strip()
        if clause:
            clauses.append(_Clause(clause, offering or bool(_GUESS_START.match(clause)), refuses(clause)))
        if cut:
            start, offering = cut.end(), cut["offering"] is not None
    return tuple(clauses)


def _with_asides_last(text: str) -> str:
    """The text with its abstaining asides moved behind it: they leave a detail open, not what they interrupt.

    Between dashes, any other aside is put between commas: "The answer - as far as I see - is not in the documents" is
    one clause.
    """
    asides: list[str] = []

    def take(aside: re.Match[str]) -> str:
        dashed = aside["dashed"]
        inner = aside["bracketed"] if dashed is None else dashed
        if " " in inner and refuses(inner):  # Not "sodium (Na)".
            asides.append(inner)
            return " "
        return aside[0] if dashed is None else f", {dashed}, "

    return "\n".join([_ASIDE.sub(take, text), *asides])
