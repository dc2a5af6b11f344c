"""Calls of tools that are written as JSON objects with a name and arguments.

Hermes and Qwen put each between tags, Mistral's older models a list behind a marker, Llama 3 writes nothing
around it; models that were never taught a form write what they are asked for, or something near it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from langport.text.reader import AnswerReader, Markers, Reading, decode_string
from langport.text.tools import FunctionTool

_NAME = re.compile(r"[\w.:/\-]{1,256}")
_NAME_KEYS = frozenset(("name", "function", "function_name", "tool", "tool_name"))
_ARGUMENT_KEYS = frozenset(("arguments", "parameters", "args", "params", "input"))
_WRAPPER_KEYS = frozenset(("function", "tool_call", "tool_calls"))
_MAX_WRAPPERS = 3


class Outcome(Enum):
    """What reading a call came to."""

    WHOLE = "whole"
    BROKEN = "broken"
    """The call has begun, and then something came that does not belong there."""
    NONE = "none"
    """It was no call; nothing was given."""


@dataclass(frozen=True)
class JsonCalls:
    """Calls as JSON objects, alone, in a list, or one after the other."""

    markers: tuple[str, ...] = ()
    """What calls stand behind, wherever it comes."""
    end: str = ""
    """What ends them."""
    is_bare: bool = False
    """The answer may also be calls from its beginning on; then only of tools that there are."""
    separators: str = ",;"

    def read(self, reader: AnswerReader, tools: Sequence[FunctionTool]) -> Reading[None]:
        names = frozenset(tool.name for tool in tools)
        if self.is_bare:
            yield from self._bare(reader, names)
        markers = Markers(self.markers)
        while width := (yield from reader.text_until(markers)):
            start = reader.position
            reader.skip(width)
            if (yield from self.calls(reader, None)) is Outcome.NONE:
                reader.go_back(start)
                reader.show(start + width)

    def _bare(self, reader: AnswerReader, names: frozenset[str]) -> Reading[None]:
        start = reader.position
        yield from reader.spaces()
        if (yield from reader.literal("```")):
            yield from reader.literal("json")
        outcome = yield from self.calls(reader, names)
        if outcome is Outcome.NONE:
            reader.go_back(start)
        elif outcome is Outcome.WHOLE:
            yield from reader.spaces()
            yield from reader.literal("```")
            yield from reader.spaces()

    def calls(self, reader: AnswerReader, names: frozenset[str] | None) -> Reading[Outcome]:
        """Calls and what ends them. On NONE the reader is somewhere behind where it was."""
        outcome = yield from read_calls(reader, names, self.separators)
        if outcome is not Outcome.NONE and self.end:
            yield from reader.spaces()
            if (yield from reader.literal(self.end)):
                yield from reader.spaces()
        return outcome


def read_calls(reader: AnswerReader, names: frozenset[str] | None, separators: str = ",") -> Reading[Outcome]:
    """One object, several with separators between them, or a list; white space behind the last is skipped.

    What comes after the first call and is none is left to be read. `names`: the only ones; None: any.
    """
    character = yield from reader.spaces()
    is_list = character == "["
    if is_list:
        reader.skip(1)
    outcome = yield from _object(reader, names)
    while outcome is Outcome.WHOLE:
        position = reader.position
        character = yield from reader.spaces()
        if is_list and character == "]":
            reader.skip(1)
            return outcome
        if not character or character not in separators:
            return outcome
        reader.skip(1)
        if (yield from _object(reader, names)) is Outcome.NONE:
            reader.go_back(position)
            return outcome
    return outcome


def _object(reader: AnswerReader, names: frozenset[str] | None, depth: int = 0) -> Reading[Outcome]:
    """One call, given as soon as its name and the beginning of its arguments are known."""
    name: str | None = None
    arguments: str | None = None
    if (yield from reader.spaces()) != "{":
        return Outcome.NONE
    reader.skip(1)
    while True:
        yield from reader.spaces()
        key = yield from reader.string()
        if key is None or (yield from reader.spaces()) != ":":
            break
        reader.skip(1)
        character = yield from reader.spaces()
        if key in _WRAPPER_KEYS and character and character in "{[" and depth < _MAX_WRAPPERS:
            outcome = yield from _wrapped(reader, names, depth)
            if outcome is not Outcome.NONE:
                return outcome
            break
        if key in _NAME_KEYS and name is None and character == '"':
            name = yield from reader.string()
            if name is None or not _NAME.fullmatch(name) or (names is not None and name not in names):
                return Outcome.NONE
        elif key in _ARGUMENT_KEYS and name is not None and arguments is None and character == "{":
            return (yield from _streamed(reader, name))
        else:
            value = yield from reader.value()
            if value is None:
                break
            arguments = value if key in _ARGUMENT_KEYS else arguments
        character = yield from reader.spaces()
        if character == "}":
            reader.skip(1)
            return _finished(reader, name, arguments)
        if character != ",":
            break
        reader.skip(1)
    if name is None or (yield from reader.peek()):
        return Outcome.NONE
    reader.begin_call(name)  # cut off after its name
    return Outcome.BROKEN


def _streamed(reader: AnswerReader, name: str) -> Reading[Outcome]:
    """A call whose arguments come after its name, and what its object holds besides."""
    start = reader.position
    reader.skip(1)
    first = yield from reader.spaces()
    reader.go_back(start)
    if first and first not in '"}':
        return Outcome.NONE
    reader.begin_call(name)
    if not (yield from reader.brackets(reader.argue, lets_go=True)):
        return Outcome.BROKEN
    reader.end_call()
    return (yield from _closed(reader))


def _closed(reader: AnswerReader) -> Reading[Outcome]:
    """Skip further members and the end of an object whose call was given."""
    while True:
        position = reader.position
        character = yield from reader.spaces()
        if character == "}":
            reader.skip(1)
            return Outcome.WHOLE
        if character == ",":
            reader.skip(1)
            yield from reader.spaces()
            key = yield from reader.string()
            if key is not None and (yield from reader.spaces()) == ":":
                reader.skip(1)
                yield from reader.spaces()
                if (yield from reader.value()) is not None:
                    continue
        reader.go_back(position)
        return Outcome.BROKEN


def _wrapped(reader: AnswerReader, names: frozenset[str] | None, depth: int) -> Reading[Outcome]:
    """The call or calls that are a member of an object, and the object's end."""
    if (yield from reader.peek()) == "{":
        outcome = yield from _object(reader, names, depth + 1)
    else:
        outcome = yield from read_calls(reader, names)
    return (yield from _closed(reader)) if outcome is Outcome.WHOLE else outcome


def _finished(reader: AnswerReader, name: str | None, arguments: str | None) -> Outcome:
    """Give a call that was read whole, if it is one."""
    found = _as_object(arguments)
    if name is None or found is None:
        return Outcome.NONE
    reader.call(name, found)
    return Outcome.WHOLE


def _as_object(arguments: str | None) -> str | None:
    """Arguments as the text of a JSON object, though they be missing, null or such a text in a string."""
    if arguments is None or arguments == "null":
        return "{}"
    if arguments.startswith('"'):
        arguments = decode_string(arguments) or "{}"
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return None
    return arguments if isinstance(value, dict) else None
