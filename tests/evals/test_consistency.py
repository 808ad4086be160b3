"""Draws put together by what they mean, against tables worked out by hand."""

import math

import pytest
from evals_rows import drawn

from evals.scoring.consistency import Doubt, doubt_of, entropy, same_words


def doubt(answer, *draws, permission="must_answer"):
    return doubt_of("When?", answer, [drawn(text, draw=number) for number, text in enumerate(draws, 1)], permission)


LN2 = math.log(2)


@pytest.mark.parametrize(
    ("answer", "draws", "num_meanings", "agreeing", "nats"),
    [
        ("1985", ["1985", "In 1985.", "The answer is 1985", "1985!"], 1, 1, 0),
        ("1985", ["1985", "1985", "1986", "1986"], 2, 0.5, LN2),
        ("1985", ["1986", "1987", "1988", "1989"], 4, 0, math.log(4)),
        # Shares of 1/2, 1/4 and 1/4: 1.5 bits.
        ("Ann", ["Ann", "Ann", "Bob", "Cleo"], 3, 0.5, 1.5 * LN2),
        # 3/4 and 1/4: ln 4 - 3/4 ln 3.
        ("Bob", ["Ann", "Ann", "Ann", "Bob"], 2, 0.25, math.log(4) - 0.75 * math.log(3)),
        # The greedy answer is no draw: it adds no meaning.
        ("Dan", ["Ann", "Ann", "Ann", "Ann"], 1, 0, 0),
        # "Paris, France" holds "Paris"; "no" stands in "no record" and is no answer of it.
        ("Paris", ["Paris, France", "paris", "Rome", "the Rome"], 2, 0.5, LN2),
        ("No", ["There is a record of no man", "no", "No, never", "The answer is no"], 2, 0.75, entropy([0.75, 0.25])),
    ],
)
def test_meanings(answer, draws, num_meanings, agreeing, nats):
    found = doubt(answer, *draws)
    assert (found.num_draws, found.num_meanings, found.self_consistency) == (4, num_meanings, agreeing)
    assert found.semantic_entropy == pytest.approx(nats, abs=1e-12)
    assert math.copysign(1, found.semantic_entropy) == 1
    assert found.weighted_entropy is None


def test_abstentions_are_one_meaning_and_so_is_nothing_at_all():
    found = doubt("I don't know.", "I am not sure", "The documents do not say.", "", " ?!", "1985")
    assert (found.num_meanings, found.self_consistency, found.abstaining) == (3, 0.4, 0.4)
    assert found.semantic_entropy == pytest.approx(entropy([0.4, 0.4, 0.2]))
    # Where an answer must be given, what follows the abstention is one.
    assert doubt("1985", "I don't know. 1985", "1985").num_meanings == 1


def test_probabilities_weigh_meanings():
    """By hand: two draws of 1985 with a chance of .5 for each token, one of 1986 with .25. 1 / 1.25 and .25 / 1.25."""
    half, quarter = math.log(0.5), math.log(0.25)
    told = (("1985", 4, half), ("in 1985", 6, half), ("1986", 2, quarter))
    draws = [drawn(text, logprob=tokens * each, logprob_tokens=tokens) for text, tokens, each in told]
    found = doubt_of("When?", "1986", draws, "must_answer")
    assert found.weighted_entropy == pytest.approx(-0.8 * math.log(0.8) - 0.2 * math.log(0.2))
    assert found.semantic_entropy == pytest.approx(entropy([2 / 3, 1 / 3]))
    # One draw without its own probability, and there is no distribution.
    assert doubt_of("When?", "1986", [*draws, drawn("1986")], "must_answer").weighted_entropy is None


def test_of_one_draw_no_entropy_is_known():
    assert doubt("1985", "1986") == Doubt(1, 1, 0.0, None, None, 0.0)
    assert doubt("1985") is None


def test_meaning_can_be_told_by_something_else():
    asked = []

    def same_century(question, first, second):
        asked.append(question)
        return first[:2] == second[:2]

    draws = [drawn(text, draw=number) for number, text in enumerate(["1901", "1985", "2001", "I don't know"])]
    found = doubt_of("When?", "1950", draws, "must_answer", same_century)
    assert (found.num_meanings, found.self_consistency) == (3, 0.5)
    assert set(asked) == {"When?"}


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("U.S.", "US", True),
        ("He told us", "US", False),
        ("1905", "5", False),
        ("Beyoncé", "beyonce", True),
        ("hepatitis A", "hepatitis B", False),
    ],
)
def test_words_that_mean_the_same(first, second, same):
    assert same_words("Who?", first, second) is same
    assert same_words("Who?", second, first) is same
