"""Arguments that stand one by one in a call, as Python's keywords or between tags, as a grammar that follows a schema.

What the schema of a whole object says beyond its properties, and what a text without quotes must look like, cannot be
written so; then `can_write` is false, and the call is written as JSON.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from langport.text.grammar import Piece, literal, one_of, optional, sequence
from langport.text.literal_calls import ArgumentLayout
from langport.text.tools import FunctionTool, parameter_schemas, to_json

_FUNCTION = re.compile(r"[A-Za-z_][\w.\-]*", re.ASCII)
_PARAMETER = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_NOTES = {"title", "description", "default", "examples", "deprecated", "$comment", "$schema", "$id"}
"""Keywords that ask for nothing."""
_OBJECT = {"type", "properties", "required", "additionalProperties", *_NOTES}
_TEXT = {"type", "enum", "const", *_NOTES}

JsonPiece = Callable[[dict[str, Any]], Piece]
"""JSON that follows a schema."""
TextPiece = Callable[[str], Piece]
"""Any text up to the first place with another text, and that."""


def can_write(tool: FunctionTool, layout: ArgumentLayout) -> bool:
    """Whether a call of the tool can be written so that its arguments follow its schema."""
    if tool.custom is not None and tool.custom.syntax is not None:
        return False  # where a text without quotes ends, its grammar might go on
    schema, properties = tool.parameters or {}, parameter_schemas(tool)
    required = schema.get("required", [])
    return (
        _FUNCTION.fullmatch(tool.name) is not None
        and schema.keys() <= _OBJECT
        and schema.get("type", "object") == "object"
        and not schema.get("additionalProperties", False)
        and isinstance(required, list)
        and all(name in properties for name in required)
        and all(_PARAMETER.fullmatch(name) for name in properties)
        and all(_can_be_value(value, layout) for value in properties.values())
    )


def written_arguments(
    tool: FunctionTool, layout: ArgumentLayout, spelled: Callable[[str], Piece], json: JsonPiece, text: TextPiece
) -> Piece | None:
    """The arguments of a call in the order of the schema; None where there are none. `spelled`: of fixed text."""
    required = (tool.parameters or {}).get("required", [])
    written = [
        (
            sequence(
                spelled(f"{layout.before_name}{name}{layout.after_name}"), _value(schema, layout, spelled, json, text)
            ),
            name in required,
        )
        for name, schema in parameter_schemas(tool).items()
    ]
    return _listed(written, literal(layout.between) if layout.between else None)


def _listed(items: list[tuple[Piece, bool]], between: Piece | None) -> Piece | None:
    """Pieces one after the other, those that need not be there or not, with something between two that are."""
    later: Piece | None = None  # what may follow an argument
    first: Piece | None = None  # the same where none stands before it
    is_needed = False  # whether `first` must not be empty
    for piece, is_required in reversed(items):
        begun = piece if later is None else sequence(piece, later)
        whole = begun if is_required or first is None else one_of([begun, first])
        further = piece if between is None else sequence(between, piece)
        further = further if is_required else optional(further)
        later = further if later is None else sequence(further, later)
        first = whole
        is_needed = is_needed or is_required
    return first if first is None or is_needed else optional(first)


def _can_be_value(schema: dict[str, Any], layout: ArgumentLayout) -> bool:
    if "$ref" in to_json(schema):
        return False
    if layout.text_end is None or schema.get("type") != "string":
        return True
    fixed = _fixed(schema)
    is_clear = fixed is None or all(isinstance(t, str) and t and not re.search(r"[\n<>]", t) for t in fixed)
    return schema.keys() <= _TEXT and is_clear


def _fixed(schema: dict[str, Any]) -> list[Any] | None:
    """The only values there are; None for no such thing."""
    if "const" in schema:
        return [schema["const"]]
    enum = schema.get("enum")
    return enum if isinstance(enum, list) else None


def _value(
    schema: dict[str, Any], layout: ArgumentLayout, spelled: Callable[[str], Piece], json: JsonPiece, text: TextPiece
) -> Piece:
    """A value and what follows it."""
    if layout.text_end is not None and schema.get("type") == "string":
        fixed = _fixed(schema)
        if fixed is None:
            mark = layout.text_end.rstrip()
            rest = layout.text_end[len(mark) :]
            return sequence(text(mark), spelled(rest)) if rest else text(mark)
        return sequence(one_of([literal(value) for value in fixed]), spelled(layout.after_value))
    after = [spelled(layout.after_value)] if layout.after_value else []
    if layout.text_end is None and schema.keys() <= {"type", *_NOTES} and schema.get("type") == "boolean":
        return sequence(one_of([literal("True"), literal("False")]), *after)
    return sequence(json(schema), *after)
