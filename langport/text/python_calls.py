"""Calls of tools that are written as Python: `[get_weather(city="Oslo"), now()]`, as Llama 4 and LFM2 do."""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from langport.text.reader import AnswerReader, Markers, Reading
from langport.text.tools import FunctionTool, parameter_schemas, to_json

_CALL = re.compile(r"\s*([A-Za-z_][\w.\-]*)\s*\(")
_KEYWORD = re.compile(r"\s*([A-Za-z_]\w*)\s*=(?!=)\s*")
_MAX_NAME = 200
_CLOSING = {"(": ")", "[": "]", "{": "}"}
_JSON_WORDS = {"true": True, "false": False, "null": None}


@dataclass(frozen=True)
class PythonCalls:
    """A Python list of calls, from the beginning of the answer on or between markers."""

    begin: str = ""
    end: str = ""

    def read(self, reader: AnswerReader, tools: Sequence[FunctionTool]) -> Reading[None]:
        yield from self._list(reader, tools, are_known=True)
        markers = Markers([self.begin] if self.begin else [])
        while width := (yield from reader.text_until(markers)):
            start = reader.position
            reader.skip(width)
            if not (yield from self._list(reader, tools, are_known=False)):
                reader.go_back(start)
                reader.show(start + width)

    def _list(self, reader: AnswerReader, tools: Sequence[FunctionTool], *, are_known: bool) -> Reading[bool]:
        """Calls up to the end of their list; False, and everything as it was, when the first is none."""
        known = {tool.name: [*parameter_schemas(tool)] for tool in tools}
        start = reader.position
        if (yield from reader.spaces()) == "[":
            reader.skip(1)
            head = yield from reader.match(_CALL, _MAX_NAME)
            if head is not None and (head[1] in known or not are_known):
                yield from self._calls(reader, head, known)
                return True
        reader.go_back(start)
        return False

    def _calls(self, reader: AnswerReader, head: re.Match[str], known: dict[str, list[str]]) -> Reading[None]:
        call: re.Match[str] | None = head
        while call is not None:
            reader.begin_call(call[1])
            if not (yield from _arguments(reader, known.get(call[1], []))):
                return
            reader.end_call()
            call = None
            if (yield from reader.spaces()) == ",":
                position = reader.position
                reader.skip(1)
                call = yield from reader.match(_CALL, _MAX_NAME)
                if call is None:
                    reader.go_back(position)
        yield from reader.literal("]")
        yield from reader.spaces()
        if self.end and (yield from reader.literal(self.end)):
            yield from reader.spaces()


def _arguments(reader: AnswerReader, names: Sequence[str]) -> Reading[bool]:
    """The arguments up to the closing bracket as a JSON object, each as soon as it is whole; False if cut off."""
    num_given = 0
    while True:
        text, mark = yield from _expression(reader)
        keyword = _KEYWORD.match(text)
        if keyword is not None:
            name, text = keyword[1], text[keyword.end() :]
        else:
            name = names[num_given] if num_given < len(names) else f"arg{num_given}"
        text = text.strip()
        if text:
            value = _as_json(text) if mark else text
            reader.argue(f"{', ' if num_given else '{'}{to_json(name)}: {value}")
            num_given += 1
        if mark == ")":
            reader.argue("}" if num_given else "{}")
        reader.let_go()
        if mark != ",":
            return mark == ")"


def _expression(reader: AnswerReader) -> Reading[tuple[str, str]]:
    """The text up to a comma or bracket that is not inside it, and which of the two it was; "" at the end."""
    parts: list[str] = []
    closing: list[str] = []
    while character := (yield from reader.peek()):
        if not closing and character in ",)":
            reader.skip(1)
            return "".join(parts), character
        if character in "\"'":
            parts.append((yield from _quoted(reader, character)))
            continue
        if character in _CLOSING:
            closing.append(_CLOSING[character])
        elif closing and character == closing[-1]:
            closing.pop()
        parts.append(character)
        reader.skip(1)
    return "".join(parts), ""


def _quoted(reader: AnswerReader, quote: str) -> Reading[str]:
    """A string with its quotes; without the last one when it is cut off."""
    if (yield from reader.literal(quote * 3)):
        quote *= 3
    else:
        reader.skip(1)
    parts = [quote]
    while character := (yield from reader.peek()):
        if (yield from reader.literal(quote)):
            parts.append(quote)
            break
        reader.skip(1)
        if character == "\\":
            character += yield from reader.peek()
            reader.skip(len(character) - 1)
        parts.append(character)
    return "".join(parts)


def _as_json(expression: str) -> str:
    """The value of a JSON or Python literal; what is none is taken for a text without quotes."""
    try:
        return to_json(json.loads(expression))  # of two meanings, as of "\/", JSON's
    except (ValueError, RecursionError):
        pass
    try:
        return to_json(_value(expression))
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return to_json(expression)


def _value(expression: str) -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python's own about the model's escapes
        tree = ast.parse(expression, mode="eval")
    return ast.literal_eval(_JsonWords().visit(tree))


class _JsonWords(ast.NodeTransformer):
    """JSON's true, false and null are values too."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Constant(_JSON_WORDS[node.id]) if node.id in _JSON_WORDS else node
