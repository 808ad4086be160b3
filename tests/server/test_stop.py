"""Stop strings: what is shown is the text before the first of them, however the text is cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.stop import StopChecker


def shown(pieces: list[str], stops: list[str]) -> tuple[str, bool]:
    checker = StopChecker(stops)
    text = "".join(checker.add(piece, last=index == len(pieces) - 1) for index, piece in enumerate(pieces))
    return text, checker.stopped


@pytest.mark.parametrize(
    ("pieces", "stops", "expected"),
    [
        (["one", " two"], [], ("one two", False)),
        (["one st", "op two"], ["stop"], ("one ", True)),
        (["one s", "top"], ["stop"], ("one ", True)),
        (["one sto"], ["stop"], ("one sto", False)),
        (["ab", "ab", "ac"], ["abac"], ("ab", True)),
        (["x\n", "\ny"], ["\n\n"], ("x", True)),
        (["first second"], ["second", "first"], ("", True)),
    ],
)
def test_examples(pieces, stops, expected):
    assert shown(pieces, stops) == expected


@given(st.text("ab", max_size=24), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), st.data())
def test_any_cut_shows_what_an_uncut_text_would(text, stops, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    pieces = [text[low:high] for low, high in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    checker = StopChecker(stops)
    result, given_out = "", ""
    for index, piece in enumerate(pieces):
        given_out += piece
        result += checker.add(piece, last=index == len(pieces) - 1)
        first = min((place for stop in stops if (place := given_out.find(stop)) >= 0), default=None)
        if first is not None:
            # A stop string that ends later may begin earlier, but only if it is complete as well by now.
            assert result == given_out[:first] if not checker.stopped else len(result) <= first
            break
        assert given_out.startswith(result)
    assert checker.stopped == any(stop in given_out for stop in stops)
    if not checker.stopped:
        assert result == text
