"""Tools that a model may call."""

from __future__ import annotations

import json
from typing import Any, Literal

import msgspec


class FunctionTool(msgspec.Struct, frozen=True, omit_defaults=True):
    """A function that the model may call."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    """JSON Schema of its arguments, an object; None when nothing is known of them."""
    strict: bool | None = None
    """The arguments of a call must follow the schema."""


class ToolChoice(msgspec.Struct, frozen=True):
    """Whether tools may or must be called, and which."""

    mode: Literal["none", "auto", "required"] = "auto"
    names: tuple[str, ...] | None = None
    """Only these; None: all. A single one with `required` is OpenAI's named choice."""


AUTO = ToolChoice()
"""The model decides."""


def parameter_schemas(tool: FunctionTool) -> dict[str, dict[str, Any]]:
    """The schemas of a function's parameters by their names, as far as they are given."""
    properties = (tool.parameters or {}).get("properties")
    if not isinstance(properties, dict):
        return {}
    return {name: schema if isinstance(schema, dict) else {} for name, schema in properties.items()}


def to_json(value: object) -> str:
    """The value as JSON that can be sent. Raises: TypeError, ValueError for what JSON does not know."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return text if _is_unicode(text) else json.dumps(value, allow_nan=False)


def _is_unicode(text: str) -> bool:
    """Whether it holds no lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def template_tool(tool: FunctionTool) -> dict[str, Any]:
    """The definition as chat templates read it."""
    return {"type": "function", "function": msgspec.to_builtins(tool)}
