"""Normalisation and containment against tables worked out by hand."""

import pytest

from evals.scoring.lexical import contains, find_accepted, gives, has_run
from evals.scoring.normalize import normalize, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("   \n\t ", ""),
        ("?!...", ""),
        ("The Eiffel Tower", "eiffel tower"),
        ("an  apple, a day\n", "apple day"),
        ("Theatre anthem", "theatre anthem"),
        ("well-known", "well known"),
        ("snake_case", "snake case"),
        ("1914-1918", "1914 1918"),
        ("1914\u20131918", "1914 1918"),
        ("in 1985.", "in 1985"),
        ("the 1980s", "1980s"),
        ("3.5", "3.5"),
        ("35", "35"),
        ("1,000,000", "1000000"),
        ("1,2,3", "1 2 3"),
        ("in 1985,200 people", "in 1985 200 people"),
        ("-5", "-5"),
        ("\u22125 degrees", "-5 degrees"),
        ("- 5", "5"),
        ("5%", "5 percent"),
        ("AT&T", "at and t"),
        ("Beyonc\u00e9", "beyonce"),
        ("Beyonce\u0301", "beyonce"),
        ("Stra\u00dfe", "strasse"),
        ("\uff11\uff19\uff18\uff15", "1985"),
        ("o\ufb03ce", "office"),
        ("\u201cParis\u201d", "paris"),
        ("Don't", "dont"),
        ("don\u2019t", "dont"),
        ("O'Brien", "obrien"),
        ("Austen's novel", "austen novel"),
        ("the Beatles' song", "beatles song"),
        ("U.S.", "us"),
        ("the U.S.A. team", "usa team"),
        ("J. K. Rowling", "jk rowling"),
        ("J.K. Rowling", "jk rowling"),
        ("John F. Kennedy", "john f kennedy"),
        ("hepatitis A", "hepatitis a"),
        ("A", "a"),
        ("A. Smith", "a smith"),
        ("A+ and C++, not C#.", "a+ and c++ not c#"),
        ("1+1", "1 1"),
        ("Anaya\u2076, 10\u00b2", "anaya 6 10 2"),
        ("CO\u2082", "co2"),
        ('the "Times"', "times"),
        ("the a b", "b"),
        ("\u6771\u4eac\u3067\u3059", "\u6771 \u4eac \u3067 \u3059"),
        ("\u0939\u093f\u0928\u094d\u0926\u0940", "\u0939\u093f\u0928\u094d\u0926\u0940"),
        ("\u041c\u043e\u0441\u043a\u0432\u0430", "\u043c\u043e\u0441\u043a\u0432\u0430"),
    ],
)
def test_normalised_text(text, expected):
    assert normalize(text) == expected


@pytest.mark.parametrize("text", ["The caf\u00e9's 1,234.5 U.S. dollars", "A", "3.50%", "J.K. O'Neil-Smith's -7"])
def test_normalising_twice_changes_nothing(text):
    assert normalize(normalize(text)) == normalize(text)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("1985", "1985"),
        ("He was born in 1985, in Paris.", "1985"),
        ("born 1985-86", "1985"),
        ("It was The Beatles who wrote it", "Beatles"),
        ("It was Beatles who wrote it", "the Beatles"),
        ("Saint-\u00c9tienne, France", "saint etienne"),
        ("the hepatitis A virus", "hepatitis A"),
        ("Jane Austen\u2019s", "Jane Austen"),
        ("the US government", "U.S."),
        ("about 12,500 people", "12500"),
        ("Yes, it is.", "yes"),
        ("No.", "no"),
        ("A", "a"),
        ("A. Smith", "a smith"),
        ("A+ and C++, not C#.", "a+ and c++ not c#"),
        ("1+1", "1 1"),
        ("Anaya\u2076, 10\u00b2", "anaya 6 10 2"),
        ("CO\u2082", "co2"),
        ('the "Times"', "times"),
        ("the a b", "b"),
        ("The Who", "the who"),
        ("\u305d\u308c\u306f\u6771\u4eac\u3067\u3059", "\u6771\u4eac"),
        ("winner: Ana\nbecause she said so", "Ana"),
        ("The answer is yes", "yes"),
        ("I think the answer is no.", "No"),
        ("My best guess: yes", "yes"),
        ("the U. S. government", "US"),
        ("It was the u.s.", "U.S."),
        ("us", "U.S."),
        ("the US's army", "U.S."),
        ("US-born", "US"),
        ("told us", "us"),
        ("It", "It"),
        ("it", "It"),
        ("The book is It.", "It"),
        ("\u201cIt\u201d is by King", "It"),
        ("It, by King", "It"),
        ("a song by the who", "The Who"),
        ("Who", "The Who"),
        ("ana", "Ana"),
        ("nasa did", "NASA"),
    ],
)
def test_contained(text, answer):
    assert contains(text, answer)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("1905", "5"),
        ("19850", "1985"),
        ("the 1980s", "1980"),
        ("3.5", "3"),
        ("-5", "5"),
        ("12,500", "500"),
        ("Parisian", "Paris"),
        ("Comparison", "Paris"),
        ("hepatitis B", "hepatitis A"),
        ("New Jersey", "New York"),
        ("York, New", "New York"),
        ("There is no record", "no"),
        ("Indeed, yes", "yes"),
        ("It is no secret", "no"),
        ("The answer is Nobel", "no"),
        ("He told us that", "U.S."),
        ("He told us that", "US"),
        ("It is cold", "IT"),
        ("It is cold", "It"),
        ("It's cold", "It"),
        ("He said: it is cold", "It"),
        ('He said: "It is cold"', "It"),
        ("Well. It is cold\nIt was cold", "It"),
        ("the man who sold it", "The Who"),
        ("group o", "O"),
        ("a dog", "A"),
        ("a dog", "A+"),
        ("AB+", "A+"),
        ("", "Paris"),
        ("Paris", ""),
        ("Paris", "?!"),
        ("...", "Paris"),
    ],
)
def test_not_contained(text, answer):
    assert not contains(text, answer)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("There are three lines.", "3"),
        ("It has 7 neighbours", "seven"),
        ("twenty-one days", "21"),
        ("two hundred and five people", "205"),
        ("about 2.5 million of them", "2,500,000"),
        ("one million people", "1000000"),
        ("It costs 950.00 pesos", "950"),
        ("in the 20th century", "the twentieth century"),
        ("on June 19, 2018", "19 June 2018"),
        ("the 19th of June, 2018", "June 19, 2018"),
        ("on Sept. 21st, 2016", "September 21, 2016"),
        ("on June 23, 1991", "June 1991"),
        ("on July 6, 2017", "July 2017"),
        ("up to 12.65 meters long", "12.65\u00a0m"),
        ("100 ft", "100 feet"),
        ("It is the cell.", "cells"),
        ("Sedimentary rocks are formed", "sedimentary rock"),
        ("large bodies of water", "body of water"),
        ("a nonpartisan organization", "non-partisan"),
        ("the super-market", "supermarket"),
        ("the colour of grey metre-high theatres", "color of gray meter high theater"),
        ("in the U.S. Senate", "United States Senate"),
        ("the United States of America", "USA"),
        ("around 3000 BCE", "c. 3000 BC"),
        ("Mt. Everest", "Mount Everest"),
        ("May", "usually in May"),
        ("season two", "in season 2"),
        ("attributed to James Marshall", "James W. Marshall"),
        ("Joseph N. Welch, a lawyer", "Joseph Nye Welch"),
        ("Kirstjen M. Nielsen did", "Kirstjen Nielsen"),
    ],
)
def test_said_otherwise(text, answer):
    assert not contains(text, answer)
    assert gives(text, answer)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("one of the largest", "1"),
        ("at number 741 for 741 weeks", "a week"),
        ("born in 2002", "November 25, 2002"),
        ("on June 19, 2018", "June 18, 2018"),
        ("on June 19, 2018", "19 July 2018"),
        ("on June 23, 1992", "June 1991"),
        ("May 12", "1 May 2"),
        ("Robin Williams", "Robin William"),
        ("Peters", "Peter"),
        ("the 1985s", "1985"),
        ("nineteen eighty-five", "1985"),
        ("twenty or thirty", "50"),
        ("two hundred", "2"),
        ("1 985", "1985"),
        ("partisan", "non-partisan"),
        ("superb owl", "bowl"),
        ("George H. W. Bush", "George W. Bush"),
        ("John Quincy Adams", "John Adams"),
        ("Mary Ann Evans", "Mary Jane Evans"),
        ("South West Africa", "South Africa"),
        ("a dozen", "12"),
        ("told us", "the U.S."),
        ("2.5 million", "5 million"),
        ("5 m", "5 miles"),
        ("", "cells"),
    ],
)
def test_not_said_otherwise(text, answer):
    assert not gives(text, answer)


def test_the_accepted_answer_is_given_as_the_dataset_writes_it():
    assert find_accepted("it was the u.s.", ("France", "U.S.", "us")) == "U.S."
    assert find_accepted("Spain", ("France", "U.S.")) is None
    assert find_accepted("Spain", ()) is None


def test_a_run_is_consecutive_and_whole():
    assert has_run(("b", "c"), ("a", "b", "b", "c"))
    assert not has_run(("a", "c"), ("a", "b", "c"))
    assert not has_run(("a", "b"), ("a",))
    with pytest.raises(ValueError, match="empty run"):
        has_run((), ("a",))


def test_words_keep_the_articles():
    assert words("The end of an era") == ("the", "end", "of", "an", "era")
