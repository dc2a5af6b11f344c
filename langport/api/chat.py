"""`POST /v1/chat/completions`."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec

from langport.api.generation import refuse_unsupported
from langport.api.http import Call, send_json
from langport.api.messages import function_tool, named_tool, read_tools, template_messages
from langport.api.model import ServedModel
from langport.api.streaming import stream_events
from langport.api.turn import ChatTurn, TurnAnswer, TurnEvent, TurnRequest, prepare_turn
from langport.api.turn import ToolCall as MadeCall
from langport.api.turn_end import Finish, TurnFinishReason
from langport.errors import InvalidRequest
from langport.text.answer import ReasoningDelta, TextDelta, ToolCallBegin, ToolCallDelta, ToolCallEnd
from langport.text.tools import FunctionTool, ToolChoice
from langport.wire.chat import (
    DECODER,
    AssistantMessage,
    ChatChoice,
    ChatChunkWriter,
    ChatCompletion,
    ChatFinishReason,
    ChatRequest,
    CustomCall,
    FunctionCall,
    FunctionCallChunkWriter,
    FunctionName,
    ToolCall,
    ToolReference,
    ToolSelection,
    chat_logprobs,
)
from langport.wire.error import decode_body


async def chat_completions(model: ServedModel, call: Call) -> None:
    """Answer a chat completion request. Raises: ApiError before anything was sent."""
    request = decode_body(DECODER, call.body)
    request.priority = (request.priority or 0) + call.priority
    headers = call.ignored(request)
    model.require(call.model, "generate")
    _check(request)
    info = await model.ready()
    answer_id = f"chatcmpl-{secrets.token_hex(16)}"
    turn = await prepare_turn(_turn_request(request), model, info, call.engine_id())
    call.meter(turn.tokens)
    created = int(time.time())
    tier = None if request.service_tier is None else "default"
    if request.stream:
        options = request.stream_options
        make_writer = FunctionCallChunkWriter if request.functions else ChatChunkWriter
        writer = make_writer(
            id=answer_id,
            created=created,
            model=call.model,
            num_choices=turn.num_choices,
            include_usage=bool(options and options.include_usage),
            obfuscate=bool(options and options.include_obfuscation),
            service_tier=tier,
        )
        chunks = _chunks(turn, writer, request)
        await stream_events(call.send, chunks, headers, call.request_id)
        return
    answers = await turn.answers()
    document = ChatCompletion(
        id=answer_id,
        created=created,
        model=call.model,
        choices=[_choice(index, answer, request) for index, answer in enumerate(answers)],
        usage=turn.usage(),
        service_tier=tier or msgspec.UNSET,
        prompt_logprobs=turn.prompt_logprobs(request.prompt_logprobs),
    )
    await send_json(call.send, document, headers)


def _choice(index: int, answer: TurnAnswer, request: ChatRequest) -> ChatChoice:
    is_silent = not answer.text and (answer.tool_calls or answer.reasoning)
    message = AssistantMessage(content=None if is_silent else answer.text)
    if answer.reasoning:
        message.reasoning = message.reasoning_content = answer.reasoning
    if answer.tool_calls and request.functions:
        (call,) = answer.tool_calls
        message.function_call = FunctionCall(call.name, call.arguments)
    elif answer.tool_calls:
        message.tool_calls = [_call(call) for call in answer.tool_calls]
    return ChatChoice(
        index=index,
        message=message,
        logprobs=chat_logprobs(answer.tokens) if request.logprobs else None,
        finish_reason=_reason(answer.finish_reason, request),
    )


def _call(call: MadeCall) -> ToolCall:
    if call.is_custom:
        return ToolCall(call.id, "custom", custom=CustomCall(call.name, call.arguments))
    return ToolCall(call.id, function=FunctionCall(call.name, call.arguments))


def _reason(reason: TurnFinishReason, request: ChatRequest) -> ChatFinishReason:
    return "function_call" if request.functions and reason == "tool_calls" else reason


async def _chunks(turn: ChatTurn, writer: ChatChunkWriter, request: ChatRequest) -> AsyncGenerator[bytes, None]:
    opened: set[int] = set()
    async with aclosing(turn.events()) as events:
        async for event in events:
            chunk = _chunk(event, writer, request)
            if event.choice not in opened:
                opened.add(event.choice)
                chunk = writer.opening(event.choice, has_text=isinstance(event.delta, TextDelta | Finish)) + chunk
            if chunk:
                yield chunk
    if request.stream_options is not None and request.stream_options.include_usage:
        yield writer.usage(turn.usage())


def _chunk(event: TurnEvent, writer: ChatChunkWriter, request: ChatRequest) -> bytes:
    """The event on the wire; nothing for what OpenAI's stream does not say."""
    match event.delta:
        case TextDelta(text):
            logprobs = None if event.tokens is None else chat_logprobs(event.tokens)
            return writer.piece(event.choice, text, logprobs)
        case ReasoningDelta(text):
            return writer.reasoning(event.choice, text)
        case ToolCallBegin(index, id, name, is_custom):
            begin = writer.custom_call if is_custom else writer.tool_call
            return begin(event.choice, index, id, name)
        case ToolCallDelta(index, arguments, is_custom):
            add = writer.custom_input if is_custom else writer.arguments
            return add(event.choice, index, arguments)
        case ToolCallEnd():
            return b""
        case Finish(reason):
            return writer.finish(event.choice, _reason(reason, request))


def _turn_request(request: ChatRequest) -> TurnRequest:
    value, param = request.max_completion_tokens, "max_completion_tokens"
    if value is None:
        value, param = request.max_tokens, "max_tokens"
    return TurnRequest(
        template_messages(request.messages or []),
        request,
        max_tokens=value,
        max_tokens_param=param,
        top_logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        tools=_tools(request),
        tools_param="functions" if request.functions else "tools",
        tool_choice=_tool_choice(request),
        parallel_tool_calls=request.parallel_tool_calls is not False and not request.functions,
        reasoning_effort=request.reasoning_effort,
        template_variables=request.chat_template_kwargs or {},
        add_generation_prompt=request.add_generation_prompt,
        continues_last=bool(request.continue_final_message),
        prediction="" if request.prediction is None else request.prediction.text,
    )


def _check(request: ChatRequest) -> None:
    """Raises: InvalidRequest for what is missing, contradictory, or documented but not honoured here."""
    if request.messages is None:
        raise InvalidRequest("messages is required.", param="messages")
    refuse_unsupported(
        request,
        audio=request.audio,
        moderation=request.moderation,
        web_search_options=request.web_search_options,
        chat_template=request.chat_template,
    )
    if request.modalities is not None and "audio" in request.modalities:
        raise InvalidRequest("modalities: this model answers with text only.", param="modalities")
    if request.top_logprobs is not None and not request.logprobs:
        raise InvalidRequest("top_logprobs is only allowed together with logprobs: true.", param="top_logprobs")
    if request.continue_final_message and request.add_generation_prompt:
        raise InvalidRequest(
            "continue_final_message and add_generation_prompt exclude each other.",
            param="continue_final_message",
        )
    _check_tools(request)


def _check_tools(request: ChatRequest) -> None:
    if request.functions is not None and request.tools is not None:
        raise InvalidRequest("functions and tools exclude each other; functions is the older form.", param="functions")
    if not request.functions and request.function_call not in (None, "none", "auto"):
        raise InvalidRequest("function_call is only allowed together with functions.", param="function_call")
    if not request.tools and request.tool_choice not in (None, "none", "auto"):
        raise InvalidRequest("tool_choice is only allowed together with tools.", param="tool_choice")


def _tools(request: ChatRequest) -> list[FunctionTool]:
    """The older `functions` are tools too."""
    return [*read_tools(request.tools or []), *map(function_tool, request.functions or [])]


def _tool_choice(request: ChatRequest) -> ToolChoice:
    """Raises: InvalidRequest for a choice that names no tool of the request."""
    choice = request.tool_choice
    if request.functions:
        legacy = request.function_call
        if isinstance(legacy, FunctionName):
            return ToolChoice("required", (named_tool(legacy.name, "function", _tools(request), "function_call"),))
        return ToolChoice(legacy or "auto")
    if not isinstance(choice, ToolSelection):
        return ToolChoice(choice or "auto")
    if choice.type == "allowed_tools":
        if choice.allowed_tools is None:
            raise InvalidRequest(
                "tool_choice of type allowed_tools needs allowed_tools with a mode and tools.",
                param="tool_choice.allowed_tools",
            )
        names = [_referred(tool, request) for tool in choice.allowed_tools.tools]
        return ToolChoice(choice.allowed_tools.mode, tuple(names))
    return ToolChoice("required", (_referred(choice, request),))


def _referred(tool: ToolReference | ToolSelection, request: ChatRequest) -> str:
    """The name of the tool, which is one of the request's and of that type."""
    named = tool.custom if tool.type == "custom" else tool.function
    if named is None:
        raise InvalidRequest(f"tool_choice of type {tool.type} needs {tool.type}.name.", param="tool_choice")
    return named_tool(named.name, tool.type, _tools(request), "tool_choice")
