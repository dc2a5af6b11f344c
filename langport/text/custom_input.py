"""The input of a custom tool's call, taken out of the arguments in which a model writes it.

Models call custom tools like functions with one text, `{"input": "..."}`; clients see that text alone, as it comes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence

from langport.text.answer import AnswerDelta, AnswerParser, ToolCallBegin, ToolCallDelta, ToolCallEnd
from langport.text.reader import decode_string
from langport.text.tools import INPUT, to_json

_OPENING = re.compile(rf'\s*\{{\s*"{INPUT}"\s*:\s*"')
_CHARACTERS = re.compile(r'(?:[^"\\]|\\(?:u[0-9a-fA-F]{4}|[^u]))*')
_HIGH_SURROGATE = re.compile(r"\\u[dD][89abAB][0-9a-fA-F]{2}\Z")
"""The first half of a character."""


class CustomInputReader:
    """Reads one call's input from the pieces of its arguments."""

    def __init__(self) -> None:
        self._text = ""
        """Arguments that were not read yet."""
        self._is_open = False
        """Inside the text."""
        self._is_done = False

    def push(self, arguments: str) -> str:
        """Add arguments; what is certain of the input now."""
        if self._is_done:
            return ""
        self._text += arguments
        if not self._is_open:
            opening = _OPENING.match(self._text)
            if opening is None:
                return ""
            self._text = self._text[opening.end() :]
            self._is_open = True
        found = _CHARACTERS.match(self._text)
        assert found is not None  # it matches nothing at all, too
        end = found.end()
        self._is_done = self._text[end : end + 1] == '"'
        half = None if self._is_done else _HIGH_SURROGATE.search(self._text, 0, end)
        end = half.start() if half else end
        read, self._text = self._text[:end], self._text[end:]
        decoded = decode_string(f'"{read}"')
        return read if decoded is None else decoded

    def end(self) -> str:
        """The arguments are whole: the rest of the input, all of it where they are of another form than was asked."""
        if self._is_open:
            return ""
        try:
            value = json.loads(self._text)
        except (ValueError, RecursionError):
            return self._text
        if isinstance(value, dict):
            value = value.get(INPUT, next(iter(value.values())) if len(value) == 1 else value)
        return decode_string(json.dumps(value)) or "" if isinstance(value, str) else to_json(value)


class CustomInputs:
    """An `AnswerParser` that gives the calls of custom tools with their input in place of arguments."""

    def __init__(self, parser: AnswerParser, names: frozenset[str]) -> None:
        """`names`: of the custom tools."""
        self._parser = parser
        self._names = names
        self._reader: CustomInputReader | None = None
        """Of the call that is being written, where that is one of a custom tool."""

    @property
    def reasoning_end(self) -> int | None:
        return self._parser.reasoning_end

    def push(self, text: str) -> Sequence[AnswerDelta]:
        return [*self._read(self._parser.push(text))]

    def end(self) -> Sequence[AnswerDelta]:
        return [*self._read(self._parser.end())]

    def _read(self, deltas: Sequence[AnswerDelta]) -> Iterator[AnswerDelta]:
        for delta in deltas:
            match delta:
                case ToolCallBegin(index, id, name) if name in self._names:
                    self._reader = CustomInputReader()
                    yield ToolCallBegin(index, id, name, True)
                case ToolCallDelta(index, arguments) if self._reader is not None:
                    if text := self._reader.push(arguments):
                        yield ToolCallDelta(index, text, True)
                case ToolCallEnd(index) if self._reader is not None:
                    if text := self._reader.end():
                        yield ToolCallDelta(index, text, True)
                    self._reader = None
                    yield delta
                case ToolCallBegin():  # the one before it may have been cut off
                    self._reader = None
                    yield delta
                case _:
                    yield delta
