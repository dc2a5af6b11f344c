"""The items of the Responses API: what a response reads and what it is made of, and their JSON both ways.

An input item comes in many spellings, so it is read into one lenient struct (`InputItem`); `langport.api` turns it
into one of the exact structs below, which are also what is stored, listed and answered.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from langport.wire.chat import TokenEntry
from langport.wire.generation import PromptCacheBreakpoint

ItemStatus = Literal["in_progress", "completed", "incomplete"]
ItemRole = Literal["user", "assistant", "system", "developer"]


class InputPart(msgspec.Struct):
    """One part of an input item's content, of any kind."""

    type: str
    text: str | None = None
    refusal: str | None = None
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None
    """These two are what an earlier answer came with."""
    detail: Any = None
    file_data: Any = None
    file_id: Any = None
    file_url: Any = None
    filename: Any = None
    image_url: Any = None
    input_audio: Any = None
    prompt_cache_breakpoint: PromptCacheBreakpoint | None = None


Content = str | list[InputPart]


class InputItem(msgspec.Struct):
    """One item of `input`, of any kind; without a type it is a message, or a reference if it has only an id."""

    type: str | None = None
    id: str | None = None
    role: ItemRole | None = None
    content: Content | None = None
    call_id: Annotated[str, Meta(min_length=1)] | None = None
    name: str | None = None
    arguments: str | None = None
    input: str | None = None
    output: Content | None = None
    summary: list[InputPart] | None = None
    caller: dict[str, Any] | None = None
    encrypted_content: str | None = None
    namespace: str | None = None
    phase: Literal["commentary", "final_answer"] | None = None
    status: ItemStatus | None = None


class InputText(msgspec.Struct, tag_field="type", tag="input_text"):
    text: str


class OutputText(msgspec.Struct, tag_field="type", tag="output_text"):
    text: str
    annotations: list[Any] = msgspec.field(default_factory=list)
    logprobs: list[TokenEntry] = msgspec.field(default_factory=list)


class Refusal(msgspec.Struct, tag_field="type", tag="refusal"):
    refusal: str


class ReasoningText(msgspec.Struct, tag_field="type", tag="reasoning_text"):
    text: str


class SummaryText(msgspec.Struct, tag_field="type", tag="summary_text"):
    text: str


class MessageItem(msgspec.Struct, tag_field="type", tag="message", kw_only=True):
    """A turn of the conversation."""

    id: str
    status: ItemStatus = "completed"
    role: ItemRole
    content: list[InputText | OutputText | Refusal]


class FunctionCallItem(msgspec.Struct, tag_field="type", tag="function_call", kw_only=True):
    """A call that the model makes, or made."""

    id: str
    status: ItemStatus = "completed"
    call_id: str
    name: str
    arguments: str


class CallOutputItem(msgspec.Struct, tag_field="type", kw_only=True):
    """What answers a call."""

    id: str
    status: ItemStatus = "completed"
    call_id: str
    output: str | list[InputText]


class FunctionCallOutputItem(CallOutputItem, tag="function_call_output", kw_only=True):
    """What a called function answered."""


class CustomToolCallItem(msgspec.Struct, tag_field="type", tag="custom_tool_call", kw_only=True):
    """A call of a custom tool that the model makes, or made."""

    id: str
    status: ItemStatus = "completed"
    call_id: str
    name: str
    input: str


class CustomToolCallOutputItem(CallOutputItem, tag="custom_tool_call_output", kw_only=True):
    """What a called custom tool answered."""


class ReasoningItem(msgspec.Struct, tag_field="type", tag="reasoning", kw_only=True):
    """What the model thought before it answered: in `content`, or in `summary` where that was asked for."""

    id: str
    status: ItemStatus = "completed"
    summary: list[SummaryText] = msgspec.field(default_factory=list)
    content: list[ReasoningText] = msgspec.field(default_factory=list)


CallItem = FunctionCallItem | CustomToolCallItem
OutputItem = MessageItem | FunctionCallItem | CustomToolCallItem | ReasoningItem
Item = OutputItem | FunctionCallOutputItem | CustomToolCallOutputItem

ITEM_DECODER: msgspec.json.Decoder[Item] = msgspec.json.Decoder(Item)
"""Reads a stored item."""
