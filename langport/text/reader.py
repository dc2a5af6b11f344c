"""The text of an answer while it arrives, for readers of it that are written as plain generators.

A reader is a generator that takes text from an `AnswerReader` and gives deltas to it. Where it needs more text
than there is, it yields; what it decides depends on the text alone, never on how it was cut. Until a reader is
sure, it consumes nothing that it could not give back with `go_back`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

from langport.text.answer import (
    AnswerDelta,
    ReasoningDelta,
    TextDelta,
    ToolCallBegin,
    ToolCallDelta,
    ToolCallEnd,
    tool_call_id,
)

T = TypeVar("T")
Reading = Generator[None, None, T]

_SPACE = " \t\r\n"
_STRUCTURE = re.compile(r'["\\{}\[\]]|[^\s,:\w.+\-]')
"""What matters in JSON outside strings: its brackets and quotes, and characters that cannot stand there."""
_STRING_END = re.compile(r'["\\]')
_SCALAR_END = re.compile(r"[\s,}\]]")


class Markers:
    """Literals to look for in a text that arrives in pieces, together with the white space before them."""

    def __init__(self, literals: Sequence[str]) -> None:
        self.literals = tuple(sorted(set(literals), key=len, reverse=True))
        self._longest = max(map(len, self.literals), default=0)
        alternatives = "|".join(map(re.escape, self.literals))
        self._pattern = re.compile(rf"\s*(?:{alternatives})") if self.literals else None

    def find(self, text: str, start: int) -> tuple[int, int] | None:
        """Where the first one begins, its white space included, and ends."""
        match = self._pattern.search(text, start) if self._pattern else None
        return None if match is None else match.span()

    def held_from(self, text: str, start: int) -> int:
        """Where the part of the text begins that more text could make a marker; its length when there is none."""
        end = len(text)
        if not self.literals:
            return end
        for position in range(max(start, end - self._longest + 1), end):
            if any(literal.startswith(text[position:]) for literal in self.literals):
                end = position
                break
        while end > start and text[end - 1].isspace():
            end -= 1
        return end


class AnswerReader:
    """An `AnswerParser` that runs a reader."""

    def __init__(self, read: Callable[[AnswerReader], Reading[None]]) -> None:
        self.is_ended = False
        self._text = ""
        self._at = 0
        """Where the reader stands in `_text`."""
        self._num_dropped = 0
        """Characters that were read and stand no more in `_text`."""
        self.reasoning_end: int | None = 0
        """Characters of the answer up to the end of its reasoning; None while that goes on."""
        self._deltas: list[AnswerDelta] = []
        self._num_calls = 0
        self._steps = read(self)

    # An `AnswerParser`.

    def push(self, text: str) -> Sequence[AnswerDelta]:
        self._text += text
        return self._advance()

    def end(self) -> Sequence[AnswerDelta]:
        self.is_ended = True
        return self._advance()

    def _advance(self) -> Sequence[AnswerDelta]:
        next(self._steps, None)
        deltas, self._deltas = self._deltas, []
        return deltas

    # What readers give.

    def begin_call(self, name: str) -> None:
        self._deltas.append(ToolCallBegin(self._num_calls, tool_call_id(), name))
        self._num_calls += 1

    def argue(self, text: str) -> None:
        """More of the arguments of the latest call."""
        if text:
            self._deltas.append(ToolCallDelta(self._num_calls - 1, text))

    def end_call(self) -> None:
        """The arguments of the latest call are whole."""
        self._deltas.append(ToolCallEnd(self._num_calls - 1))

    def call(self, name: str, arguments: str) -> None:
        """A whole call."""
        self.begin_call(name)
        self.argue(arguments)
        self.end_call()

    def show(self, end: int) -> None:
        """The text from here up to the position `end` is for the user."""
        start = self.position
        if text := self._take(end):
            self._deltas.append(TextDelta(text, start))

    def reason(self, end: int) -> None:
        """The text from here up to the position `end` is reasoning."""
        if text := self._take(end):
            self._deltas.append(ReasoningDelta(text))

    def _take(self, end: int) -> str:
        start, self._at = self._at, max(self._at, end - self._num_dropped)
        return self._text[start : self._at]

    # Where they stand.

    @property
    def position(self) -> int:
        """Characters of the answer before the next one to be read."""
        return self._num_dropped + self._at

    def go_back(self, position: int) -> None:
        """Stand where one stood before, if nothing was `let_go` since."""
        self._at = position - self._num_dropped

    def let_go(self) -> None:
        """Forget what was read."""
        self._text = self._text[self._at :]
        self._num_dropped += self._at
        self._at = 0

    def skip(self, length: int) -> None:
        self._at += length

    # What they take.

    def rest(self) -> str:
        """All there is."""
        return self._take(self._num_dropped + len(self._text))

    def peek(self) -> Reading[str]:
        """The next character, "" at the end."""
        while self._at >= len(self._text) and not self.is_ended:
            yield
        return self._text[self._at : self._at + 1]

    def spaces(self) -> Reading[str]:
        """Skip white space; the character after it, "" at the end."""
        while True:
            character = yield from self.peek()
            if not character or character not in _SPACE:
                return character
            self._at += 1

    def literal(self, literal: str) -> Reading[bool]:
        """Skip the literal if it is what comes next."""
        while True:
            rest = self._text[self._at : self._at + len(literal)]
            if rest == literal:
                self._at += len(literal)
                return True
            if self.is_ended or not literal.startswith(rest):
                return False
            yield

    def match(self, pattern: re.Pattern[str], limit: int) -> Reading[re.Match[str] | None]:
        """Skip what the pattern matches; None when it does not match within `limit` characters.

        The pattern must end with something that more text cannot make longer.
        """
        while True:
            found = pattern.match(self._text, self._at, self._at + limit)
            if found is not None:
                self._at = found.end()
                return found
            if self.is_ended or len(self._text) - self._at >= limit:
                return None
            yield

    def text_until(self, markers: Markers, give: Callable[[int], None] | None = None) -> Reading[int]:
        """Show text (or `give` it) up to the first marker, and how long that is; 0 at the end.

        White space directly before the marker is layout, and counted with it.
        """
        give = give or self.show
        while True:
            found = markers.find(self._text, self._at)
            end = found[0] if found else len(self._text) if self.is_ended else markers.held_from(self._text, self._at)
            give(self._num_dropped + end)
            if found is not None:
                return found[1] - found[0]
            if self.is_ended:
                return 0
            self.let_go()
            yield

    def raw_until(self, literal: str) -> Reading[str | None]:
        """The text up to a literal, both skipped; None, and nothing skipped, when it does not come."""
        start = self._at
        searched = start
        while (end := self._text.find(literal, searched)) < 0:
            if self.is_ended:
                return None
            searched = max(start, len(self._text) - len(literal) + 1)
            yield
        self._at = end + len(literal)
        return self._text[start:end]

    def string(self) -> Reading[str | None]:
        """A JSON string as its value; None when what comes next is none or is not whole."""
        start = self._at
        if not (yield from self.literal('"')):
            return None
        while True:
            end = _STRING_END.search(self._text, self._at)
            if end is None:
                self._at = len(self._text)
                if self.is_ended:
                    return None
                yield
            elif end[0] == "\\":
                self._at = end.start() + 1
                yield from self.peek()
                self._at += 1
            else:
                self._at = end.end()
                return decode_string(self._text[start : self._at])

    def value(self) -> Reading[str | None]:
        """A JSON value as it is written; None when what comes next is none or is not whole."""
        start = self._at
        character = yield from self.peek()
        if character == '"':
            is_whole = (yield from self.string()) is not None
        elif character in ("{", "["):
            is_whole = yield from self.brackets(lambda text: None)
        else:
            is_whole = yield from self._scalar()
        return self._text[start : self._at] if is_whole else None

    def _scalar(self) -> Reading[bool]:
        start = self._at
        while True:
            end = _SCALAR_END.search(self._text, self._at)
            if end is not None:
                self._at = end.start()
                return _is_json(self._text[start : self._at])
            self._at = len(self._text)
            if self.is_ended:
                return False
            yield

    def brackets(self, give: Callable[[str], None], *, lets_go: bool = False) -> Reading[bool]:
        """A JSON object or array, given as it comes; False when it ends early or goes wrong.

        What cannot stand in JSON ends it, and is the next to be read.
        """
        depth = 0
        is_in_string = False
        while True:
            start = self._at
            while (found := (_STRING_END if is_in_string else _STRUCTURE).search(self._text, self._at)) is not None:
                self._at = found.end()
                mark = found[0]
                if mark == '"':
                    is_in_string = not is_in_string
                elif is_in_string:  # a backslash: the next character is not a mark
                    if self._at == len(self._text):
                        break
                    self._at += 1
                elif mark in "{[":
                    depth += 1
                elif mark in "}]":
                    depth -= 1
                    if depth == 0:
                        give(self._text[start : self._at])
                        return True
                else:
                    self._at = found.start()
                    give(self._text[start : self._at])
                    return False
            is_escape_open = found is not None
            if not is_escape_open:
                self._at = len(self._text)
            give(self._text[start : self._at])
            if lets_go:
                self.let_go()
            if is_escape_open:
                yield from self.peek()
                start = self._at
                self._at = min(self._at + 1, len(self._text))
                give(self._text[start : self._at])
            if self._at == len(self._text):
                if self.is_ended:
                    return False
                yield


def decode_string(text: str) -> str | None:
    """The value of a JSON string; lone surrogates, which no answer can carry, become U+FFFD."""
    try:
        value = json.loads(text, strict=False)
    except ValueError:
        return None
    return str(value) if value.isascii() else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
