"""Whether a model says the same thing again: draws to one prompt, put together by what they mean.

Nobody needs to know the right answer for it. Answers mean the same if the claim of one contains that of the other, word
by word; all that only abstain mean the same, and so do all without a single word. Whoever has something better, such as
entailment both ways, gives it as `same_meaning`.

An answer is compared with the first of each meaning, in the order of the draws, as in S. Farquhar et al., Nature 630
(2024), 625-630; the greedy answer comes first of all, and is no draw.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from evals.records import Draw, Permission
from evals.scoring.abstention import claim_of
from evals.scoring.lexical import contains
from evals.scoring.normalize import normalize, words

SameMeaning = Callable[[str, str, str], bool]  # the question and two claims
MAX_CACHED_TEXTS = 1 << 16
ABSTAINS, SAYS_NOTHING = "abstains", "says nothing"


@dataclass(frozen=True, slots=True)
class Doubt:
    """What the draws to one prompt tell of its greedy answer.

    self_consistency: the share of draws that mean what the answer means. semantic_entropy: in nats, over the shares of
    the draws' meanings. weighted_entropy: over their probabilities instead; None unless every draw has its own. Of a
    single draw neither entropy is known. abstaining: the share of draws that only abstain.
    """

    num_draws: int
    num_meanings: int
    self_consistency: float
    semantic_entropy: float | None
    weighted_entropy: float | None
    abstaining: float


def same_words(_: str, first: str, second: str) -> bool:
    """Whether the claim of one contains that of the other."""
    spoken, other = _spoken(first), _spoken(second)
    # Most differ, and that is cheap to see; the rest is left to what knows "no" from "no record" and "US" from "us".
    if spoken == other:
        return True
    if other in spoken:
        return contains(first, second)
    return spoken in other and contains(second, first)


def doubt_of(
    question: str,
    answer: str,
    draws: Sequence[Draw],
    permission: Permission,
    same_meaning: SameMeaning = same_words,
) -> Doubt | None:
    """None without draws; those that failed must not be among them."""
    if not draws:
        return None
    said = [_meaning(text, permission) for text in (answer, *(draw.answer for draw in draws))]
    own, *others = meanings(question, said, same_meaning)
    shares = _shares(others, [1.0] * len(draws))
    chances = [chance for chance in map(_chance, draws) if chance is not None]
    several, all_known = len(draws) > 1, len(chances) == len(draws)
    return Doubt(
        num_draws=len(draws),
        num_meanings=len(shares),
        self_consistency=others.count(own) / len(draws),
        semantic_entropy=entropy(shares) if several else None,
        weighted_entropy=entropy(_shares(others, chances)) if several and all_known else None,
        abstaining=said[1:].count((ABSTAINS, "")) / len(draws),
    )


Said = tuple[str, str]  # ABSTAINS or SAYS_NOTHING, or nothing of the kind and the claim


@lru_cache(maxsize=MAX_CACHED_TEXTS)
def _meaning(answer: str, permission: Permission) -> Said:
    if not words(answer):
        return SAYS_NOTHING, ""
    claim = claim_of(answer, permission)
    return (ABSTAINS, "") if claim is None else ("", claim)


def meanings(question: str, said: Sequence[Said], same_meaning: SameMeaning) -> list[int]:
    """The number of each one's meaning, from 0 on, in the order in which they first occur."""
    first: list[Said] = []
    numbers: dict[Said, int] = {}
    for one in said:
        if one not in numbers:
            found = (number for number, other in enumerate(first) if _agree(question, one, other, same_meaning))
            numbers[one] = next(found, len(first))
            if numbers[one] == len(first):
                first.append(one)
    return [numbers[one] for one in said]


def _agree(question: str, one: Said, other: Said, same_meaning: SameMeaning) -> bool:
    (kind, claim), (other_kind, other_claim) = one, other
    # Two of one kind without a claim are equal, and never come here.
    return not kind and not other_kind and same_meaning(question, other_claim, claim)


def _shares(numbers: Sequence[int], weights: Sequence[float]) -> list[float]:
    """Of each meaning that occurs, what part of the whole weight it has."""
    sums: dict[int, list[float]] = {}
    for number, weight in zip(numbers, weights, strict=True):
        sums.setdefault(number, []).append(weight)
    whole = math.fsum(weights)
    return [math.fsum(members) / whole for members in sums.values()]


def entropy(shares: Sequence[float]) -> float:
    """-sum p ln p, in nats; a share of 0 adds nothing.

    Source: over shares of draws, the discrete semantic entropy of Farquhar et al. (2024), Methods; over probabilities
    p(C) = sum of p(s) of the draws s in C, divided by that of all draws, its eq. (5), which replaces the mean of
    -ln p(C) over draws by its expectation (Rao-Blackwell).
    """
    # Without the maximum a single meaning would have an entropy of -0.
    return max(0.0, -math.fsum(share * math.log(share) for share in shares if share > 0))


def _chance(draw: Draw) -> float | None:
    """A draw's probability, normalised by its length: the geometric mean of its tokens' probabilities."""
    if draw.logprob is None or not draw.logprob_tokens:
        return None
    return math.exp(draw.logprob / draw.logprob_tokens)


@lru_cache(maxsize=MAX_CACHED_TEXTS)
def _spoken(text: str) -> str:
    return f" {normalize(text)} "
