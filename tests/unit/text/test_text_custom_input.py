"""The input of a custom tool out of the arguments of a call, however these come."""

from __future__ import annotations

import pytest

from langport.text.custom_input import CustomInputReader


def read(arguments: str, cut: int, *, is_whole: bool = True) -> str:
    reader = CustomInputReader()
    pieces = [reader.push(arguments[at : at + cut]) for at in range(0, len(arguments), cut)]
    return "".join(pieces) + (reader.end() if is_whole else "")


@pytest.mark.parametrize("cut", [1, 2, 3, 5, 1000])
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ('{"input": "a\\nb \\"c\\" \\u00e9 é"}', 'a\nb "c" é é'),
        ('{ "input" : "" }', ""),
        ('{"input": "\\ud83d\\ude00!"}', "😀!"),
        ('{"input": "\\ud83d!", "more": 1}', "\ufffd!"),
        ('{"input": "a \\q"}', "a \\q"),
        ('{"code": "print(1)"}', "print(1)"),
        ('{"input": {"a": 1}}', '{"a": 1}'),
        ('{"a": 1, "b": 2}', '{"a": 1, "b": 2}'),
        ("{}", "{}"),
        ("{not JSON}", "{not JSON}"),
    ],
)
def test_the_input_is_read_however_it_is_cut(arguments: str, expected: str, cut: int) -> None:
    assert read(arguments, cut) == expected


@pytest.mark.parametrize("cut", [1, 1000])
def test_what_a_cut_call_had_of_it(cut: int) -> None:
    assert read('{"input": "ab\\n\\u00', cut, is_whole=False) == "ab\n"
    assert read('{"inp', cut, is_whole=False) == ""


def test_it_comes_as_it_is_written() -> None:
    reader = CustomInputReader()
    assert [reader.push(piece) for piece in ('{"input": "', "ab", "c\\", 'n"', "}")] == ["", "ab", "c", "\n", ""]
