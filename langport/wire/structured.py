"""What an answer has to look like, as requests say it: OpenAI's `response_format`, vLLM's `structured_outputs`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

Choices = Annotated[list[str], Meta(min_length=1)]


SchemaName = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


class JsonSchema(msgspec.Struct):
    name: SchemaName
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StructuredOutputs(msgspec.Struct, forbid_unknown_fields=True):
    """One of the first five, and how to follow it. An unknown field could be a further demand, so it is refused."""

    json: dict[str, Any] | str | None = None
    """A JSON Schema, or its text."""
    regex: str | None = None
    choice: Choices | None = None
    grammar: str | None = None
    """Lark, or EBNF with `::=`."""
    json_object: bool | None = None
    whitespace_pattern: str | None = None
    """A regular expression for what may stand between two tokens of JSON."""
    disable_any_whitespace: bool | None = None
    disable_fallback: bool | None = None
    """Accepted: there is one implementation, and none to fall back to."""
    disable_additional_properties: bool | None = None
    structural_tag: str | None = None
