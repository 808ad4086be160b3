"""What an answer claims, once every way of saying "I don't know" is taken out of it.

An answer may abstain and name something as well ("I'm not sure, but perhaps 1985"). What it names is its claim, by
this rule, which looks at no accepted answer and so treats right and wrong alike:

1. The answer is cut into clauses: at the ends of sentences and lines, and before "but", "perhaps", "my guess" ...
2. A clause with a phrase of abstention claims nothing, whatever else it names ("I don't know whether it was 1985").
   Nor does a clause that only excuses itself, speaks of the documents or offers further help.
3. A clause before the first abstention is a claim: the answer came first, the doubt after it.
4. A clause after an abstention is a claim if it is offered as a guess; where the model was told always to answer,
   a guess is what was asked for, and it needs no such mark.
5. Without any abstention, the whole answer is the claim.
"""

import re

from evals.records import Permission
from evals.scoring.normalize import normalize

_SOURCES = r"(?:documents?|passages?|context|texts?|sources?|information|excerpts?|articles?|paragraphs?)"
_CANNOT = r"(?:cannot|can not|cant|could not|couldnt|unable to|not able to|not possible to|impossible to)"
_LEARN = (
    r"(?:determine|find|answer|say|tell|know|locate|identify|infer|establish|provide|give|verify|confirm|assist"
    r"|help (?:you|with))"
)
_LEARNT = (
    r"(?:determined|found|answered|said|told|known|located|identified|inferred|established|provided|verified|confirmed)"
)
_STATED = (
    r"(?:mentioned|stated|given|specified|provided|found|included|contained|available|listed|described|indicated"
    r"|disclosed|said|answered|present)"
)
# What may follow "not given": "in the documents", not "to the federal government".
_WHERE = r"in|by|within|from|anywhere|here|at|about|for|when|where|who|what|which|how|and|so|there|explicitly|directly"
_NOTHING_WORDS = (
    r"(?:unknown|unanswerable|unspecified|undetermined|undisclosed|n a|na|none|no answer|no idea|not sure|unsure"
    r"|not known|not clear|unclear|uncertain|insufficient information|not available|no information|idk|dont know)"
)

# Matched against a normalised clause: lower case, no articles, no punctuation, apostrophes closed up.
_ABSTENTION = re.compile(
    "|".join(
        (
            r"\b(?:i|we) (?:\w+ )?(?:dont|do not|didnt|did not) (?:\w+ )?know\b",
            r"\b(?:i|we) (?:dont|do not) have (?:\w+ )?(?:information|answer|details?|data)\b",
            r"\b(?:i|we) (?:dont|do not) (?:think|believe) (?:that )?(?:i|we) (?:know|can)\b",
            r"\b(?:im|i am|we are) (?:\w+ )?(?:not (?:\w+ )?(?:sure|certain|aware)|unsure|uncertain|unaware)\b",
            rf"\b(?:i|we|im|i am) (?:\w+ )?{_CANNOT} (?:\w+ )?{_LEARN}\b",
            rf"^(?:sorry )?{_CANNOT} (?:\w+ )?{_LEARN}\b",
            rf"\b{_CANNOT} (?:\w+ )?be (?:\w+ )?{_LEARNT}\b",
            rf"\bit (?:is |was )?{_CANNOT} (?:\w+ )?{_LEARN}\b",
            rf"\b(?:not|isnt|arent|wasnt|werent|never|nowhere) (?:\w+ ){{0,3}}{_STATED}(?=$| (?:{_WHERE})\b)",
            rf"\b{_SOURCES} (?:\w+ ){{0,3}}(?:do not|dont|does not|doesnt|did not|didnt|cannot|lacks?|fails? to)\b",
            rf"\bno (?:such )?{_SOURCES} (?:\w+ ){{0,3}}(?:mentions?|states?|says?|contains?|answers?|gives?|tells?)\b",
            rf"\b(?:none|neither) of (?:\w+ ){{0,2}}{_SOURCES}\b",
            r"\bno (?:\w+ ){0,2}(?:information|mention|answer|details?|data) "
            r"(?:\w+ ){0,2}(?:in|about|on|for|of|to|given|provided|available|found|was|is|that)\b",
            r"\b(?:insufficient|not enough|lack of|too little) (?:information|context|evidence|data|details?)\b",
            r"\b(?:have|ive|has) no (?:idea|clue|information|knowledge)\b",
            rf"\b(?:answer|it|this|that) (?:is|was|remains) {_NOTHING_WORDS}\b",
            rf"^(?:sorry )?{_NOTHING_WORDS}$",
        )
    )
)
_NO_CLAIM = re.compile(
    "|".join(
        (
            r"^(?:im |i am |very |so |but |and )*(?:sorry|unfortunately|apologies|i apologi[sz]e|ok|okay|well|hmm)$",
            rf"^(?:but |and |however |although |though |while )*(?:all |these |those |both |provided |given |above "
            rf"|available |retrieved )*{_SOURCES}\b",
            rf"^(?:based on|according to|from|in|given|having read) (?:\w+ ){{0,3}}{_SOURCES}(?: \w+)?$",
            r"^(?:but |and |however )*(?:please|let me|if you|feel free|would you|could you|do you|can you)\b",
            r"^(?:but |and |however )*(?:i|we|id|ill) (?:can|could|would|will|need|hope|am happy|be happy|suggest)\b"
            r"(?! (?:tell|say|share|guess))",
            r"^(?:but|and|however|although|though|perhaps|maybe)?$",
        )
    )
)
_GUESS_WORDS = (
    r"but|however|although|though|perhaps|maybe|probably|possibly|likely|presumably|(?:my )?(?:best )?guess"
    r"|i(?:'d|\u2019d| would) (?:guess|say)|i (?:think|believe|guess|suppose)|the answer (?:is|might|may|could)"
    r"|it (?:might|may|could) be"
)
_GUESS_START = re.compile(rf"(?:{_GUESS_WORDS})\b", re.IGNORECASE)
_CUT = re.compile(
    r"\n+"
    r"|(?<=[!?;])\s+"
    # A full stop ends a sentence, unless it abbreviates: an initial, a title.
    r"|(?<!\bDr\.)(?<!\bMr\.)(?<!\bSt\.)(?<!\bJr\.)(?<!\bSr\.)(?<!\bMrs\.)(?<!\bProf\.)(?:(?<=\w\w\.)|(?<=\d\.))\s+"
    rf"|[\s,:(-]+(?=(?:{_GUESS_WORDS})\b)",
    re.IGNORECASE,
)


def abstains(text: str) -> bool:
    """Whether any clause of the text says that the answer is not known."""
    return any(_ABSTENTION.search(normalize(clause)) for clause in _clauses(text))


def claim_of(answer: str, permission: Permission) -> str | None:
    """The part of an answer that names something; None when the answer only abstains."""
    clauses = _clauses(answer)
    abstaining = [bool(_ABSTENTION.search(normalize(clause))) for clause in clauses]
    if not any(abstaining):
        return answer
    first = abstaining.index(True)
    claims = [
        clause
        for place, clause in enumerate(clauses)
        if not abstaining[place]
        and not _NO_CLAIM.search(normalize(clause))
        and (place < first or permission == "must_answer" or _GUESS_START.match(clause))
    ]
    return " ".join(claims) or None


def _clauses(text: str) -> list[str]:
    return [stripped for part in _CUT.split(text) if (stripped := part.strip())]
