"""Calls of tools that are written as a name and a JSON object with fixed text around them.

So do DeepSeek's and Kimi's models and the newer ones of Mistral, and so can any checkpoint's own way be put
that its chat template shows (`calls_of`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from langport.text.json_calls import Outcome, read_calls
from langport.text.reader import AnswerReader, Markers, Reading
from langport.text.tools import FunctionTool

_MAX_HEAD = 400
"""Characters of a name and what is between it and the arguments."""
_NAME = r"\s*(?P<name>[\w.:/\-]+?)"
_OPENING = r"\s*(?=\{)"
_MARKER = re.compile(r"(?=\S*[^\w\s])[^\s{}\"']{3,}")
"""A beginning that no ordinary text has."""
ID = "\ufdd0"
"""Where the call's id stands in a `CallLayout`."""
_ID = r"[\w\-]+"


@dataclass(frozen=True)
class ArgumentLayout:
    """How a model writes arguments one by one, in place of a JSON object: the text around each name and its value."""

    before_name: str
    after_name: str
    after_value: str
    between: str = ""
    text_end: str | None = None
    """What ends a value that is a text, which stands there without quotes; None: texts are quoted as in JSON."""


@dataclass(frozen=True)
class CallLayout:
    """How a model writes calls: the text around each name and its arguments.

    These are a JSON object, unless `arguments` says how they stand one by one.
    """

    before_name: str
    before_arguments: str
    after_arguments: str
    next_name: str = ""
    """From the end of a call to the name of the next; empty where a model writes one call alone."""
    end: str = ""
    """Behind the last call."""
    arguments: ArgumentLayout | None = None

    @property
    def marker(self) -> str | None:
        """The beginning of the first call that no ordinary text has; None where there is none."""
        found = _MARKER.match(self.before_name.lstrip())
        return None if found is None else found[0]


@dataclass(frozen=True)
class LiteralCalls:
    """Calls as fixed pieces of text around names and arguments; between the pieces there may be white space."""

    begin: str
    """What the first call stands behind."""
    name: re.Pattern[str]
    """The name, a group called so, and what follows up to the arguments; ends with a look at their bracket."""
    before: tuple[str, ...] = ()
    """Between `begin` and the name."""
    after: tuple[str, ...] = ()
    """What ends a call."""
    next: tuple[str, ...] = ()
    """From there to the name of a further call; empty where there is none."""
    end: tuple[str, ...] = ()
    """Behind the last call."""
    takes_json: bool = False
    """Behind `begin` there may also be a list of JSON objects (Mistral)."""

    def read(self, reader: AnswerReader, tools: Sequence[FunctionTool]) -> Reading[None]:
        markers = Markers([self.begin])
        while width := (yield from reader.text_until(markers)):
            start = reader.position
            reader.skip(width)
            if not (yield from self._calls(reader)):
                reader.go_back(start)
                reader.show(start + width)

    def _calls(self, reader: AnswerReader) -> Reading[bool]:
        """Calls up to their end; False, and nothing given, when the first is none."""
        start = reader.position
        if self.takes_json:
            if (yield from read_calls(reader, None)) is not Outcome.NONE:
                yield from reader.spaces()
                return True
            reader.go_back(start)
        name = yield from self._head(reader, self.before)
        if name is None:
            return False
        while name is not None:
            reader.begin_call(name)
            if not (yield from reader.brackets(reader.argue, lets_go=True)):
                return True
            reader.end_call()
            yield from _skip_present(reader, self.after)
            name = (yield from self._head(reader, self.next)) if self.next else None
        yield from _skip_present(reader, self.end)
        yield from reader.spaces()
        return True

    def _head(self, reader: AnswerReader, before: Sequence[str]) -> Reading[str | None]:
        """The name of a call, the reader before its arguments; None, and the reader where it was, if there is none."""
        start = reader.position
        if (yield from _skip(reader, before)):
            head = yield from reader.match(self.name, _MAX_HEAD)
            if head is not None:
                return head["name"]
        reader.go_back(start)
        return None


def calls_of(layout: CallLayout) -> LiteralCalls | None:
    """The reader of calls in this layout; None where nothing marks their beginning."""
    if layout.marker is None:
        return None
    between = r"\s*".join(map(_pattern, layout.before_arguments.split()))
    return LiteralCalls(
        begin=layout.marker,
        before=tuple(layout.before_name.lstrip()[len(layout.marker) :].split()),
        name=re.compile(_NAME + (r"\s*" if layout.before_arguments[:1].isspace() else "") + between + _OPENING),
        after=tuple(layout.after_arguments.split()),
        next=tuple(layout.next_name.split()),
        end=tuple(layout.end.split()),
    )


def _pattern(piece: str) -> str:
    return re.escape(piece).replace(re.escape(ID), _ID)


def _skip(reader: AnswerReader, pieces: Sequence[str]) -> Reading[bool]:
    """Skip the pieces; False where one is missing."""
    for piece in pieces:
        if not (yield from _skip_piece(reader, piece)):
            return False
    return True


def _skip_present(reader: AnswerReader, pieces: Sequence[str]) -> Reading[None]:
    """Skip those of the pieces that are there."""
    for piece in pieces:
        position = reader.position
        if not (yield from _skip_piece(reader, piece)):
            reader.go_back(position)


def _skip_piece(reader: AnswerReader, piece: str) -> Reading[bool]:
    yield from reader.spaces()
    if ID not in piece:
        return (yield from reader.literal(piece))
    return (yield from reader.match(re.compile(_pattern(piece)), _MAX_HEAD)) is not None
