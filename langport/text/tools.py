"""Tools that a model may call."""

from __future__ import annotations

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


def template_tool(tool: FunctionTool) -> dict[str, Any]:
    """The definition as chat templates read it."""
    return {"type": "function", "function": msgspec.to_builtins(tool)}
