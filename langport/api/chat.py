"""`POST /v1/chat/completions`."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec

from langport.api.generation import (
    Generation,
    Plan,
    Prompt,
    end_token_ids,
    num_choices,
    refuse_unsupported,
    sampling_params,
    text_options,
    truncated,
    wanted_grammar,
    wanted_tokens,
)
from langport.api.http import Call, ignored_header, send_json
from langport.api.messages import encode_prompt, template_messages, template_tools
from langport.api.model import ServedModel
from langport.api.streaming import stream_events
from langport.errors import InvalidRequest
from langport.types import ModelInfo
from langport.wire.chat import (
    DECODER,
    AssistantMessage,
    ChatChoice,
    ChatChunkWriter,
    ChatCompletion,
    ChatRequest,
    ToolChoice,
    chat_logprobs,
)
from langport.wire.error import decode_body, unknown_fields


async def chat_completions(model: ServedModel, call: Call) -> None:
    """Answer a chat completion request. Raises: ApiError before anything was sent."""
    request = decode_body(DECODER, call.body)
    headers = ignored_header(unknown_fields(call.body, ChatRequest))
    model.require(call.model, generates=True)
    _check(request)
    info = await model.ready()
    answer_id = f"chatcmpl-{secrets.token_hex(16)}"
    plan = await _plan(request, model, info, call.engine_id())
    generation = Generation(model.engine, model.tokenizer, plan)
    created = int(time.time())
    tier = None if request.service_tier is None else "default"
    if request.stream:
        options = request.stream_options
        writer = ChatChunkWriter(
            id=answer_id,
            created=created,
            model=call.model,
            num_choices=generation.num_choices,
            include_usage=bool(options and options.include_usage),
            obfuscate=bool(options and options.include_obfuscation),
            service_tier=tier,
        )
        chunks = _chunks(generation, writer, has_usage=bool(options and options.include_usage))
        await stream_events(call.send, chunks, headers, call.request_id)
        return
    answers = await generation.answers()
    choices = [
        ChatChoice(
            index=index,
            message=AssistantMessage(content="".join(answer.text)),
            logprobs=chat_logprobs(answer.tokens) if request.logprobs else None,
            finish_reason=answer.finish_reason,
        )
        for index, answer in enumerate(answers)
    ]
    document = ChatCompletion(
        id=answer_id,
        created=created,
        model=call.model,
        choices=choices,
        usage=generation.usage(),
        service_tier=tier or msgspec.UNSET,
        prompt_logprobs=generation.prompt_logprobs(0, request.prompt_logprobs),
    )
    await send_json(call.send, document, headers)


async def _chunks(generation: Generation, writer: ChatChunkWriter, *, has_usage: bool) -> AsyncGenerator[bytes, None]:
    is_opened = False
    async with aclosing(generation.events()) as events:
        async for event in events:
            if not is_opened:
                is_opened = True
                yield b"".join([writer.opening(index) for index in range(generation.num_choices)])
            if event.text or event.tokens:
                logprobs = None if event.tokens is None else chat_logprobs(event.tokens)
                yield writer.piece(event.choice, event.text, logprobs)
            if event.finish_reason is not None:
                yield writer.finish(event.choice, event.finish_reason)
    if has_usage:
        yield writer.usage(generation.usage())


async def _plan(request: ChatRequest, model: ServedModel, info: ModelInfo, request_id: str) -> Plan:
    n, num_draws, beams = num_choices(request, model)
    value, param = request.max_completion_tokens, "max_completion_tokens"
    if value is None:
        value, param = request.max_tokens, "max_tokens"
    if value == 0:
        raise InvalidRequest(f"{param} must be at least 1, got 0.", param=param)
    wanted = wanted_tokens(value, param, default=None, limit=model.limits.completion_max_tokens)
    # The best draws are picked by log-probability, whether or not the client sees any.
    picks = 0 if num_draws > n else None
    logprobs = (request.top_logprobs or 0) if request.logprobs else picks
    grammar = await wanted_grammar(request, model, info, begins_text=not request.continue_final_message)
    sampling = sampling_params(request, model, info, wanted=wanted, logprobs=logprobs, grammar=grammar)
    text = text_options(request, has_logprobs=bool(request.logprobs))
    token_ids = await _prompt(request, model)
    token_ids = truncated(token_ids, request.truncate_prompt_tokens, info.max_model_len)
    room = model.completion_room(len(token_ids), wanted, info, "messages")
    return Plan(
        request_id,
        [Prompt(token_ids, room)],
        sampling,
        text,
        num_draws=num_draws,
        num_choices=n,
        beams=beams,
        end_token_ids=end_token_ids(sampling, info),
        priority=request.priority or 0,
    )


async def _prompt(request: ChatRequest, model: ServedModel) -> list[int]:
    messages = template_messages(request.messages or [])
    variables: dict[str, Any] = dict(request.chat_template_kwargs or {})
    if request.reasoning_effort is not None:
        variables.setdefault("reasoning_effort", request.reasoning_effort)
    return await encode_prompt(
        model,
        messages,
        tools=None if request.tool_choice == "none" or request.function_call == "none" else _tools(request),
        add_generation_prompt=request.add_generation_prompt,
        continues_last=bool(request.continue_final_message),
        variables=variables,
    )


def _tools(request: ChatRequest) -> list[dict[str, Any]] | None:
    """The definitions as the template reads them; the older `functions` are tools too."""
    functions = [{"type": "function", "function": msgspec.to_builtins(f)} for f in request.functions or []]
    return [*template_tools(request.tools or []), *functions] or None


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
    template_tools(request.tools or [])
    names = {tool.function.name for tool in request.tools or [] if tool.function is not None}
    choice = request.tool_choice
    if isinstance(choice, ToolChoice) or choice == "required":
        if not request.tools:
            raise InvalidRequest("tool_choice is only allowed together with tools.", param="tool_choice")
        if isinstance(choice, ToolChoice) and choice.function and choice.function.name not in names:
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
