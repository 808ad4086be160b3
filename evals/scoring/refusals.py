"""The phrases by which a clause says that the answer is not known, and those by which it claims nothing.

It knows one clause at a time and no accepted answer; how an answer is cut into clauses and what is left of it is
evals.scoring.abstention's. Each phrase is as narrow as real answers made of the same words demand ("The Unknown
Soldier", "Don't Know Why", "There is nothing like a dame").
"""

import re

from evals.scoring.normalize import fold, normalize

# Not "Articles of Confederation", "article 56".
_SOURCES = (
    r"(?:documents?|passages?|context|texts?|sources?|information|excerpts?|articles?(?! of\b| \d)|paragraphs?"
    r"|snippets?)"
)
_DETERMINED = (
    r"(?:(?:any|all) of )?"
    r"(?:(?:any|all|these|those|this|that|my|your|our|such|further|more|enough|sufficient|provided|given|above"
    r"|available|retrieved|supplied|attached|relevant|other|single) ){0,3}"
)
_CANNOT = r"(?:can not|could not|unable to|not able to|not possible to|impossible to)"
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
# The present tense: "based on the text provided, no ..." says something else.
_SAYS = (
    r"(?:says?|said|mentions?|states?|tells?|contains?|gives?|gave|provides?|reveals?|offers?|includes?|shows?|lists?"
    r"|specif(?:y|ies)|indicates?)"
)
_PROVIDE = r"(?:provided?|given?|gave|shared?|supply|supplied|attach(?:ed)?|include|upload(?:ed)?|shown?|sen[dt]|add)"
_KNOWLEDGE = (
    rf"(?:{_SOURCES}|answers?|details?|data|knowledge|mention|references?|records?|access|evidence|indication|clue)"
)
# What may follow "not given": "in the documents", not "to the federal government".
_WHERE = r"in|by|within|from|anywhere|here|at|about|for|when|where|who|what|which|how|and|so|there|explicitly|directly"
# Where a phrase may end: at the end of the clause, or before what it speaks of. Not "unknown pleasures".
_AFTER = (
    rf"(?=$| ,| (?:{_WHERE}|why|that|this|it|whether|if|to|since|because|as|given|based|due|with|without|yet|exactly"
    r"|precisely|on|of|regarding|concerning|currently|available|provided|found)\b)"
)
# Not "Don't Wanna Know", "not well known".
_HARDLY = r"(?:(?:\w+ly|even|yet|quite) )?"
_UNKNOWN = (
    r"(?:unknown|unclear|uncertain|unspecified|undetermined|undisclosed|unrecorded|unanswerable"
    rf"|not {_HARDLY}(?:known|clear|certain))"
)
_NOTHING_WORDS = (
    r"(?:unknown|unanswerable|unspecified|undetermined|undisclosed|n a|na|none|no answer|no idea|no clue|not sure"
    r"|unsure|not known|not clear|unclear|uncertain|insufficient information|not available|not applicable"
    r"|no information|idk|do not know)"
)

# Matched anywhere in a clause as `_spoken` gives it: lower case, no articles, no punctuation, "don't" is "do not".
_ANYWHERE = re.compile(
    "|".join(
        (
            rf"\b(?:i|we) (?:\w+ )?(?:do|did|would) not {_HARDLY}(?:know|recall|remember)\b",
            rf"\b(?:i|we) (?:\w+ )?(?:do|did|can|could) not (?:\w+ )?(?:have|see|find) (?:\w+ ){{0,4}}{_KNOWLEDGE}\b",
            r"\b(?:i|we) do not (?:think|believe) (?:that )?(?:i|we) (?:know|can)\b",
            r"\b(?:i am|we are) (?:\w+ )?(?:not (?:\w+ )?(?:sure|certain|aware)|unsure|uncertain|unaware)\b",
            rf"\b(?:i|we) (?:am |are )?(?:\w+ )?{_CANNOT} (?:\w+ )?{_LEARN}\b",
            rf"\b{_CANNOT} (?:\w+ )?be (?:\w+ )?{_LEARNT}\b",
            rf"\bit (?:is |was )?{_CANNOT} (?:\w+ )?{_LEARN}\b",
            # Not "I Still Haven't Found What I'm Looking For".
            rf"\b(?:(?<!can )not|never|nowhere) (?:\w+ ){{0,3}}(?!found what\b){_STATED}(?=$| (?:{_WHERE})\b)",
            rf"\b(?:not|never|nowhere) (?:\w+ )?(?:in|within|among|part of) {_DETERMINED}{_SOURCES}\b",
            rf"\b{_SOURCES} (?:\w+ ){{0,3}}(?:(?:do|does|did|can|could) not|lacks?|fails? to|(?:is|are) silent)\b",
            rf"\b{_SOURCES} (?:\w+ ){{0,3}}{_SAYS} (?:\w+ )?nothing{_AFTER}",
            # Not "The text says no": that answers a question.
            rf"\b{_SOURCES} (?:\w+ ){{0,3}}(?!says?\b|said\b|states?\b|tells?\b){_SAYS} no (?=\w)",
            rf"\b{_SOURCES} (?:\w+ ){{0,3}}ha(?:s|ve) no (?:\w+ ){{0,3}}{_KNOWLEDGE}\b",
            rf"\bno (?:such )?{_SOURCES} (?:\w+ ){{0,3}}(?:mentions?|states?|says?|contains?|answers?|gives?|tells?)\b",
            rf"\b(?:none|neither) of (?:\w+ ){{0,2}}{_SOURCES}\b",
            r"\bno (?:\w+ ){0,2}(?:information|mention|answer|details?|data) "
            r"(?:\w+ ){0,2}(?:in|about|on|for|of|to|given|provided|available|found|was|is|that)\b",
            r"\b(?:insufficient|not enough|lack of|too little) (?:information|context|evidence|data|details?)\b",
            r"\b(?:have|has) no (?:idea|clue|information|knowledge)\b",
            rf"\b(?:i|we) (?:\w+ )?have no (?:\w+ ){{0,4}}{_KNOWLEDGE}\b",
            rf"\b(?:i|we) (?:\w+ )?need (?:\w+ ){{0,3}}(?:{_SOURCES}|details)\b",
            r"\bno way (?:to|of) (?:know|tell|say|answer|determin)\w*\b",
            r"\bthere (?:is|was) nothing (?:\w+ ){0,3}(?:about|regarding|concerning)\b",
            rf"\bnothing (?:\w+ ){{0,4}}(?:in|within) {_DETERMINED}{_SOURCES}\b",
            r"\b(?:i|we) (?:\w+ )?(?:know|see|saw|find|found|have) nothing (?:\w+ )?(?:about|on|of|in|regarding)\b",
            rf"\byou (?:\w+ )?(?:have|did|do) not (?:\w+ )?{_PROVIDE} (?:\w+ ){{0,4}}(?:{_SOURCES}|question)\b",
            rf"\b(?:i|we) (?:have|was|were|am|are) not (?:\w+ )?(?:been )?{_PROVIDE} (?:\w+ ){{0,4}}{_SOURCES}\b",
            rf"\b(?:answer|it|this|that) (?:is|was|remains) (?:{_UNKNOWN}|{_NOTHING_WORDS}){_AFTER}",
            rf"\b(?:answer|information|details?) (?:is|are|was|were) (?:missing|absent|lacking){_AFTER}",
        )
    )
)
# Matched from the beginning of a clause, its commas kept as words: what one of them parts is no longer its subject.
_FROM_THE_START = re.compile(
    "|".join(
        (
            rf"^(?:sorry |answer |final answer )*{_NOTHING_WORDS}$",
            rf"^(?:sorry )?{_CANNOT} (?:\w+ )?{_LEARN}\b",
            rf"^(?:sorry )?(?:do|did|can|could) not {_HARDLY}know"
            r"(?=$| (?:that|this|it|whether|if|when|where|who|what|which|about)\b)",
            r"^(?:nobody|no one) (?:\w+ )?knows?"
            r"(?=$| (?:for|exactly|whether|if|when|where|who|what|which|that|this)\b)",
            r"^who knows$",
            rf"^(?:there (?:is|are|was|were|seem to be|appear to be) (?:no|not any|not enough)|no) {_DETERMINED}"
            rf"{_SOURCES}(?! of\b)(?: (?:(?:is|are|was|were|has been|have been) )?(?:{_PROVIDE}|{_STATED})\b|{_AFTER})",
            rf"^there (?:is|are|was|were) (?:no|not any|not enough) (?:\w+ )?"
            rf"(?:answers?|information|mention|details?|data|records?){_AFTER}",
            rf"^nothing (?:is|was) (?:\w+ )?(?:known|mentioned|stated|said|given|specified){_AFTER}",
            r"^(?:it|they) (?:do|does|did) not (?:\w+ )?(?:say|state|mention|specify|indicate)\b",
            r"^(?:\w+ ){0,3}(?:please|can you|could you|would you) (?:please )?"
            rf"{_PROVIDE} (?:\w+ ){{0,5}}(?:{_SOURCES}|question|details)\b",
            rf"^(?:if|once|when) you (?:can )?{_PROVIDE} .*\b(?:i|we) (?:can|could|will|would|may)\b",
            # "Her birth year is unknown"; neither "a soldier whose name is unknown", nor a verb and then "and".
            r"^(?!(?:\w+ ){1,8}whose )(?!(?:\w+ ){0,8}(?:is|are|was|were|has|had) (?:\w+ ){0,8}and )"
            r"(?:\w+ ){1,8}(?<!that )(?<!which )(?<!who )"
            rf"(?:is|are|was|were|remains?) (?!not un)(?:\w+ )?{_UNKNOWN}"
            rf"(?=$| ,| (?:to (?:me|us)|from|based|given|as|because|since|so|in {_DETERMINED}{_SOURCES})\b)",
        )
    )
)
_EXCUSE = r"^(?:i am |very |so |but |and )*(?:sorry|unfortunately|apologies|i apologi[sz]e|ok|okay|well|hmm)$"
_BASED_ON = rf"^(?:based on|according to|from|in|given|having read) (?:\w+ ){{0,3}}{_SOURCES}(?: \w+)?$"
_INTRODUCTION = re.compile(
    rf"{_EXCUSE}|{_BASED_ON}|^as an? (?:\w+ ){{0,3}}(?:ai|model|assistant)$|^(?:as )?(?:for|to) \w"
)
_NO_CLAIM = re.compile(
    "|".join(
        (
            _EXCUSE,
            _BASED_ON,
            rf"^(?:but |and |however |although |though |while )*(?:all |these |those |both |provided |given |above "
            rf"|available |retrieved )*{_SOURCES}\b",
            r"^(?:they|it) (?:only |just |merely |mostly )?"
            r"(?:mentions?|describes?|discuss(?:es)?|talks?|lists?|covers?)\b",
            r"^(?:but |and |however )*(?:please|let me|feel free|if you(?! (?:are|were|mean|meant|refer)\b)"
            r"|(?:would|could|do|can) you|you (?:may|might|can|could|should))\b",
            r"^(?:but |and |however )*(?:i|we|id|ill) (?:can|could|would|will|need|hope|am happy|be happy|suggest)\b"
            r"(?! (?:tell|say|share|guess))",
            r"^it (?:is|would be) (?:best|recommended|advisable|helpful) (?:to|if)\b",
            r"^(?:but|and|however|although|though|perhaps|maybe)?$",
        )
    )
)
_SHORT_FORMS = {"m": "am", "re": "are", "ve": "have", "d": "would", "ll": "will", "s": "is"}
# Only a pronoun's "'s", or one before a denial, is "is": all others are possessive.
_SHORT = re.compile(
    r"'(m|re|ve|d|ll)\b|(?:(?<=\bit)|(?<=\bthat)|(?<=\bthere)|(?<=\bthis)|(?<=\bhe)|(?<=\bshe))'(s)\b"
    r"|(?<=\w)'(s)(?=\s+(?:not|unknown|unclear|uncertain|unspecified|impossible)\b)"
)
_DENIED = re.compile(r"\b(do|does|did|is|are|was|were|have|has|had|could|would|should)nt\b|\bca(?:n|nno)t\b")
_TYPED_SHORT = {"im": "i am", "ive": "i have"}


def refuses(clause: str) -> bool:
    """Whether a clause says, anywhere in it, that the answer is not known."""
    parts = [_spoken(part) for part in clause.split(", ")]
    # "According to the text, she did not marry": without its introduction it is not the text that does not.
    while len(parts) > 1 and _INTRODUCTION.search(parts[0]):
        del parts[0]
    return bool(_ANYWHERE.search(" ".join(parts)) or _FROM_THE_START.search(" , ".join(parts)))


def claims_nothing(clause: str) -> bool:
    """Whether a clause that stands beside a refusal only excuses itself, speaks of the documents or offers help."""
    return bool(_NO_CLAIM.search(_spoken(clause)))


def _spoken(clause: str) -> str:
    """A clause normalised, with its short forms written out: "It's unclear" is "it is unclear", "can't" "can not"."""
    whole = _SHORT.sub(lambda short: " " + _SHORT_FORMS[short[1] or short[2] or short[3]], fold(clause))
    typed = " ".join(_TYPED_SHORT.get(word, word) for word in normalize(whole).split())
    return _DENIED.sub(lambda verb: f"{verb[1]} not" if verb[1] else "can not", typed)
