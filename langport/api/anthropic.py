"""`POST /v1/messages` and `/v1/messages/count_tokens`: Anthropic's way to ask for a turn and to read its answer."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from langport.api.http import Call, send_json
from langport.api.model import ServedModel
from langport.api.streaming import stream_events
from langport.api.turn import ChatTurn, TurnRequest, encode_turn, prepare_turn
from langport.api.turn_end import Finish
from langport.errors import InvalidRequest
from langport.text.answer import AnswerDelta, ReasoningDelta, TextDelta, ToolCallBegin, ToolCallDelta
from langport.text.chat_template import Message
from langport.text.tools import AUTO, FunctionTool, ToolChoice
from langport.wire import anthropic as wire
from langport.wire.anthropic import ContentBlock, CountTokensRequest, InputMessage, MessagesRequest
from langport.wire.error import decode_body
from langport.wire.generation import GenerationFields, Usage
from langport.wire.structured import JsonSchema, ResponseFormat


async def messages(model: ServedModel, call: Call) -> None:
    """Answer a conversation. Raises: ApiError before anything was sent."""
    request = decode_body(wire.DECODER, call.body)
    model.require(call.model, "generate")
    asked = replace(_turn_request(request), fields=_drawing(request, call.priority), max_tokens=request.max_tokens)
    headers = call.ignored(request, *_unread(request))
    info = await model.ready()
    turn = await prepare_turn(asked, model, info, call.engine_id())
    call.meter(turn.tokens)
    reply = _Reply(turn, request, call.model)
    if request.stream:
        await stream_events(call.send, reply.events(), headers, call.request_id, wire.ANTHROPIC)
    else:
        await send_json(call.send, await reply.whole(), headers)


async def count_tokens(model: ServedModel, call: Call) -> None:
    """How many tokens a conversation is. Raises: ApiError before anything was sent."""
    request = decode_body(wire.COUNT_DECODER, call.body)
    model.require(call.model, "generate")
    asked = _turn_request(request)
    headers = call.ignored(request, *_unread(request))
    prompt = await encode_turn(asked, model)
    await send_json(call.send, wire.TokenCount(len(prompt.token_ids)), headers)


# The request.

_PLACES = {"response_format.json_schema": "output_config.format"}
"""Where this API says what chat completions call so."""


def _turn_request(request: CountTokensRequest) -> TurnRequest:
    """Raises: InvalidRequest for what is incomplete, contradictory, or documented but not honoured here."""
    _refuse_unsupported(request)
    tools = [_tool(tool, f"tools[{index}]") for index, tool in enumerate(request.tools or [])]
    choice = request.tool_choice
    continues_last = request.messages[-1].role == "assistant"
    conversation = _conversation(request)
    if continues_last:
        _check_continued(conversation[-1], thinks=_thinks(request))
    return TurnRequest(
        conversation,
        tools=tools,
        tool_choice=_tool_choice(choice, tools),
        parallel_tool_calls=not (choice and choice.disable_parallel_tool_use),
        reasoning_effort=request.output_config.effort if request.output_config else None,
        template_variables=_template_variables(request) | (request.chat_template_kwargs or {}),
        continues_last=continues_last,
        places=_PLACES,
    )


def _drawing(request: MessagesRequest, priority: int) -> GenerationFields:
    wanted = request.output_config.format if request.output_config else None
    schema = None if wanted is None else ResponseFormat("json_schema", JsonSchema("answer", schema=wanted.schema))
    return GenerationFields(
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        stop=request.stop_sequences or None,
        stream=request.stream,
        priority=priority,
        response_format=schema,
    )


def _refuse_unsupported(request: CountTokensRequest) -> None:
    given = {
        "mcp_servers": request.mcp_servers,
        "container": request.container if isinstance(request, MessagesRequest) else None,
    }
    for name, value in given.items():
        if value:
            raise InvalidRequest(f"{name} is not supported by this server; leave it out.", param=name)


def _thinks(request: CountTokensRequest) -> bool:
    return request.thinking is not None and request.thinking.type != "disabled"


def _template_variables(request: CountTokensRequest) -> dict[str, Any]:
    """What chat templates call the switch of reasoning and its budget.

    Without `thinking` a model does not think, as Anthropic documents; templates without a switch do as they do.
    Raises: InvalidRequest for a budget that is missing or does not fit.
    """
    thinks = _thinks(request)
    variables: dict[str, Any] = {"enable_thinking": thinks, "thinking": thinks}
    if request.thinking is None or request.thinking.type != "enabled":
        return variables
    budget = request.thinking.budget_tokens
    if budget is None:
        raise InvalidRequest("thinking.budget_tokens is required.", param="thinking.budget_tokens")
    if isinstance(request, MessagesRequest) and budget >= request.max_tokens:
        raise InvalidRequest(
            f"thinking.budget_tokens must be below max_tokens ({request.max_tokens}), got {budget}.",
            param="thinking.budget_tokens",
        )
    return variables | {"thinking_budget": budget}


def _tool(tool: wire.ToolDefinition, where: str) -> FunctionTool:
    if tool.type not in (None, "custom"):
        raise InvalidRequest(
            f"{where} is of type {tool.type}; this server takes tools that the client runs, with a name and an "
            "input_schema.",
            param=f"{where}.type",
        )
    if tool.name is None:
        raise _missing(f"{where}.name")
    if tool.input_schema is None:
        raise _missing(f"{where}.input_schema")
    return FunctionTool(tool.name, tool.description, tool.input_schema, tool.strict)


def _tool_choice(choice: wire.ToolUseChoice | None, tools: Sequence[FunctionTool]) -> ToolChoice:
    if choice is None:
        return AUTO
    if choice.type in ("auto", "none"):
        return ToolChoice(choice.type)
    if not tools:
        raise InvalidRequest(f"tool_choice of type {choice.type} needs tools.", param="tool_choice")
    if choice.type == "any":
        return ToolChoice("required")
    if choice.name is None:
        raise _missing("tool_choice.name")
    if all(tool.name != choice.name for tool in tools):
        raise InvalidRequest(f"tool_choice.name is {choice.name!r}, which is not in tools.", param="tool_choice.name")
    return ToolChoice("required", (choice.name,))


def _check_continued(message: Message, *, thinks: bool) -> None:
    """Raises: InvalidRequest when no answer can go on after the last message."""
    content = message.get("content") or ""
    text = content if isinstance(content, str) else content[-1]["text"]
    if message.get("tool_calls"):
        reason = "calls tools, so it must be followed by their results"
    elif thinks:
        reason = "is the assistant's, which cannot be continued with thinking"
    elif text != text.rstrip():
        reason = "is to be continued, so it must not end with white space"
    else:
        return
    raise InvalidRequest(f"The last of the messages {reason}.", param="messages")


# The conversation.

_READABLE = {
    "user": ("text", "tool_result"),
    "assistant": ("text", "thinking", "redacted_thinking", "tool_use"),
    "system": ("text",),
    "tool_result": ("text",),
}
"""Types of blocks that a text model reads, by where they stand."""

_Placed = tuple[str, ContentBlock]
"""A block and where it stands."""


def _conversation(request: CountTokensRequest) -> list[Message]:
    """Messages as chat templates read them; neighbours of one role are one turn.

    Raises: InvalidRequest naming the block that is incomplete or that a text model cannot read.
    """
    found: list[Message] = []
    system = request.system
    if system:
        texts = [system] if isinstance(system, str) else [block.text for block in system]
        found.append({"role": "system", "content": _content(texts)})
    names: dict[str, str] = {}
    for role, blocks in _turns(request.messages):
        for place, block in blocks:
            _check_block(block, place, role)
        if role == "assistant":
            found.append(_assistant(blocks, names))
        else:
            found.extend(_tool_results(blocks, names))
            texts = [block.text or "" for _, block in blocks if block.type == "text"]
            if texts:
                found.append({"role": role, "content": _content(texts)})
    return found


def _turns(given: Sequence[InputMessage]) -> list[tuple[wire.Role, list[_Placed]]]:
    turns: list[tuple[wire.Role, list[_Placed]]] = []
    for index, message in enumerate(given):
        place = f"messages[{index}].content"
        content = message.content
        if isinstance(content, str):
            blocks = [(place, ContentBlock("text", text=content))]
        else:
            blocks = [(f"{place}[{number}]", block) for number, block in enumerate(content)]
        if turns and turns[-1][0] == message.role:
            turns[-1][1].extend(blocks)
        else:
            turns.append((message.role, blocks))
    return turns


_REQUIRED: dict[str, tuple[str, ...]] = {
    "text": ("text",),
    "thinking": ("thinking",),
    "redacted_thinking": (),
    "tool_use": ("id", "name", "input"),
    "tool_result": ("tool_use_id",),
}
"""The fields that a block of each type needs."""


def _check_block(block: ContentBlock, place: str, context: str) -> None:
    readable = _READABLE[context]
    if block.type not in readable:
        raise InvalidRequest(
            f"{place} is of type {block.type}; this model reads only {' and '.join(readable)} there.",
            param=f"{place}.type",
        )
    for name in _REQUIRED[block.type]:
        if getattr(block, name) is None:
            raise _missing(f"{place}.{name}")


def _assistant(blocks: list[_Placed], names: dict[str, str]) -> Message:
    message: Message = {"role": "assistant", "content": None}
    texts = [block.text or "" for _, block in blocks if block.type == "text"]
    thoughts = [block.thinking or "" for _, block in blocks if block.type == "thinking"]
    calls = [block for _, block in blocks if block.type == "tool_use"]
    if texts or not calls:
        message["content"] = _content(texts)
    if any(thoughts):
        message["reasoning"] = "\n".join(thoughts)
    if calls:
        message["tool_calls"] = [
            {
                "id": block.id,
                "type": "function",
                "function": {"name": block.name, "arguments": json.dumps(block.input, ensure_ascii=False)},
            }
            for block in calls
        ]
        names.update({block.id or "": block.name or "" for block in calls})
    return message


def _tool_results(blocks: list[_Placed], names: dict[str, str]) -> Iterator[Message]:
    for place, block in blocks:
        if block.type != "tool_result":
            continue
        id = block.tool_use_id or ""
        if id not in names:
            raise InvalidRequest(
                f"{place}.tool_use_id is {id[:200]!r}, but no tool_use before it has that id.",
                param=f"{place}.tool_use_id",
            )
        content = block.content or ""
        parts = [content] if isinstance(content, str) else _result_texts(content, place)
        if block.is_error:  # templates know no failed calls, so the text must say it
            parts = ["Error: " + "\n".join(parts) if any(parts) else "Error"]
        yield {"role": "tool", "tool_call_id": id, "name": names[id], "content": _content(parts)}


def _result_texts(blocks: list[ContentBlock], place: str) -> list[str]:
    for index, block in enumerate(blocks):
        _check_block(block, f"{place}.content[{index}]", "tool_result")
    return [block.text or "" for block in blocks]


def _content(texts: list[str]) -> str | list[dict[str, str]]:
    if len(texts) < 2:
        return texts[0] if texts else ""
    return [{"type": "text", "text": text} for text in texts]


def _unread(request: CountTokensRequest) -> Iterator[str]:
    """What only the server that wrote it can read."""
    for _, blocks in _turns(request.messages):
        yield from (place for place, block in blocks if block.type == "redacted_thinking")


def _missing(place: str) -> InvalidRequest:
    return InvalidRequest(f"{place} is required.", param=place)


# The answer.


@dataclass
class _Block:
    """A block of the answer while it grows."""

    kind: Literal["text", "thinking", "input_json"]
    id: str = ""
    name: str = ""
    parts: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.parts)

    def signature(self) -> str:
        """Clients keep a thinking block only with one."""
        return base64.b64encode(hashlib.sha256(self.text.encode()).digest()).decode()

    def opening(self) -> wire.AnswerBlock:
        """The block as a stream first shows it."""
        match self.kind:
            case "text":
                return wire.TextAnswer("")
            case "thinking":
                return wire.ThinkingAnswer("", "")
            case "input_json":
                return wire.ToolUseAnswer(self.id, self.name, {})

    def whole(self) -> wire.AnswerBlock:
        match self.kind:
            case "text":
                return wire.TextAnswer(self.text)
            case "thinking":
                return wire.ThinkingAnswer(self.text, self.signature())
            case "input_json":
                return wire.ToolUseAnswer(self.id, self.name, _input(self.text))


def _input(arguments: str) -> dict[str, Any]:
    """{} for what is no object, as when the end of the answer cut a call off; a stream shows its text."""
    try:
        found = json.loads(arguments)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


class _Reply:
    """A turn's answer as blocks: streamed, or whole."""

    def __init__(self, turn: ChatTurn, request: MessagesRequest, model: str) -> None:
        self._turn = turn
        self._max_tokens = request.max_tokens
        self._model = model
        thinking = request.thinking
        self._shows_thinking = _thinks(request)
        self._omits_thoughts = thinking is not None and thinking.display == "omitted"
        self._blocks: list[_Block] = []
        self._finish = Finish("length")

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The events of a stream. Raises: EngineFailed, Unavailable."""
        is_open = False
        async with aclosing(self._deltas()) as deltas:
            async for delta in deltas:
                if not is_open:
                    is_open = True
                    yield wire.message_start(self._message([])) + wire.PING
                chunk = self._chunk(delta)
                if chunk:
                    yield chunk
        reason, stop_sequence = self._stop_reason()
        end = wire.message_delta(reason, stop_sequence, _counted(self._turn.usage()))
        yield self._close_last() + end + wire.MESSAGE_STOP

    async def whole(self) -> wire.MessageAnswer:
        """The fold of the same. Raises: EngineFailed, Unavailable."""
        async with aclosing(self._deltas()) as deltas:
            async for delta in deltas:
                self._add(delta)
        message = self._message([block.whole() for block in self._blocks])
        message.stop_reason, message.stop_sequence = self._stop_reason()
        return message

    async def _deltas(self) -> AsyncGenerator[AnswerDelta | Finish, None]:
        async with aclosing(self._turn.events()) as events:
            async for event in events:
                if isinstance(event.delta, Finish):
                    self._finish = event.delta
                yield event.delta

    def _chunk(self, delta: AnswerDelta | Finish) -> bytes:
        """The events for something new; none for what the client does not see."""
        added = self._add(delta)
        if added is None:
            return b""
        is_new, text = added
        index = len(self._blocks) - 1
        opening = b""
        if is_new:
            opening = self._close(index - 1) + wire.block_start(index, self._blocks[index].opening())
        return opening + (wire.block_delta(index, self._blocks[index].kind, text) if text else b"")

    def _add(self, delta: AnswerDelta | Finish) -> tuple[bool, str] | None:
        """Add to the blocks: whether a new one began, and its further text; None where nothing is shown."""
        match delta:
            case TextDelta(text) if text:
                return self._grow("text", text)
            case ReasoningDelta(text) if text and self._shows_thinking:
                return self._grow("thinking", "" if self._omits_thoughts else text)
            case ToolCallBegin(_, id, name):
                self._blocks.append(_Block("input_json", "toolu_" + id.removeprefix("call_"), name))
                return True, ""
            case ToolCallDelta(_, arguments):
                return self._grow("input_json", arguments)
        return None

    def _grow(self, kind: Literal["text", "thinking", "input_json"], text: str) -> tuple[bool, str]:
        is_new = not self._blocks or self._blocks[-1].kind != kind
        if is_new:
            self._blocks.append(_Block(kind))
        self._blocks[-1].parts.append(text)
        return is_new, text

    def _close_last(self) -> bytes:
        return self._close(len(self._blocks) - 1)

    def _close(self, index: int) -> bytes:
        if index < 0:
            return b""
        block = self._blocks[index]
        signature = wire.block_delta(index, "signature", block.signature()) if block.kind == "thinking" else b""
        return signature + wire.block_stop(index)

    def _message(self, content: list[wire.AnswerBlock]) -> wire.MessageAnswer:
        counted = _counted(self._turn.usage())
        return wire.MessageAnswer(
            id=f"msg_{secrets.token_hex(16)}",
            model=self._model,
            content=content,
            usage=wire.MessageUsage(
                input_tokens=counted.input_tokens,
                cache_read_input_tokens=counted.cache_read_input_tokens,
                output_tokens=counted.output_tokens,
                output_tokens_details=counted.output_tokens_details,
            ),
        )

    def _stop_reason(self) -> tuple[wire.StopReason, str | None]:
        reason, stop_string = self._finish.reason, self._finish.stop_string
        if reason == "length":
            is_limit = self._turn.usage().completion_tokens >= self._max_tokens
            return ("max_tokens" if is_limit else "model_context_window_exceeded"), None
        if any(block.kind == "input_json" for block in self._blocks):
            return "tool_use", None
        return ("end_turn", None) if stop_string is None else ("stop_sequence", stop_string)


def _counted(usage: Usage) -> wire.CountedTokens:
    cached = usage.prompt_tokens_details.cached_tokens
    return wire.CountedTokens(
        input_tokens=usage.prompt_tokens - cached,
        cache_read_input_tokens=cached,
        output_tokens=usage.completion_tokens,
        output_tokens_details=wire.OutputTokensDetails(usage.completion_tokens_details.reasoning_tokens),
    )
