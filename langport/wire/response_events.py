"""The events of a streamed response, in OpenAI's names and fields. Each line `event:` repeats the type."""

from __future__ import annotations

import msgspec

from langport.wire import sse
from langport.wire.chat import TokenEntry
from langport.wire.response_items import OutputItem, OutputText, ReasoningText, SummaryText
from langport.wire.responses import Response

Obfuscation = str | msgspec.UnsetType


class Event(msgspec.Struct, tag_field="type", kw_only=True):
    """What all events have. Numbers count from 0 without a gap."""

    sequence_number: int = -1


class _WithResponse(Event, kw_only=True):
    response: Response


class ResponseCreated(_WithResponse, tag="response.created", kw_only=True):
    pass


class ResponseQueued(_WithResponse, tag="response.queued", kw_only=True):
    pass


class ResponseInProgress(_WithResponse, tag="response.in_progress", kw_only=True):
    pass


class ResponseCompleted(_WithResponse, tag="response.completed", kw_only=True):
    pass


class ResponseIncomplete(_WithResponse, tag="response.incomplete", kw_only=True):
    pass


class ResponseFailed(_WithResponse, tag="response.failed", kw_only=True):
    pass


class OutputItemAdded(Event, tag="response.output_item.added", kw_only=True):
    output_index: int
    item: OutputItem


class OutputItemDone(Event, tag="response.output_item.done", kw_only=True):
    output_index: int
    item: OutputItem


class _OfItem(Event, kw_only=True):
    item_id: str
    output_index: int


class ContentPartAdded(_OfItem, tag="response.content_part.added", kw_only=True):
    content_index: int = 0
    part: OutputText | ReasoningText


class ContentPartDone(_OfItem, tag="response.content_part.done", kw_only=True):
    content_index: int = 0
    part: OutputText | ReasoningText


class OutputTextDelta(_OfItem, tag="response.output_text.delta", kw_only=True):
    content_index: int = 0
    delta: str
    logprobs: list[TokenEntry]
    obfuscation: Obfuscation = msgspec.UNSET


class OutputTextDone(_OfItem, tag="response.output_text.done", kw_only=True):
    content_index: int = 0
    text: str
    logprobs: list[TokenEntry]


class ReasoningTextDelta(_OfItem, tag="response.reasoning_text.delta", kw_only=True):
    content_index: int = 0
    delta: str
    obfuscation: Obfuscation = msgspec.UNSET


class ReasoningTextDone(_OfItem, tag="response.reasoning_text.done", kw_only=True):
    content_index: int = 0
    text: str


class SummaryPartAdded(_OfItem, tag="response.reasoning_summary_part.added", kw_only=True):
    summary_index: int = 0
    part: SummaryText


class SummaryPartDone(_OfItem, tag="response.reasoning_summary_part.done", kw_only=True):
    summary_index: int = 0
    part: SummaryText


class SummaryTextDelta(_OfItem, tag="response.reasoning_summary_text.delta", kw_only=True):
    summary_index: int = 0
    delta: str
    obfuscation: Obfuscation = msgspec.UNSET


class SummaryTextDone(_OfItem, tag="response.reasoning_summary_text.done", kw_only=True):
    summary_index: int = 0
    text: str


class ArgumentsDelta(_OfItem, tag="response.function_call_arguments.delta", kw_only=True):
    delta: str
    obfuscation: Obfuscation = msgspec.UNSET


class ArgumentsDone(_OfItem, tag="response.function_call_arguments.done", kw_only=True):
    name: str
    arguments: str


class CustomInputDelta(_OfItem, tag="response.custom_tool_call_input.delta", kw_only=True):
    delta: str
    obfuscation: Obfuscation = msgspec.UNSET


class CustomInputDone(_OfItem, tag="response.custom_tool_call_input.done", kw_only=True):
    input: str


class ErrorEvent(Event, tag="error", kw_only=True):
    """The stream cannot go on."""

    code: str | None
    message: str
    param: str | None


Delta = OutputTextDelta | ReasoningTextDelta | SummaryTextDelta | ArgumentsDelta | CustomInputDelta


def encode_event(event: Event) -> bytes:
    """The event as it stands in the stream."""
    name = event.__struct_config__.tag
    assert isinstance(name, str)
    return b"event: %b\ndata: %b\n\n" % (name.encode(), sse.document(event))
