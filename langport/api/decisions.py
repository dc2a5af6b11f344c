"""`POST /v1/decisions`: a decoder and an encoder-decoder say how likely each answer is, an encoder how near it lies.

A model that generates is shown the input, the question and the answers that there are; the answers' probabilities
are those with which it would write them, made to add up to 1. An embedder compares the input with each answer: the
cosines times 20 are the logits, as in the contrastive loss that embedders are trained with (multiple negatives
ranking, scale 20; Reimers and Gurevych 2019).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec
import numpy as np

from langport.api.candidates import Scored, score_candidates, softmax
from langport.api.http import Call, send_json
from langport.api.messages import encode_prompt
from langport.api.model import ServedModel
from langport.errors import ApiError, ContextLengthExceeded, InvalidRequest
from langport.types import EmbedRequest, ModelInfo, TokenUsage
from langport.wire.decisions import (
    DECODER,
    Answer,
    Choice,
    ChoiceAnswer,
    Content,
    Decision,
    DecisionItem,
    DecisionPart,
    DecisionRequest,
    LevelProbability,
    OptionProbability,
    Predicate,
    PredicateAnswer,
    Question,
    Score,
    ScoreAnswer,
)
from langport.wire.error import decode_body
from langport.wire.responses import InputTokensDetails, OutputTokensDetails, ResponseUsage

T = TypeVar("T")

COSINE_SCALE = 20.0
MAX_AT_ONCE = 8
"""Questions that are asked of the engine side by side."""
MAX_JSON_BYTES = 256 * 1024


@dataclass(frozen=True)
class Asked:
    """A question in words."""

    text: str
    """What is asked, and which answers there are."""
    candidates: list[str]
    """The answers as a model would write them; all different."""
    statements: list[str]
    """The same for an embedder to compare with the input."""


async def decisions(model: ServedModel, call: Call) -> None:
    """Answer questions about an input. Raises: ApiError before anything was sent."""
    request = decode_body(DECODER, call.body)
    headers = call.ignored(request)
    if request.input is None:
        raise InvalidRequest("input is required.", param="input")
    if request.questions is None:
        raise InvalidRequest("questions is required.", param="questions")
    text = _input_text(request.input)
    questions = [_ask(question, f"questions[{i}]") for i, question in enumerate(request.questions)]
    if model.checkpoint.classification is not None:
        model.require(call.model, "embed")
    info = await model.ready()
    if info.kind == "encoder":
        found, usage = await _compare(text, questions, model, info, call)
    else:
        found, usage = await _score(request, text, questions, model, info, call)
    answers = [_answer(question, chances) for question, chances in zip(request.questions, found, strict=True)]
    await send_json(call.send, Decision(answers=answers, model=call.model, usage=usage), headers)


async def _score(
    request: DecisionRequest, text: str, questions: Sequence[Asked], model: ServedModel, info: ModelInfo, call: Call
) -> tuple[list[list[float]], ResponseUsage]:
    """The probabilities of each question's answers, of a model that generates."""
    prompts = [await _prompt(text, question, model) for question in questions]
    candidates = [_candidate_tokens(question, model) for question in questions]
    for prompt, answers in zip(prompts, candidates, strict=True):
        longest = max(map(len, answers)) + 1
        if model.completion_room(len(prompt), longest, info, "input") < longest:
            raise ContextLengthExceeded(
                f"This model's maximum context length is {info.max_model_len} tokens. However, the input with a "
                f"question and its longest answer has {len(prompt) + longest}. Please reduce its length.",
                param="input",
            )
    num_prompt = sum(map(len, prompts))
    call.meter(lambda: TokenUsage(num_prompt))
    free = asyncio.Semaphore(MAX_AT_ONCE)

    async def score(number: int) -> Scored:
        async with free:
            return await score_candidates(
                model.engine,
                prompts[number],
                candidates[number],
                end_token_ids=info.eos_token_ids,
                request_id=f"{call.engine_id()}-{number}",
                priority=call.priority,
                cache_salt=request.prompt_cache_key or "",
            )

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(score(number)) for number in range(len(questions))]
    except ExceptionGroup as failures:
        expected, unexpected = failures.split(ApiError)
        if expected is None or unexpected is not None:
            raise
        raise expected.exceptions[0] from None
    found = [task.result() for task in tasks]
    num_steps = sum(scored.num_tokens for scored in found)
    call.meter(lambda: TokenUsage(num_prompt, num_steps))
    usage = _usage(num_prompt, sum(scored.cached_tokens for scored in found), num_steps)
    return [softmax(scored.logprobs) for scored in found], usage


async def _prompt(text: str, question: Asked, model: ServedModel) -> list[int]:
    """The input comes first: it is the same for all questions, so the prefix cache has it."""
    asked = f"{text}\n\n{question.text}"
    if model.template is not None:
        variables = {"enable_thinking": False, "thinking": False}
        prompt = await encode_prompt(model, [{"role": "user", "content": asked}], variables=variables)
        return prompt.token_ids
    if model.checkpoint.kind == "decoder":
        asked += "\nAnswer:"
    (token_ids,) = await model.tokenizer.encode_async([asked], add_special_tokens=True)
    return token_ids


def _candidate_tokens(question: Asked, model: ServedModel) -> list[list[int]]:
    begins_word = model.template is None and model.checkpoint.kind == "decoder"
    forced = model.checkpoint.generation_config.get("forced_bos_token_id")
    start = [forced] if isinstance(forced, int) and model.checkpoint.kind == "encoder-decoder" else []
    texts = [f" {answer}" if begins_word else answer for answer in question.candidates]
    return [start + model.tokenizer.encode(text, add_special_tokens=False) for text in texts]


async def _compare(
    text: str, questions: Sequence[Asked], model: ServedModel, info: ModelInfo, call: Call
) -> tuple[list[list[float]], ResponseUsage]:
    """The probabilities of each question's answers, of an embedder."""
    statements = list(dict.fromkeys(statement for question in questions for statement in question.statements))
    inputs = await model.tokenizer.encode_async([text, *statements], add_special_tokens=True)
    for token_ids in inputs:
        if not token_ids:
            raise InvalidRequest("input holds no text that the model could read.", param="input")
        if len(token_ids) > info.max_model_len:
            raise ContextLengthExceeded(
                f"This model's maximum context length is {info.max_model_len} tokens. However, the input or an answer "
                f"has {len(token_ids)}. Please reduce its length.",
                param="input",
            )
    num_tokens = sum(map(len, inputs))
    call.meter(lambda: TokenUsage(num_tokens))
    data = await model.engine.embed(EmbedRequest(call.engine_id(), inputs))
    vectors = np.stack([np.frombuffer(vector, dtype="<f4").astype(np.float64) for vector in data])
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    logits = dict(zip(statements, (COSINE_SCALE * (vectors[1:] @ vectors[0])).tolist(), strict=True))
    found = [softmax([logits[statement] for statement in question.statements]) for question in questions]
    return found, _usage(num_tokens, 0, 0)


def _usage(num_input: int, num_cached: int, num_output: int) -> ResponseUsage:
    return ResponseUsage(
        num_input, InputTokensDetails(num_cached), num_output, OutputTokensDetails(), num_input + num_output
    )


def _ask(question: Question, where: str) -> Asked:
    """Raises: InvalidRequest for answers that cannot be told apart."""
    instructions = _content_text(question.instructions, f"{where}.instructions")
    match question:
        case Predicate():
            asked = f"Is the following true of the above? Answer Yes or No.\n{instructions}"
            return Asked(asked, ["Yes", "No"], [instructions, f"It is not true: {instructions}"])
        case Choice():
            names = _option_names(question, f"{where}.choices")
            described = [(name, option.description) for name, option in zip(names, question.choices, strict=True)]
            how = "Answer with exactly one of these:"
        case Score():
            names = [level.label for level in question.levels]
            if len(set(names)) < len(names):
                raise InvalidRequest(f"{where}.levels holds a label twice.", param=f"{where}.levels")
            described = [(level.label, level.description) for level in question.levels]
            how = "Answer with exactly one of these levels, from the lowest to the highest:"
    if "" in names:
        raise InvalidRequest(f"{where} has an empty answer.", param=where)
    lines = [f"- {name}: {description}" if description else f"- {name}" for name, description in described]
    statements = [f"{instructions} {name}. {description or ''}".strip() for name, description in described]
    return Asked("\n".join([instructions, how, *lines]), names, statements)


def _option_names(question: Choice, where: str) -> list[str]:
    """What stands for each option; strings in quotation marks where a boolean has the same text."""
    values = [(type(option.value), option.value) for option in question.choices]
    if len(set(values)) < len(values):
        raise InvalidRequest(f"{where} holds a value twice.", param=where)
    booleans = [json.dumps(option.value) for option in question.choices if isinstance(option.value, bool)]
    needs_marks = any(option.value in booleans for option in question.choices if isinstance(option.value, str))
    return [
        option.value if isinstance(option.value, str) and not needs_marks else json.dumps(option.value)
        for option in question.choices
    ]


def _answer(question: Question, chances: list[float]) -> Answer:
    best = max(range(len(chances)), key=chances.__getitem__)
    match question:
        case Predicate():
            return PredicateAnswer(name=question.name, probability=chances[0])
        case Choice():
            options = zip(question.choices, chances, strict=True)
            return ChoiceAnswer(
                name=question.name,
                choice=question.choices[best].value,
                confidence=chances[best],
                probabilities=[OptionProbability(option.value, chance) for option, chance in options],
            )
        case Score():
            levels = enumerate(zip(question.levels, chances, strict=True))
            return ScoreAnswer(
                name=question.name,
                score=sum(value * chance for value, chance in enumerate(chances)),
                confidence=chances[best],
                probabilities=[LevelProbability(level.label, value, chance) for value, (level, chance) in levels],
            )


def _input_text(given: str | Sequence[DecisionItem]) -> str:
    """The input as a text to read; a conversation as a record of it.

    Raises: InvalidRequest naming the item that is incomplete or no text.
    """
    if isinstance(given, str):
        return given
    if len(given) == 1 and given[0].role == "user" and given[0].content is not None:
        return _content_text(given[0].content, "input[0].content")
    names: dict[str, str] = {}
    return "\n".join(_line(item, f"input[{index}]", names) for index, item in enumerate(given))


def _line(item: DecisionItem, where: str, names: dict[str, str]) -> str:
    """One line of the record; `names` are those of the calls so far."""
    if item.type == "message":
        role = _given(item.role, f"{where}.role")
        return f"{role}: {_whole_text(item.content, f'{where}.content')}"
    call_id = _given(item.call_id, f"{where}.call_id")
    if item.type in ("function_call", "custom_tool_call"):
        names[call_id] = _given(item.name, f"{where}.name")
        field = "arguments" if item.type == "function_call" else "input"
        return f"assistant calls {names[call_id]}: {_given(getattr(item, field), f'{where}.{field}')}"
    if call_id not in names:
        raise InvalidRequest(f"{where}.call_id: no call before it has this id.", param=f"{where}.call_id")
    return f"{names[call_id]} answers: {_whole_text(item.output, f'{where}.output')}"


def _whole_text(content: Content | None, where: str) -> str:
    if content is None:
        raise InvalidRequest(f"{where} is required.", param=where)
    return _content_text(content, where)


def _content_text(content: Content, where: str) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(_part_text(part, f"{where}[{index}]") for index, part in enumerate(content))


def _part_text(part: DecisionPart, where: str) -> str:
    if part.type in ("input_text", "output_text"):
        return _given(part.text, f"{where}.text")
    if part.type == "refusal":
        return _given(part.refusal, f"{where}.refusal")
    if part.type != "input_json":
        raise InvalidRequest(f"{where} is of type {part.type}; this model reads text only.", param=f"{where}.type")
    if part.data is None:
        raise InvalidRequest(f"{where}.data is required.", param=f"{where}.data")
    text = msgspec.json.encode(part.data)
    if len(text) > MAX_JSON_BYTES:
        raise InvalidRequest(f"{where}.data is longer than {MAX_JSON_BYTES} bytes of JSON.", param=f"{where}.data")
    return text.decode()


def _given(value: T | None, where: str) -> T:
    if value is None:
        raise InvalidRequest(f"{where} is required.", param=where)
    return value
