"""`POST /v1/messages` and `/v1/messages/count_tokens`: Anthropic's requests, answers, events and errors.

Reference: docs.claude.com/en/api/messages. A block's fields are those of all its types together; which of them
a type needs, and which types a model can read, is said in `langport.api.anthropic`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from langport.errors import ApiError
from langport.wire import sse
from langport.wire.dialect import Dialect

PositiveCount = Annotated[int, Meta(ge=1)]
Name = Annotated[str, Meta(min_length=1)]
Role = Literal["user", "assistant", "system"]
StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"]


class CacheControl(msgspec.Struct):
    """Where a cached beginning may end. Beginnings are cached wherever they end here, so it changes nothing."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class TextBlock(msgspec.Struct):
    """A part of `system`."""

    type: Literal["text"]
    text: str
    cache_control: CacheControl | None = None
    citations: Any = None


class ContentBlock(msgspec.Struct):
    """A part of a message, or of a tool's result."""

    type: str
    text: str | None = None
    thinking: str | None = None
    signature: str | None = None
    data: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    content: str | list[ContentBlock] | None = None
    is_error: bool | None = None
    cache_control: CacheControl | None = None
    citations: Any = None
    caller: Any = None
    toolset_name: str | None = None


class InputMessage(msgspec.Struct):
    """One turn of the conversation; a system message in its midst is an instruction from there on."""

    role: Role
    content: str | Annotated[list[ContentBlock], Meta(min_length=1)]


class ToolDefinition(msgspec.Struct):
    """A tool that the client runs, or one of Anthropic's own by its `type`."""

    name: Name | None = None
    input_schema: dict[str, Any] | None = None
    description: str | None = None
    type: str | None = None
    strict: bool | None = None
    cache_control: CacheControl | None = None
    eager_input_streaming: bool | None = None


class ToolUseChoice(msgspec.Struct):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(msgspec.Struct):
    """Whether the model may think before it answers, and whether the client sees it."""

    type: Literal["enabled", "adaptive", "disabled"]
    budget_tokens: Annotated[int, Meta(ge=1024)] | None = None
    display: Literal["summarized", "omitted"] | None = None


class OutputFormat(msgspec.Struct):
    """JSON after a schema."""

    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(msgspec.Struct):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None


class Metadata(msgspec.Struct):
    user_id: str | None = None


class Diagnostics(msgspec.Struct):
    previous_message_id: str | None = None


class CountTokensRequest(msgspec.Struct, kw_only=True):
    """What makes the prompt: every field that Anthropic documents for counting tokens, and `chat_template_kwargs`."""

    model: str | None = None
    messages: Annotated[list[InputMessage], Meta(min_length=1)]
    system: str | list[TextBlock] | None = None
    tools: list[ToolDefinition] | None = None
    tool_choice: ToolUseChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    cache_control: CacheControl | None = None
    speed: Literal["standard", "fast"] | None = None
    user_profile_id: str | None = None
    workspace_id: str | None = None
    mcp_servers: list[Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class MessagesRequest(CountTokensRequest, kw_only=True):
    """Every field that Anthropic documents for messages."""

    max_tokens: PositiveCount
    stream: bool | None = None
    stop_sequences: list[Annotated[str, Meta(min_length=1)]] | None = None
    temperature: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=0)] | None = None
    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    inference_geo: str | None = None
    container: Any = None
    diagnostics: Diagnostics | None = None


DECODER = msgspec.json.Decoder(MessagesRequest)
COUNT_DECODER = msgspec.json.Decoder(CountTokensRequest)


class TextAnswer(msgspec.Struct, tag="text"):
    text: str
    citations: None = None


class ThinkingAnswer(msgspec.Struct, tag="thinking"):
    thinking: str
    signature: str
    """Opaque to clients, which send it back with the block; nothing here reads it."""


class ToolUseAnswer(msgspec.Struct, tag="tool_use"):
    id: str
    name: str
    input: dict[str, Any]


AnswerBlock = TextAnswer | ThinkingAnswer | ToolUseAnswer


class OutputTokensDetails(msgspec.Struct):
    thinking_tokens: int


class CountedTokens(msgspec.Struct, kw_only=True):
    """What the last event of a stream counts."""

    input_tokens: int
    """Of the prompt, without those read from the cache."""
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int = 0
    output_tokens: int
    output_tokens_details: OutputTokensDetails


class MessageUsage(CountedTokens, kw_only=True):
    service_tier: Literal["standard"] = "standard"


class MessageAnswer(msgspec.Struct, kw_only=True):
    """A whole answer, and what a stream begins with."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[AnswerBlock]
    stop_reason: StopReason | None = None
    stop_sequence: str | None = None
    usage: MessageUsage


class TokenCount(msgspec.Struct):
    input_tokens: int


# The events of a streamed answer.


def _event(name: bytes, data: bytes) -> bytes:
    return b'event: %b\ndata: {"type":"%b"%b}\n\n' % (name, name, data)


def message_start(message: MessageAnswer) -> bytes:
    """The first event, with an empty message."""
    return _event(b"message_start", b',"message":' + sse.document(message))


def block_start(index: int, block: AnswerBlock) -> bytes:
    """A block begins, still empty."""
    return _event(b"content_block_start", b',"index":%d,"content_block":%b' % (index, sse.document(block)))


def block_delta(index: int, kind: Literal["text", "thinking", "signature", "input_json"], text: str) -> bytes:
    """More of a block."""
    field = b"partial_json" if kind == "input_json" else kind.encode()
    delta = b'{"type":"%b_delta","%b":%b}' % (kind.encode(), field, sse.document(text))
    return _event(b"content_block_delta", b',"index":%d,"delta":%b' % (index, delta))


def block_stop(index: int) -> bytes:
    return _event(b"content_block_stop", b',"index":%d' % index)


def message_delta(reason: StopReason, stop_sequence: str | None, usage: CountedTokens) -> bytes:
    """How the message ended."""
    delta = b'{"stop_reason":%b,"stop_sequence":%b}' % (sse.document(reason), sse.document(stop_sequence))
    return _event(b"message_delta", b',"delta":%b,"usage":%b' % (delta, sse.document(usage)))


MESSAGE_STOP = _event(b"message_stop", b"")
PING = _event(b"ping", b"")


# Errors.

_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
"""By HTTP status; any other is an `api_error`."""


class ErrorDetail(msgspec.Struct):
    type: str
    message: str


class ErrorBody(msgspec.Struct, kw_only=True):
    """`{"type": "error", "error": {"type", "message"}, "request_id"}`."""

    type: Literal["error"] = "error"
    error: ErrorDetail
    request_id: str


def _error_body(error: ApiError, request_id: str) -> bytes:
    detail = ErrorDetail(_ERROR_TYPES.get(error.status, "api_error"), error.message)
    return sse.document(ErrorBody(error=detail, request_id=request_id))


ANTHROPIC = Dialect(
    error_body=_error_body,
    error_event=lambda error, request_id: b"event: error\ndata: %b\n\n" % _error_body(error, request_id),
    ping=PING,
    done=b"",
    id_header=b"request-id",
)
