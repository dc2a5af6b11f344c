"""Tools that a model may call."""

from __future__ import annotations

import json
from typing import Any, Literal

import msgspec


class CustomInput(msgspec.Struct, frozen=True):
    """What a custom tool is called with in place of arguments: a text, which follows a grammar where it has one."""

    syntax: Literal["lark", "regex"] | None = None
    """None: any text."""
    definition: str = ""
    param: str = "tools"
    """Where the request has the definition."""


class FunctionTool(msgspec.Struct, frozen=True, omit_defaults=True):
    """A function that the model may call."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    """JSON Schema of its arguments, an object; None when nothing is known of them."""
    strict: bool | None = None
    """The arguments of a call must follow the schema."""
    custom: CustomInput | None = None
    """Of a custom tool, which a model calls like a function with one text, `INPUT`."""


INPUT = "input"
"""The only parameter of a custom tool as the model sees it."""
_ANY_INPUT: dict[str, Any] = {
    "type": "object",
    "properties": {INPUT: {"type": "string"}},
    "required": [INPUT],
    "additionalProperties": False,
}
_SYNTAXES = {"lark": "this Lark grammar", "regex": "this regular expression from its first to its last character"}


def custom_tool(name: str, description: str | None, input: CustomInput) -> FunctionTool:
    """A custom tool as the function that a model is shown, its grammar in the description."""
    if input.syntax is None:
        return FunctionTool(name, description, _ANY_INPUT, custom=input)
    rule = f"The input must follow {_SYNTAXES[input.syntax]}:\n{input.definition}"
    shown = f"{description}\n\n{rule}" if description else rule
    return FunctionTool(name, shown, _ANY_INPUT, strict=True, custom=input)


def input_arguments(input: str) -> str:
    """The arguments of an earlier call of a custom tool, as a model reads them."""
    return to_json({INPUT: input})


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
    shown = tool if tool.custom is None else FunctionTool(tool.name, tool.description, tool.parameters)
    return {"type": "function", "function": msgspec.to_builtins(shown)}
