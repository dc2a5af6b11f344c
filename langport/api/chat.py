"""`POST /v1/chat/completions`."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec

from langport.api.generation import refuse_unsupported
from langport.api.http import Call, ignored_header, send_json
from langport.api.messages import function_tool, function_tools, template_messages
from langport.api.model import ServedModel
from langport.api.streaming import stream_events
from langport.api.turn import ChatTurn, Finish, TurnAnswer, TurnEvent, TurnRequest, prepare_turn
from langport.errors import InvalidRequest
from langport.text.answer import ReasoningDelta, TextDelta, ToolCallBegin, ToolCallDelta
from langport.text.tools import ToolChoice
from langport.wire.chat import (
    DECODER,
    AssistantMessage,
    ChatChoice,
    ChatChunkWriter,
    ChatCompletion,
    ChatRequest,
    FunctionCall,
    ToolCall,
    ToolSelection,
    chat_logprobs,
)
from langport.wire.error import decode_body, unknown_fields


async def chat_completions(model: ServedModel, call: Call) -> None:
    """Answer a chat completion request. Raises: ApiError before anything was sent."""
    request = decode_body(DECODER, call.body)
    request.priority = (request.priority or 0) + call.priority
    headers = ignored_header(unknown_fields(call.body, ChatRequest))
    model.require(call.model, generates=True)
    _check(request)
    info = await model.ready()
    answer_id = f"chatcmpl-{secrets.token_hex(16)}"
    turn = await prepare_turn(_turn_request(request), model, info, call.engine_id())
    created = int(time.time())
    tier = None if request.service_tier is None else "default"
    if request.stream:
        options = request.stream_options
        writer = ChatChunkWriter(
            id=answer_id,
            created=created,
            model=call.model,
            num_choices=turn.num_choices,
            include_usage=bool(options and options.include_usage),
            obfuscate=bool(options and options.include_obfuscation),
            service_tier=tier,
        )
        chunks = _chunks(turn, writer, has_usage=bool(options and options.include_usage))
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
    message = AssistantMessage(content=answer.text if answer.text or not answer.tool_calls else None)
    if answer.reasoning:
        message.reasoning = message.reasoning_content = answer.reasoning
    if answer.tool_calls:
        message.tool_calls = [
            ToolCall(id=call.id, function=FunctionCall(call.name, call.arguments)) for call in answer.tool_calls
        ]
    return ChatChoice(
        index=index,
        message=message,
        logprobs=chat_logprobs(answer.tokens) if request.logprobs else None,
        finish_reason=answer.finish_reason,
    )


async def _chunks(turn: ChatTurn, writer: ChatChunkWriter, *, has_usage: bool) -> AsyncGenerator[bytes, None]:
    opened: set[int] = set()
    async with aclosing(turn.events()) as events:
        async for event in events:
            chunk = _chunk(event, writer)
            if event.choice not in opened:
                opened.add(event.choice)
                chunk = writer.opening(event.choice, has_text=not isinstance(event.delta, ToolCallBegin)) + chunk
            yield chunk
    if has_usage:
        yield writer.usage(turn.usage())


def _chunk(event: TurnEvent, writer: ChatChunkWriter) -> bytes:
    match event.delta:
        case TextDelta(text):
            logprobs = None if event.tokens is None else chat_logprobs(event.tokens)
            return writer.piece(event.choice, text, logprobs)
        case ReasoningDelta(text):
            return writer.reasoning(event.choice, text)
        case ToolCallBegin(index, id, name):
            return writer.tool_call(event.choice, index, id, name)
        case ToolCallDelta(index, arguments):
            return writer.arguments(event.choice, index, arguments)
        case Finish(reason):
            return writer.finish(event.choice, reason)


def _turn_request(request: ChatRequest) -> TurnRequest:
    value, param = request.max_completion_tokens, "max_completion_tokens"
    if value is None:
        value, param = request.max_tokens, "max_tokens"
    is_hidden = request.tool_choice == "none" or request.function_call == "none"
    return TurnRequest(
        template_messages(request.messages or []),
        request,
        max_tokens=value,
        max_tokens_param=param,
        top_logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        tools=[*function_tools(request.tools or []), *map(function_tool, request.functions or [])],
        tool_choice=ToolChoice("none" if is_hidden else "auto"),
        parallel_tool_calls=request.parallel_tool_calls is not False,
        reasoning_effort=request.reasoning_effort,
        template_variables=request.chat_template_kwargs or {},
        add_generation_prompt=request.add_generation_prompt,
        continues_last=bool(request.continue_final_message),
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
    _check_response_format(request)
    _check_tools(request)


def _check_response_format(request: ChatRequest) -> None:
    wanted = request.response_format
    if wanted is None or wanted.type == "text":
        return
    if wanted.type == "json_schema" and (wanted.json_schema is None or wanted.json_schema.schema is None):
        raise InvalidRequest(
            "response_format of type json_schema needs json_schema with a name and a schema.",
            param="response_format.json_schema",
        )
    raise InvalidRequest(
        f"response_format {wanted.type} is not supported by this server; only text is.",
        param="response_format",
    )


def _check_tools(request: ChatRequest) -> None:
    names = {tool.function.name for tool in request.tools or [] if tool.function is not None}
    choice = request.tool_choice
    if isinstance(choice, ToolSelection) or choice == "required":
        if not request.tools:
            raise InvalidRequest("tool_choice is only allowed together with tools.", param="tool_choice")
        if isinstance(choice, ToolSelection) and choice.function and choice.function.name not in names:
            raise InvalidRequest(
                f"tool_choice names {choice.function.name!r}, which is not in tools.", param="tool_choice"
            )
        raise InvalidRequest(
            "tool_choice can be none or auto on this server; a call cannot be forced.", param="tool_choice"
        )
    if request.function_call not in (None, "none", "auto"):
        raise InvalidRequest(
            "function_call can be none or auto on this server; a call cannot be forced.",
            param="function_call",
        )
