"""`POST /v1/completions`."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

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
from langport.api.http import Call, send_json
from langport.api.model import ServedModel, check_vocabulary
from langport.api.streaming import stream_events
from langport.errors import InvalidRequest
from langport.text.fim import MARKERS, Fim, find_fim
from langport.types import ModelInfo
from langport.wire.completions import (
    DECODER,
    Completion,
    CompletionChoice,
    CompletionChunkWriter,
    CompletionRequest,
    completion_logprobs,
)
from langport.wire.error import decode_body
from langport.wire.generation import is_given
from langport.wire.inputs import decode_inputs

DEFAULT_MAX_TOKENS = 4096


async def completions(model: ServedModel, call: Call) -> None:
    """Answer a completion request. Raises: ApiError before anything was sent."""
    request = decode_body(DECODER, call.body)
    request.priority = (request.priority or 0) + call.priority
    headers = call.ignored(request)
    model.require(call.model, "generate")
    _check(request, model)
    info = await model.ready()
    answer_id = f"cmpl-{secrets.token_hex(16)}"
    plan = await _plan(request, model, info, call.engine_id())
    generation = Generation(model.engine, model.tokenizer, plan)
    call.meter(generation.tokens)
    created = int(time.time())
    if request.stream:
        options = request.stream_options
        writer = CompletionChunkWriter(
            id=answer_id,
            created=created,
            model=call.model,
            num_choices=generation.num_choices,
            include_usage=bool(options and options.include_usage),
            obfuscate=bool(options and options.include_obfuscation),
        )
        chunks = _chunks(generation, writer, has_usage=bool(options and options.include_usage))
        await stream_events(call.send, chunks, headers, call.request_id)
        return
    answers = await generation.answers()
    choices = [
        CompletionChoice(
            index=index,
            text="".join(answer.text),
            logprobs=None if request.logprobs is None else completion_logprobs(answer.tokens),
            finish_reason=answer.finish_reason,
            prompt_logprobs=generation.prompt_logprobs(index // plan.num_choices, request.prompt_logprobs),
        )
        for index, answer in enumerate(answers)
    ]
    document = Completion(id=answer_id, created=created, model=call.model, choices=choices, usage=generation.usage())
    await send_json(call.send, document, headers)


async def _chunks(
    generation: Generation, writer: CompletionChunkWriter, *, has_usage: bool
) -> AsyncGenerator[bytes, None]:
    async with aclosing(generation.events()) as events:
        async for event in events:
            if event.text or event.tokens:
                logprobs = None if event.tokens is None else completion_logprobs(event.tokens)
                yield writer.piece(event.choice, event.text, logprobs)
            if event.finish_reason is not None:
                yield writer.finish(event.choice, event.finish_reason)
    if has_usage:
        yield writer.usage(generation.usage())


def _check(request: CompletionRequest, model: ServedModel) -> None:
    """Raises: InvalidRequest for what is above a limit, or documented but not honoured here."""
    refuse_unsupported(request)
    limit = model.limits.completion_max_logprobs
    if request.logprobs is not None and request.logprobs > limit:
        raise InvalidRequest(
            f"logprobs must be at most {limit} on this server, got {request.logprobs}.", param="logprobs"
        )


async def _plan(request: CompletionRequest, model: ServedModel, info: ModelInfo, request_id: str) -> Plan:
    n, num_draws, beams = num_choices(request, model)
    is_decoder = info.kind == "decoder"
    limit = model.limits.completion_max_tokens or info.max_model_len
    wanted = wanted_tokens(request.max_tokens, "max_tokens", default=DEFAULT_MAX_TOKENS, limit=limit)
    scores_echo = request.logprobs is not None and bool(request.echo) and is_decoder
    # The best candidates are picked by log-probability, whether or not the client sees any.
    picks = 0 if num_draws > n else None
    sampling = sampling_params(
        request,
        model,
        info,
        wanted=wanted,
        logprobs=picks if request.logprobs is None else request.logprobs,
        echo_logprobs=request.logprobs if scores_echo else None,
        grammar=await wanted_grammar(request, model, info, begins_text=not is_decoder),
    )
    text = text_options(request, has_logprobs=request.logprobs is not None, lists_hidden=scores_echo)
    if request.suffix:
        fim = _fim(request, model)
        if not request.ignore_eos:
            stops = (*sampling.stop_token_ids, *fim.end_ids)
            sampling = msgspec.structs.replace(sampling, stop_token_ids=stops)
        prompts = await _gaps(request, request.suffix, fim, model, info, wanted)
    else:
        prompts = await _prompts(request, model, info, wanted)
    return Plan(
        request_id,
        prompts,
        sampling,
        text,
        num_draws=num_draws,
        num_choices=n,
        beams=beams,
        end_token_ids=end_token_ids(sampling, info),
        priority=request.priority or 0,
        cache_salt=request.cache_salt or "",
        is_echo=bool(request.echo),
        continues_text=is_decoder,
    )


async def _prompts(request: CompletionRequest, model: ServedModel, info: ModelInfo, wanted: int | None) -> list[Prompt]:
    inputs = decode_inputs(request.prompt, "prompt") if is_given(request.prompt) else [""]
    texts = [item for item in inputs if isinstance(item, str)]
    if texts:
        token_lists = await model.tokenizer.encode_async(
            texts, add_special_tokens=request.add_special_tokens is not False
        )
        token_lists = [token_ids or _start(model) for token_ids in token_lists]
    else:
        token_lists = [item for item in inputs if not isinstance(item, str)]
        texts = [model.tokenizer.decode(ids) if request.echo else "" for ids in token_lists]
    prompts = []
    for token_ids, text in zip(token_lists, texts, strict=True):
        check_vocabulary(token_ids, info.vocab_size, "prompt")
        kept = truncated(token_ids, request.truncate_prompt_tokens, info.max_model_len)
        if request.echo and len(kept) < len(token_ids):
            text = model.tokenizer.decode(kept)
        prompts.append(Prompt(kept, model.completion_room(len(kept), wanted, info, "prompt"), text))
    return prompts


def _fim(request: CompletionRequest, model: ServedModel) -> Fim:
    """How this model is given a suffix. Raises: InvalidRequest saying why it cannot be."""
    fim = find_fim(model.tokenizer) if model.checkpoint.kind == "decoder" else None
    if fim is None:
        raise InvalidRequest(
            f"suffix: the model {model.name} cannot fill a gap, for its tokenizer has no tokens that mark one (such as "
            "<|fim_prefix|>). Leave suffix out, or use a model that was trained to fill in the middle.",
            param="suffix",
        )
    if request.truncate_prompt_tokens is not None:
        raise InvalidRequest("truncate_prompt_tokens and suffix exclude each other.", param="truncate_prompt_tokens")
    return fim


async def _gaps(
    request: CompletionRequest, suffix: str, fim: Fim, model: ServedModel, info: ModelInfo, wanted: int | None
) -> list[Prompt]:
    """The prompts with a gap between each and the suffix; those in token ids get no tokens but the format's."""
    tokenizer = model.tokenizer
    (after,) = await tokenizer.encode_literally([suffix], MARKERS, joins=fim.format.joins)
    inputs = decode_inputs(request.prompt, "prompt") if is_given(request.prompt) else [""]
    texts = [item for item in inputs if isinstance(item, str)]
    start: list[int] = []
    if texts:
        token_lists = await tokenizer.encode_literally(texts, MARKERS, joins=False)
        start = [] if request.add_special_tokens is False else tokenizer.opening_ids()
    else:
        token_lists = [item for item in inputs if not isinstance(item, str)]
        texts = [tokenizer.decode(ids) if request.echo else "" for ids in token_lists]
    prompts = []
    for before, text in zip(token_lists, texts, strict=True):
        check_vocabulary(before, info.vocab_size, "prompt")
        token_ids, echoed = fim.arrange(before, after, start)
        room = model.completion_room(len(token_ids), wanted, info, "prompt")
        prompts.append(Prompt(token_ids, room, text, echoed))
    return prompts


def _start(model: ServedModel) -> list[int]:
    """What an empty prompt starts from: bos, else eos."""
    checkpoint = model.checkpoint
    if checkpoint.bos_token_id is not None:
        return [checkpoint.bos_token_id]
    if checkpoint.eos_token_ids:
        return [checkpoint.eos_token_ids[0]]
    raise InvalidRequest("prompt is empty, and this model has no token to start from.", param="prompt")
