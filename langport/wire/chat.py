"""`POST /v1/chat/completions`: the request, the answer and the chunks of a streamed answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from langport.wire import sse
from langport.wire.generation import (
    ChunkWriter,
    Count,
    GenerationFields,
    PromptCacheBreakpoint,
    PromptCacheOptions,
    PromptLogprobs,
    ScoredToken,
    Usage,
    finite,
    token_name,
)
from langport.wire.stored import Metadata

Role = Literal["developer", "system", "user", "assistant", "tool", "function"]
ToolName = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_.:/-]{1,128}$")]
ChatFinishReason = Literal["stop", "length", "tool_calls", "function_call"]


class ContentPart(msgspec.Struct):
    """One part of a message's content."""

    type: Literal["text", "refusal", "image_url", "input_audio", "file"]
    text: str | None = None
    refusal: str | None = None
    image_url: Any = None
    input_audio: Any = None
    file: Any = None
    prompt_cache_breakpoint: PromptCacheBreakpoint | None = None


class FunctionCall(msgspec.Struct):
    name: str
    arguments: str = ""


class CustomCall(msgspec.Struct):
    """A call of a custom tool."""

    name: str
    input: str


class ToolCall(msgspec.Struct):
    """A call that the assistant makes, or made in an earlier turn."""

    id: str
    type: Literal["function", "custom"] = "function"
    function: FunctionCall | msgspec.UnsetType | None = msgspec.UNSET
    custom: CustomCall | msgspec.UnsetType | None = msgspec.UNSET


class Message(msgspec.Struct):
    """One turn of the conversation."""

    role: Role
    content: str | Annotated[list[ContentPart], Meta(min_length=1)] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    function_call: FunctionCall | None = None
    refusal: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    audio: Any = None


class Function(msgspec.Struct, omit_defaults=True):
    """The definition of a function that the model may call."""

    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class InputGrammar(msgspec.Struct):
    syntax: Literal["lark", "regex"]
    definition: str


class InputFormat(msgspec.Struct):
    """What the input of a custom tool has to look like."""

    type: Literal["text", "grammar"]
    grammar: InputGrammar | None = None


class CustomTool(msgspec.Struct, omit_defaults=True):
    """The definition of a tool that the model calls with a text in place of arguments."""

    name: ToolName
    description: str | None = None
    format: InputFormat | None = None


class Tool(msgspec.Struct):
    type: Literal["function", "custom"]
    function: Function | None = None
    custom: CustomTool | None = None


class FunctionName(msgspec.Struct):
    name: str


class ToolReference(msgspec.Struct):
    """A tool by its name."""

    type: Literal["function", "custom"]
    function: FunctionName | None = None
    custom: FunctionName | None = None


class AllowedTools(msgspec.Struct):
    """A set of tools out of which the model may, or must, call."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[ToolReference], Meta(min_length=1)]


class ToolSelection(msgspec.Struct):
    """A named tool, or an allowed set of tools."""

    type: Literal["function", "custom", "allowed_tools"]
    function: FunctionName | None = None
    custom: FunctionName | None = None
    allowed_tools: AllowedTools | None = None


class PredictedPart(msgspec.Struct):
    type: Literal["text"]
    text: str


class Prediction(msgspec.Struct):
    """What the answer will probably repeat."""

    type: Literal["content"]
    content: str | Annotated[list[PredictedPart], Meta(min_length=1)]

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatRequest(GenerationFields, kw_only=True):
    """Every field OpenAI documents for chat completions, and the usual extras."""

    messages: Annotated[list[Message], Meta(min_length=1)] | None = None
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolSelection | None = None
    parallel_tool_calls: bool | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    functions: Annotated[list[Function], Meta(min_length=1, max_length=128)] | None = None
    function_call: Literal["none", "auto"] | FunctionName | None = None
    modalities: list[Literal["text", "audio"]] | None = None
    metadata: Metadata | None = None
    store: bool | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast"] | None = None
    safety_identifier: Annotated[str, Meta(max_length=64)] | None = None
    prediction: Prediction | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: PromptCacheOptions | None = None
    prompt_cache_retention: Literal["in_memory", "in-memory", "24h"] | None = None
    audio: msgspec.Raw = msgspec.Raw()
    moderation: msgspec.Raw = msgspec.Raw()
    web_search_options: msgspec.Raw = msgspec.Raw()

    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    chat_template: msgspec.Raw = msgspec.Raw()


DECODER = msgspec.json.Decoder(ChatRequest)


class TopLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]


class TokenEntry(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct):
    content: list[TokenEntry]
    refusal: None = None


def chat_logprobs(tokens: Sequence[ScoredToken]) -> ChatLogprobs:
    """The tokens in the form of `choices[].logprobs`."""
    return ChatLogprobs(
        [
            TokenEntry(
                token_name(token.text),
                finite(token.logprob or 0.0),
                list(token.text),
                [TopLogprob(token_name(text), finite(logprob), list(text)) for text, logprob in token.top],
            )
            for token in tokens
        ]
    )


class AssistantMessage(msgspec.Struct, kw_only=True):
    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: str | None = None
    reasoning: str | msgspec.UnsetType = msgspec.UNSET
    reasoning_content: str | msgspec.UnsetType = msgspec.UNSET
    """The same text: clients read it by either name."""
    tool_calls: list[ToolCall] | msgspec.UnsetType = msgspec.UNSET
    function_call: FunctionCall | msgspec.UnsetType = msgspec.UNSET


class ChatChoice(msgspec.Struct, kw_only=True):
    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinishReason


class ChatCompletion(msgspec.Struct, kw_only=True):
    """A whole answer."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    service_tier: str | msgspec.UnsetType = msgspec.UNSET
    prompt_logprobs: PromptLogprobs | msgspec.UnsetType = msgspec.UNSET


class ChatChunkWriter(ChunkWriter):
    """The events of a streamed chat completion. The role comes in a choice's first delta and in no other."""

    object_name = "chat.completion.chunk"
    before_text = '"delta":{"content":'
    after_text = "}"

    def opening(self, index: int, *, has_text: bool = True) -> bytes:
        """The event that begins a choice; `content` is null when it does not begin with text."""
        content = b'""' if has_text else b"null"
        return self._choice(index, b'{"role":"assistant","content":%b,"refusal":null}' % content)

    def reasoning(self, index: int, text: str) -> bytes:
        """The event that adds reasoning to a choice, under both names that clients read it by."""
        shown = sse.document(text)
        return self._choice(index, b'{"reasoning":%b,"reasoning_content":%b}' % (shown, shown))

    def tool_call(self, index: int, call: int, id: str, name: str) -> bytes:
        """The event that begins a call, the only one with its id and name."""
        function = b'{"name":%b,"arguments":""}' % sse.document(name)
        entry = b'{"index":%d,"id":%b,"type":"function","function":%b}' % (call, sse.document(id), function)
        return self._choice(index, b'{"tool_calls":[%b]}' % entry)

    def arguments(self, index: int, call: int, text: str) -> bytes:
        """The event that adds to a call's arguments."""
        entry = b'{"index":%d,"function":{"arguments":%b}}' % (call, sse.document(text))
        return self._choice(index, b'{"tool_calls":[%b]}' % entry)

    def custom_call(self, index: int, call: int, id: str, name: str) -> bytes:
        """The event that begins a call of a custom tool."""
        custom = b'{"name":%b,"input":""}' % sse.document(name)
        entry = b'{"index":%d,"id":%b,"type":"custom","custom":%b}' % (call, sse.document(id), custom)
        return self._choice(index, b'{"tool_calls":[%b]}' % entry)

    def custom_input(self, index: int, call: int, text: str) -> bytes:
        """The event that adds to the input of a custom tool."""
        entry = b'{"index":%d,"custom":{"input":%b}}' % (call, sse.document(text))
        return self._choice(index, b'{"tool_calls":[%b]}' % entry)

    def finish(self, index: int, reason: ChatFinishReason) -> bytes:
        return self._choice(index, b"{}", sse.document(reason))

    def _choice(self, index: int, delta: bytes, reason: bytes = b"null") -> bytes:
        choice = b'"choices":[{"index":%d,"delta":%b,"logprobs":null,"finish_reason":%b}]' % (
            index,
            delta,
            reason,
        )
        return self._head + choice + self._end()


class FunctionCallChunkWriter(ChatChunkWriter):
    """The same for requests with the older `functions`, which are answered with one `function_call`."""

    def tool_call(self, index: int, call: int, id: str, name: str) -> bytes:
        return self._choice(index, b'{"function_call":{"name":%b,"arguments":""}}' % sse.document(name))

    def arguments(self, index: int, call: int, text: str) -> bytes:
        return self._choice(index, b'{"function_call":{"arguments":%b}}' % sse.document(text))
