"""Calls of tools that are written with a tag around each argument, as Qwen3-Coder, GLM 4.5 and MiniMax M2 do.

Values stand there as they are, without JSON's quotes, so the function's schema says which are texts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from langport.text.reader import AnswerReader, Markers, Reading
from langport.text.tools import FunctionTool, parameter_schemas, to_json

_MAX_HEAD = 400


@dataclass(frozen=True)
class TaggedCalls:
    """The tags of one family."""

    begin: str
    """What a call, or a group of them, stands behind."""
    name: re.Pattern[str]
    """The beginning of a call; group 1 is the name."""
    parameter: re.Pattern[str]
    """The beginning of an argument; group 1 is the parameter's name."""
    value_end: str
    """What ends an argument's value."""
    call_end: str
    end: str = ""
    """What ends the group."""

    def read(self, reader: AnswerReader, tools: Sequence[FunctionTool]) -> Reading[None]:
        schemas = {tool.name: parameter_schemas(tool) for tool in tools}
        markers = Markers([self.begin])
        while width := (yield from reader.text_until(markers)):
            start = reader.position
            reader.skip(width)
            if not (yield from self._calls(reader, schemas)):
                reader.go_back(start)
                reader.show(start + width)

    def _calls(self, reader: AnswerReader, schemas: dict[str, dict[str, dict[str, Any]]]) -> Reading[bool]:
        """Calls up to the end of their group; False, and nothing given, when the first is none."""
        has_call = False
        while (head := (yield from reader.match(self.name, _MAX_HEAD))) is not None:
            has_call = True
            reader.begin_call(head[1])
            if not (yield from self._arguments(reader, schemas.get(head[1], {}))):
                return True
            reader.end_call()
            yield from reader.spaces()
            if not self.end:
                return True
            if (yield from reader.literal(self.end)):
                yield from reader.spaces()
                return True
        return has_call

    def _arguments(self, reader: AnswerReader, schemas: dict[str, dict[str, Any]]) -> Reading[bool]:
        """The arguments as a JSON object, each as soon as it is whole; False when they are not."""
        opening = "{"
        while True:
            yield from reader.spaces()
            if (yield from reader.literal(self.call_end)):
                reader.argue("{}" if opening == "{" else "}")
                reader.let_go()
                return True
            head = yield from reader.match(self.parameter, _MAX_HEAD)
            if head is None:
                return False
            reader.argue(f"{opening}{to_json(head[1])}: ")
            text = yield from reader.raw_until(self.value_end)
            if text is None:
                reader.argue(reader.rest())  # cut off
                return False
            reader.argue(_as_json(text.removeprefix("\n").removesuffix("\n"), schemas.get(head[1], {})))
            reader.let_go()
            opening = ", "


def _as_json(text: str, schema: dict[str, Any]) -> str:
    """A value that is written without quotes: a text where the schema says so or where it is nothing else."""
    if schema.get("type") != "string":
        try:
            return to_json(json.loads(text))
        except (ValueError, RecursionError):
            pass
    return to_json(text)
