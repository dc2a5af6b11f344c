"""`POST /v1/responses`: the request, and the response as it is answered, streamed and stored."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from langport.wire.chat import ToolName
from langport.wire.generation import Count, Penalty, PromptCacheOptions, StopList
from langport.wire.response_items import InputItem, OutputItem
from langport.wire.stored import Metadata
from langport.wire.structured import SchemaName, StructuredOutputs

ResponseStatus = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
Include = Literal[
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
    "reasoning.encrypted_content",
    "message.output_text.logprobs",
]


class TextFormat(msgspec.Struct, omit_defaults=True):
    """How the text of the answer has to look."""

    type: Literal["text", "json_object", "json_schema"]
    name: SchemaName | None = None
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None

    def __post_init__(self) -> None:
        if self.type == "json_schema" and (self.name is None or self.schema is None):
            raise ValueError("a format of type json_schema needs a name and a schema")


class TextConfig(msgspec.Struct, omit_defaults=True):
    """`text` of a request."""

    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class TextShown(msgspec.Struct):
    """`text` of a response."""

    format: TextFormat
    verbosity: Literal["low", "medium", "high"] = "medium"


class Reasoning(msgspec.Struct):
    """How to think, and whether to show it as a summary."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None
    """The older name of `summary`."""
    context: Literal["auto", "current_turn", "all_turns"] | None = None
    mode: str | None = None


class ReasoningShown(msgspec.Struct):
    """`reasoning` of a response."""

    effort: str | None = None
    summary: str | None = None


class InputFormat(msgspec.Struct, omit_defaults=True):
    """What the input of a custom tool has to look like."""

    type: Literal["text", "grammar"]
    syntax: Literal["lark", "regex"] | None = None
    definition: str | None = None


class ResponseTool(msgspec.Struct):
    """A function or custom tool that the model may call.

    Built-in tools are read as far as their type, to be refused by name.
    """

    type: str
    name: ToolName | None = None
    description: str | None = None
    parameters: dict[str, Any] | msgspec.UnsetType | None = msgspec.UNSET
    strict: bool | msgspec.UnsetType | None = msgspec.UNSET
    """These two are of functions."""
    format: InputFormat | msgspec.UnsetType | None = msgspec.UNSET
    """Of custom tools."""
    allowed_callers: list[Literal["direct", "programmatic"]] | msgspec.UnsetType | None = msgspec.UNSET
    defer_loading: bool | msgspec.UnsetType | None = msgspec.UNSET
    output_schema: dict[str, Any] | msgspec.UnsetType | None = msgspec.UNSET
    """These three are for built-in tools that would call or find this one."""

    def __post_init__(self) -> None:
        if self.type == "function":
            self.parameters = None if self.parameters is msgspec.UNSET else self.parameters
            self.strict = True if self.strict is msgspec.UNSET else self.strict
        elif self.type == "custom":
            self.format = self.format or InputFormat("text")


class NamedTool(msgspec.Struct):
    type: str
    name: str | None = None


class ToolSelection(msgspec.Struct, omit_defaults=True):
    """A named tool, or an allowed set of tools."""

    type: str
    name: str | None = None
    mode: Literal["auto", "required"] | None = None
    tools: list[NamedTool] | None = None


ToolChoiceField = Literal["none", "auto", "required"] | ToolSelection


class ResponseStreamOptions(msgspec.Struct):
    include_obfuscation: bool | None = None


class InputFields(msgspec.Struct, kw_only=True):
    """The fields that say what the model reads; those of `POST /v1/responses/input_tokens`."""

    model: str | None = None
    input: str | list[InputItem] | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    tools: list[ResponseTool] | None = None
    tool_choice: ToolChoiceField | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    truncation: Literal["auto", "disabled"] | None = None
    conversation: msgspec.Raw = msgspec.Raw()
    chat_template_kwargs: dict[str, Any] | None = None


class ResponseRequest(InputFields, kw_only=True):
    """Every field OpenAI documents for responses, and the usual extras. None means the default, everywhere."""

    background: bool | None = None
    include: list[Include] | None = None
    max_output_tokens: Annotated[int, Meta(ge=16)] | None = None
    max_tool_calls: Count | None = None
    metadata: Metadata | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: PromptCacheOptions | None = None
    prompt_cache_retention: Literal["in_memory", "in-memory", "24h"] | None = None
    safety_identifier: Annotated[str, Meta(max_length=64)] | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast", "ultrafast"] | None = None
    store: bool | None = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    user: str | None = None
    context_management: msgspec.Raw = msgspec.Raw()
    moderation: msgspec.Raw = msgspec.Raw()
    prompt: msgspec.Raw = msgspec.Raw()

    allowed_token_ids: Annotated[list[Count], Meta(min_length=1)] | None = None
    bad_words: list[Annotated[str, Meta(min_length=1)]] | None = None
    cache_salt: Annotated[str, Meta(min_length=1)] | None = None
    frequency_penalty: Penalty | None = None
    ignore_eos: bool | None = None
    logit_bias: dict[int, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    min_tokens: Count | None = None
    presence_penalty: Penalty | None = None
    priority: Annotated[int, Meta(ge=-(2**31), le=2**31)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0)] | None = None
    seed: int | None = None
    skip_special_tokens: bool | None = None
    stop: str | StopList | None = None
    stop_token_ids: list[Count] | None = None
    structured_outputs: StructuredOutputs | None = None
    top_k: Annotated[int, Meta(ge=-1)] | None = None


DECODER = msgspec.json.Decoder(ResponseRequest)


class InputTokensDetails(msgspec.Struct):
    cached_tokens: int = 0
    cache_write_tokens: int = 0


class OutputTokensDetails(msgspec.Struct):
    reasoning_tokens: int = 0


class ResponseUsage(msgspec.Struct):
    """Token counts of a response."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponseError(msgspec.Struct):
    """Why a response failed."""

    code: Literal["server_error"]
    message: str


class IncompleteDetails(msgspec.Struct):
    reason: Literal["max_output_tokens"]


class Response(msgspec.Struct, kw_only=True):
    """A response as it is now, with the request's settings given back."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: ResponseStatus
    background: bool = False
    completed_at: int | None = None
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    max_tool_calls: int | None = None
    model: str
    output: list[OutputItem] = msgspec.field(default_factory=list)
    parallel_tool_calls: bool = True
    previous_response_id: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | msgspec.UnsetType = msgspec.UNSET
    reasoning: ReasoningShown = msgspec.field(default_factory=ReasoningShown)
    safety_identifier: str | None = None
    service_tier: str = "default"
    store: bool = True
    temperature: float
    text: TextShown
    tool_choice: ToolChoiceField = "auto"
    tools: list[ResponseTool] = msgspec.field(default_factory=list)
    top_logprobs: int = 0
    top_p: float
    truncation: Literal["auto", "disabled"] = "disabled"
    usage: ResponseUsage | msgspec.UnsetType = msgspec.UNSET
    """Only at the end: the published schema knows no null here."""
    user: str | msgspec.UnsetType = msgspec.UNSET
    metadata: dict[str, str] = msgspec.field(default_factory=dict)


class InputTokensRequest(InputFields, kw_only=True):
    """`POST /v1/responses/input_tokens`."""


INPUT_TOKENS_DECODER = msgspec.json.Decoder(InputTokensRequest)


class InputTokens(msgspec.Struct):
    """How many tokens the model would read."""

    input_tokens: int
    object: Literal["response.input_tokens"] = "response.input_tokens"
