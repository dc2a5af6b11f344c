"""Stop strings found in a stream are those that a search of the whole text finds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from langport.text.stop import StopStrings

ALPHABET = "ab-]^\n"


def push_all(stops: list[str], pieces: list[str]) -> tuple[list[str], str | None]:
    stop_strings = StopStrings(stops)
    shown = [stop_strings.push(piece) for piece in pieces]
    return [*shown, stop_strings.flush()], stop_strings.matched


def search(stops: list[str], text: str) -> tuple[str, str | None]:
    """The plain meaning: the earliest match, the shorter one of two at the same place."""
    found = [(text.find(stop), len(stop), stop) for stop in stops if stop in text]
    if not found:
        return text, None
    position, _, stop = min(found)
    return text[:position], stop


@given(
    stops=st.lists(st.text(ALPHABET, min_size=1, max_size=5), max_size=4),
    pieces=st.lists(st.text(ALPHABET, max_size=6), max_size=12),
)
def test_equals_searching_the_whole_text(stops: list[str], pieces: list[str]) -> None:
    shown, matched = push_all(stops, pieces)
    assert ("".join(shown), matched) == search(stops, "".join(pieces))


@given(
    stops=st.lists(st.text(ALPHABET, min_size=1, max_size=5), min_size=1, max_size=4),
    text=st.text(ALPHABET, max_size=20),
)
def test_holds_back_only_the_beginning_of_a_stop(stops: list[str], text: str) -> None:
    stop_strings = StopStrings(stops)
    shown = "".join(stop_strings.push(character) for character in text)
    if stop_strings.matched is None and search(stops, text)[1] is None:
        held = text.removeprefix(shown)
        assert not held or any(stop.startswith(held) for stop in stops)


@pytest.mark.parametrize(
    ("stops", "pieces", "shown", "matched"),
    [
        ([], ["a", "b"], ["a", "b", ""], None),
        ([""], ["a"], ["a", ""], None),
        (["END"], ["one E", "N", "D two"], ["one ", "", "", ""], "END"),
        (["END"], ["one E", "N", "X"], ["one ", "", "ENX", ""], None),
        (["\n\n"], ["a\n", "\nb"], ["a", "", ""], "\n\n"),
        (["b", "abc"], ["ab", "x"], ["", "a", ""], "b"),
        (["b", "abc"], ["ab"], ["", "a"], "b"),
        (["b", "abc"], ["ab", "c"], ["", "", ""], "abc"),
        (["ab", "abc"], ["abc"], ["", ""], "ab"),
        (["aab"], ["aa", "ab"], ["", "a", ""], "aab"),
    ],
)
def test_examples(stops: list[str], pieces: list[str], shown: list[str], matched: str | None) -> None:
    assert push_all(stops, pieces) == (shown, matched)


def test_nothing_is_shown_after_a_match() -> None:
    stop_strings = StopStrings(["."])
    assert stop_strings.push("one. two") == "one"
    assert stop_strings.matched == "."
    assert stop_strings.push(" three") == ""
    assert stop_strings.flush() == ""
