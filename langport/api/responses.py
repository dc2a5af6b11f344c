"""`POST /v1/responses`, and what counts or refuses beside it."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

import msgspec

from langport.api.http import Call, send_json
from langport.api.messages import named_tool
from langport.api.model import ServedModel
from langport.api.response_items import ItemIds, new_response_id, read_items, template_messages
from langport.api.response_runs import Runs
from langport.api.response_writer import ResponseWriter
from langport.api.streaming import stream_events
from langport.api.turn import ChatTurn, TurnRequest, prepare_turn
from langport.errors import ContextLengthExceeded, InvalidRequest
from langport.text.chat_template import Message
from langport.text.tools import CustomInput, FunctionTool, ToolChoice, custom_tool
from langport.types import ModelInfo
from langport.wire.dialect import RESPONSES
from langport.wire.error import decode_body
from langport.wire.generation import GenerationFields, is_given
from langport.wire.response_events import ResponseCompleted, ResponseIncomplete, encode_event
from langport.wire.response_items import (
    CallItem,
    CallOutputItem,
    CustomToolCallItem,
    CustomToolCallOutputItem,
    FunctionCallItem,
    FunctionCallOutputItem,
    InputItem,
    Item,
    MessageItem,
    ReasoningItem,
)
from langport.wire.responses import (
    DECODER,
    INPUT_TOKENS_DECODER,
    InputFields,
    InputTokens,
    Reasoning,
    ReasoningShown,
    Response,
    ResponseRequest,
    ResponseTool,
    TextConfig,
    TextFormat,
    TextShown,
    ToolSelection,
)
from langport.wire.structured import JsonSchema, ResponseFormat

LOGPROBS = "message.output_text.logprobs"
SAMPLING_FIELDS = (
    "allowed_token_ids",
    "bad_words",
    "cache_salt",
    "frequency_penalty",
    "ignore_eos",
    "logit_bias",
    "min_p",
    "min_tokens",
    "presence_penalty",
    "priority",
    "repetition_penalty",
    "seed",
    "skip_special_tokens",
    "stop",
    "stop_token_ids",
    "structured_outputs",
    "temperature",
    "top_k",
    "top_p",
)
"""What is passed on as it is."""

_PLACES = {"response_format.json_schema": "text.format", "response_format": "text.format", "messages": "input"}
"""Where a response says what chat completions call so."""


@dataclass(frozen=True)
class Prepared:
    """A response ready to be written."""

    turn: ChatTurn
    items: list[Item]
    """The request's own input."""


class Responses:
    """The handlers of one model."""

    def __init__(self, runs: Runs) -> None:
        """`runs`, and the store beneath, are those of all models."""
        self._runs = runs
        self._store = runs.store

    async def create(self, model: ServedModel, call: Call) -> None:
        """Answer a request for a response. Raises: ApiError before anything was sent."""
        request = decode_body(DECODER, call.body)
        model.require(call.model, "generate")
        _check(request)
        self._check_background(request)
        info = await model.ready()
        response = _response(request, call.model, model)
        if request.store is not False:
            await self._store.check(call.owner)
        prepared = await self._prepare(request, model, info, call, response.id)
        headers = call.ignored(request)  # after items and tools that are refused by name, with all their fields
        response.store = self._store.keeps and request.store is not False
        writer = ResponseWriter(
            response,
            has_logprobs=LOGPROBS in (request.include or ()),
            has_summary=_summary(request.reasoning) is not None,
            obfuscate=bool(request.stream_options and request.stream_options.include_obfuscation),
        )
        call.meter(prepared.turn.tokens)
        if request.background:
            run = await self._runs.start(
                writer,
                prepared.turn,
                prepared.items,
                owner=call.owner,
                request_id=call.request_id,
                is_streamed=bool(request.stream),
            )
            call.meter(prepared.turn.tokens, run.task)
            if request.stream:
                await stream_events(call.send, run.follow(), headers, call.request_id, RESPONSES)
            else:
                await send_json(call.send, response, headers)
        elif request.stream:
            events = self._encoded(writer, prepared, call)
            await stream_events(call.send, events, headers, call.request_id, RESPONSES)
        else:
            async with aclosing(self._encoded(writer, prepared, call)) as events:
                async for _ in events:
                    pass
            if writer.error is not None:
                raise writer.error
            await send_json(call.send, response, headers)

    async def count(self, model: ServedModel, call: Call) -> None:
        """`POST /v1/responses/input_tokens`: how many tokens a response's model would read."""
        request = decode_body(INPUT_TOKENS_DECODER, call.body)
        model.require(call.model, "generate")
        _check_input(request)
        info = await model.ready()
        prepared = await self._prepare(request, model, info, call, new_response_id())
        headers = call.ignored(request)
        await send_json(call.send, InputTokens(prepared.turn.usage().prompt_tokens), headers)

    async def _encoded(self, writer: ResponseWriter, prepared: Prepared, call: Call) -> AsyncGenerator[bytes, None]:
        """The events; the response is kept before the last one tells of its end."""
        async with aclosing(writer.events(prepared.turn, call.request_id)) as events:
            async for event in events:
                if isinstance(event, ResponseCompleted | ResponseIncomplete) and writer.response.store:
                    await self._store.keep(writer.response, prepared.items, call.owner)
                yield encode_event(event)

    def _check_background(self, request: ResponseRequest) -> None:
        if request.background and request.store is False:
            raise InvalidRequest(
                "background: true needs the response to be stored; leave out store: false.", param="background"
            )
        if request.background and not self._store.keeps:
            raise InvalidRequest(
                "background: this server keeps no responses (it runs with --store none), so it works on none in the "
                "background.",
                param="background",
            )

    async def _prepare(
        self, request: InputFields, model: ServedModel, info: ModelInfo, call: Call, response_id: str
    ) -> Prepared:
        """Raises: InvalidRequest naming the parameter that does not fit."""
        given = read_items(_input(request), ItemIds(response_id))
        own = await self._store.resolve(given, call.owner)
        history: list[Item] = []
        if request.previous_response_id is not None:
            history = await self._store.history(
                request.previous_response_id, call.owner, may_begin_late=request.truncation == "auto"
            )
        asked = _turn_request(request, call.priority)

        async def prepare(items: Sequence[Item]) -> ChatTurn:
            messages = [*asked.messages, *template_messages(items)]
            return await prepare_turn(replace(asked, messages=messages), model, info, call.engine_id())

        _check_calls(history, own)
        context = request.reasoning.context if request.reasoning else None
        conversation = _remembered([*history, *own], context)
        if request.truncation == "auto":
            return Prepared(await _longest(conversation, prepare, _room(asked, info)), own)
        return Prepared(await prepare(conversation), own)


def _remembered(items: list[Item], context: str | None) -> list[Item]:
    """The items that the model reads: with `current_turn` none of what it thought before the last user's message."""
    if context != "current_turn":
        return items
    users = [index for index, item in enumerate(items) if isinstance(item, MessageItem) and item.role == "user"]
    last = users[-1] if users else 0
    return [item for index, item in enumerate(items) if index > last or not isinstance(item, ReasoningItem)]


_CALLS_OF: dict[type[CallOutputItem], type[CallItem]] = {
    FunctionCallOutputItem: FunctionCallItem,
    CustomToolCallOutputItem: CustomToolCallItem,
}


def _check_calls(history: Sequence[Item], own: Sequence[Item]) -> None:
    """Raises: InvalidRequest naming the output of a call that nobody made."""
    called = {(type(item), item.call_id) for item in history if isinstance(item, CallItem)}
    for index, item in enumerate(own):
        if isinstance(item, CallItem):
            called.add((type(item), item.call_id))
        elif isinstance(item, CallOutputItem) and (_CALLS_OF[type(item)], item.call_id) not in called:
            kind = "function" if isinstance(item, FunctionCallOutputItem) else "custom tool"
            raise InvalidRequest(
                f"No tool call found for {kind} call output with call_id {item.call_id}: send the "
                f"{kind.replace(' ', '_')}_call before it, or continue the response that made it with "
                "previous_response_id.",
                param=f"input[{index}].call_id",
            )


async def _longest(
    items: Sequence[Item], prepare: Callable[[Sequence[Item]], Awaitable[ChatTurn]], room: int
) -> ChatTurn:
    """The turn after as much of the end of a conversation as fits into `room` tokens.

    What is left begins with a user's message, behind the system's. Raises: ContextLengthExceeded when not even the
    last one fits.
    """

    async def fits(start: int) -> bool:
        try:
            turn = await prepare(_from(items, start))
        except ContextLengthExceeded:
            return False
        return turn.usage().prompt_tokens <= room

    starts = [0, *(i for i, item in enumerate(items) if i and isinstance(item, MessageItem) and item.role == "user")]
    low, high = 0, len(starts) - 1
    while low < high:
        middle = (low + high) // 2 if low else 0  # most often all of it fits
        if await fits(starts[middle]):
            high = middle
        else:
            low = middle + 1
    return await prepare(_from(items, starts[low]))


def _from(items: Sequence[Item], start: int) -> list[Item]:
    kept = [i for i in items[:start] if isinstance(i, MessageItem) and i.role in ("system", "developer")]
    return [*kept, *items[start:]]


def _room(turn: TurnRequest, info: ModelInfo) -> int:
    """How long a prompt may be that leaves room for the answer that was asked for, or for half of the context."""
    if info.kind != "decoder":
        return info.max_model_len
    return info.max_model_len - min(turn.max_tokens or 1, info.max_model_len // 2)


def _turn_request(request: InputFields, priority: int) -> TurnRequest:
    """All but the messages of the input."""
    instructions: list[Message] = []
    if request.instructions is not None:
        instructions.append({"role": "system", "content": request.instructions})
    fields = GenerationFields(priority=priority)
    max_tokens, top_logprobs = None, None
    if isinstance(request, ResponseRequest):
        fields = GenerationFields(**{name: getattr(request, name) for name in SAMPLING_FIELDS})
        fields.priority = (request.priority or 0) + priority
        max_tokens = request.max_output_tokens
        fields.response_format = _response_format(request.text)
        top_logprobs = (request.top_logprobs or 0) if LOGPROBS in (request.include or ()) else None
    tools = _tools(request.tools or [])
    return TurnRequest(
        instructions,
        fields,
        max_tokens=max_tokens,
        top_logprobs=top_logprobs,
        tools=tools,
        tool_choice=_tool_choice(request, tools),
        parallel_tool_calls=request.parallel_tool_calls is not False,
        reasoning_effort=request.reasoning.effort if request.reasoning else None,
        template_variables=request.chat_template_kwargs or {},
        messages_param="input",
        max_tokens_param="max_output_tokens",
        places=_PLACES,
    )


def _response_format(text: TextConfig | None) -> ResponseFormat | None:
    wanted = text.format if text else None
    if wanted is None:
        return None
    schema = None
    if wanted.type == "json_schema":
        schema = JsonSchema(wanted.name or "", wanted.description, wanted.schema, wanted.strict)
    return ResponseFormat(wanted.type, schema)


def _input(request: InputFields) -> str | list[InputItem]:
    if request.input is None:
        raise InvalidRequest("input is required: a text, or a list of items.", param="input")
    if not request.input and request.previous_response_id is None:
        raise InvalidRequest("input is empty; give a text, or a list of items.", param="input")
    return request.input


def _tools(tools: Sequence[ResponseTool]) -> list[FunctionTool]:
    found = []
    for index, tool in enumerate(tools):
        if tool.type not in ("function", "custom"):
            raise InvalidRequest(
                f"tools[{index}] is of type {tool.type}; this server has no such tool. It takes tools of "
                "type function and custom, which you run yourself.",
                param=f"tools[{index}].type",
            )
        if not tool.name:
            raise InvalidRequest(f"tools[{index}].name is required.", param=f"tools[{index}].name")
        if tool.type == "custom":
            found.append(custom_tool(tool.name, tool.description, _custom_input(tool, f"tools[{index}].format")))
        else:
            parameters = None if tool.parameters is msgspec.UNSET else tool.parameters
            strict = None if tool.strict is msgspec.UNSET else tool.strict
            found.append(FunctionTool(tool.name, tool.description, parameters, strict))
    return found


def _custom_input(tool: ResponseTool, place: str) -> CustomInput:
    if not tool.format or tool.format.type == "text":
        return CustomInput()
    for name in ("syntax", "definition"):
        if getattr(tool.format, name) is None:
            raise InvalidRequest(f"{place}.{name} is required in a format of type grammar.", param=f"{place}.{name}")
    return CustomInput(tool.format.syntax, tool.format.definition or "", f"{place}.definition")


def _tool_choice(request: InputFields, tools: Sequence[FunctionTool]) -> ToolChoice:
    choice = request.tool_choice
    if choice is None or choice in ("none", "auto"):
        return ToolChoice("none" if choice == "none" else "auto")
    if not tools:
        raise InvalidRequest("tool_choice is only allowed together with tools.", param="tool_choice")
    if not isinstance(choice, ToolSelection):
        return ToolChoice("required")
    if choice.type in ("function", "custom"):
        return ToolChoice("required", (named_tool(choice.name, choice.type, tools, "tool_choice"),))
    if choice.type != "allowed_tools":
        raise InvalidRequest(
            f"tool_choice is of type {choice.type}; this server has no such tool. It knows function, custom and "
            "allowed_tools.",
            param="tool_choice",
        )
    if not choice.tools:
        raise InvalidRequest("tool_choice.tools is empty; name the tools that may be called.", param="tool_choice")
    names = tuple(named_tool(tool.name, tool.type, tools, "tool_choice") for tool in choice.tools)
    return ToolChoice("required" if choice.mode == "required" else "auto", names)


def _summary(reasoning: Reasoning | None) -> str | None:
    """What kind of summary is wanted of the reasoning. The whole of it is the most detailed there is."""
    return None if reasoning is None else reasoning.summary or reasoning.generate_summary


def _response(request: ResponseRequest, model_name: str, model: ServedModel) -> Response:
    """The response before anything has happened, with the settings that apply."""
    temperature = model.default("temperature", 1.0) if request.temperature is None else request.temperature
    text = request.text or TextConfig()
    response = Response(
        id=new_response_id(),
        created_at=int(time.time()),
        status="queued",
        background=bool(request.background),
        instructions=request.instructions,
        max_output_tokens=request.max_output_tokens,
        max_tool_calls=request.max_tool_calls,
        model=model_name,
        parallel_tool_calls=request.parallel_tool_calls is not False,
        previous_response_id=request.previous_response_id,
        prompt_cache_key=request.prompt_cache_key,
        reasoning=ReasoningShown(request.reasoning.effort if request.reasoning else None, _summary(request.reasoning)),
        safety_identifier=request.safety_identifier,
        temperature=temperature,
        text=TextShown(text.format or TextFormat("text"), text.verbosity or "medium"),
        tool_choice=request.tool_choice or "auto",
        tools=request.tools or [],
        top_logprobs=request.top_logprobs or 0,
        top_p=model.default("top_p", 1.0) if request.top_p is None else request.top_p,
        truncation=request.truncation or "disabled",
        metadata=request.metadata or {},
    )
    if request.prompt_cache_retention is not None:
        response.prompt_cache_retention = request.prompt_cache_retention
    if request.user is not None:
        response.user = request.user
    return response


def _check(request: ResponseRequest) -> None:
    """Raises: InvalidRequest for what is documented but not honoured here, or does not go together."""
    for name in ("context_management", "moderation", "prompt"):
        if is_given(getattr(request, name)):
            raise InvalidRequest(f"{name} is not supported by this server; leave it out.", param=name)
    if request.stream_options is not None and not request.stream:
        raise InvalidRequest("stream_options is only allowed together with stream: true.", param="stream_options")
    _check_input(request)


def _check_input(request: InputFields) -> None:
    if is_given(request.conversation):
        raise InvalidRequest(
            "conversation is not supported by this server; continue a response with previous_response_id.",
            param="conversation",
        )
    if request.reasoning is not None:
        _check_reasoning(request.reasoning)


def _check_reasoning(reasoning: Reasoning) -> None:
    for name in ("summary", "generate_summary"):
        if getattr(reasoning, name) == "concise":
            raise InvalidRequest(
                f"reasoning.{name} concise is not supported: this server does not shorten what a model thinks. "
                "auto and detailed give all of it.",
                param=f"reasoning.{name}",
            )
    if reasoning.mode not in (None, "standard"):
        raise InvalidRequest(
            f"reasoning.mode {reasoning.mode[:100]!r} is not supported; models think in the mode standard here.",
            param="reasoning.mode",
        )
