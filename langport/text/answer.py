"""What an answer to a conversation is made of, beneath any API's way to write it.

A model writes one text; in it may stand reasoning and calls of tools. An `AnswerParser` takes the text apart
while it arrives. The deltas, joined, do not depend on how the text was cut.
"""

from __future__ import annotations

import secrets
import string
from collections.abc import Sequence
from typing import Protocol

import msgspec

_ID_CHARACTERS = string.ascii_letters + string.digits


class TextDelta(msgspec.Struct):
    """More of what the user reads."""

    text: str
    offset: int
    """Characters that the model had written before it, markers and reasoning included."""


class ReasoningDelta(msgspec.Struct):
    """More of what the model thinks before it answers."""

    text: str


class ToolCallBegin(msgspec.Struct):
    """A call of a tool begins. Calls are numbered from 0, and one ends before the next begins."""

    index: int
    id: str
    name: str
    is_custom: bool = False
    """Of a custom tool: what follows is its input, a text, and no arguments."""


class ToolCallDelta(msgspec.Struct):
    """More of a call's arguments, which are JSON when they are joined; of a custom tool's call more of its input."""

    index: int
    arguments: str
    is_custom: bool = False


class ToolCallEnd(msgspec.Struct):
    """A call's arguments are whole. One that the end of the answer cut off has none of these."""

    index: int


AnswerDelta = TextDelta | ReasoningDelta | ToolCallBegin | ToolCallDelta | ToolCallEnd


class AnswerParser(Protocol):
    """Takes one answer apart."""

    @property
    def reasoning_end(self) -> int | None:
        """Characters of the answer up to the end of its reasoning; None while that goes on."""

    def push(self, text: str) -> Sequence[AnswerDelta]:
        """Add text; the deltas that are certain now."""
        ...

    def end(self) -> Sequence[AnswerDelta]:
        """The text has ended: the deltas of what was held back."""
        ...


class PlainText:
    """The parser of an answer that is nothing but text."""

    reasoning_end: int | None = 0

    def __init__(self) -> None:
        self._num_characters = 0

    def push(self, text: str) -> Sequence[AnswerDelta]:
        offset = self._num_characters
        self._num_characters += len(text)
        return (TextDelta(text, offset),) if text else ()

    def end(self) -> Sequence[AnswerDelta]:
        return ()


def tool_call_id() -> str:
    """A fresh id in OpenAI's form."""
    return "call_" + "".join(secrets.choice(_ID_CHARACTERS) for _ in range(24))
