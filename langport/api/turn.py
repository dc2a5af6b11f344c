"""One turn of a conversation: messages and tools in, a stream of typed events out, whichever API asks.

Every endpoint that answers a conversation describes it as a `TurnRequest` and writes the events of its
`ChatTurn` in its own form. Nothing here knows how a request or an answer looks on the wire, but for the
sampling parameters (`GenerationFields`), which are named the same everywhere.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import msgspec

from langport.api.generation import (
    Generation,
    Plan,
    Prompt,
    end_token_ids,
    num_choices,
    sampling_params,
    text_options,
    truncated,
    wanted_tokens,
)
from langport.api.messages import EncodedPrompt, encode_prompt
from langport.api.model import ServedModel
from langport.api.sequence import TextEvent, TextOptions
from langport.api.turn_end import Finish, TurnFinishReason
from langport.api.turn_grammar import turn_grammar
from langport.errors import InvalidRequest
from langport.text.answer import (
    AnswerDelta,
    AnswerParser,
    ReasoningDelta,
    TextDelta,
    ToolCallBegin,
    ToolCallDelta,
    ToolCallEnd,
)
from langport.text.chat_template import Message
from langport.text.custom_input import CustomInputs
from langport.text.tools import AUTO, FunctionTool, ToolChoice
from langport.types import ModelInfo, TokenUsage
from langport.wire.generation import GenerationFields, PromptLogprobs, ScoredToken, Usage

_THINKING_SWITCHES = ("enable_thinking", "thinking")
"""Variables by which templates let reasoning be switched on and off."""


@dataclass(frozen=True)
class TurnRequest:
    """A conversation to go on with. The places of errors are those of the request that it was made from."""

    messages: list[Message]
    """As chat templates read them: role, content (text, or parts of type text), tool_calls, tool_call_id, reasoning."""
    fields: GenerationFields = field(default_factory=GenerationFields)
    """How to draw the answer. Its `max_tokens` is not read; the limit is the one below."""
    max_tokens: int | None = None
    """Most tokens of the answer; None: as many as the context holds."""
    top_logprobs: int | None = None
    """None: no log-probabilities; k: of each token of the answer's text and of the k likeliest ones."""
    tools: Sequence[FunctionTool] = ()
    tool_choice: ToolChoice = AUTO
    parallel_tool_calls: bool = True
    """Allow more than one call in an answer."""
    reasoning_effort: str | None = None
    template_variables: dict[str, Any] = field(default_factory=dict)
    """Further variables for the chat template."""
    add_generation_prompt: bool | None = None
    """End the prompt with the beginning of an answer; None: unless the last message is continued."""
    continues_last: bool = False
    """Go on in the last message instead of answering it."""
    prediction: str = ""
    """What the answer will probably repeat in large parts."""
    messages_param: str = "messages"
    tools_param: str = "tools"
    max_tokens_param: str = "max_tokens"
    places: Mapping[str, str] = field(default_factory=dict)
    """What the request calls fields that `fields` has from chat completions, by the beginning of their places."""

    @property
    def callable_tools(self) -> Sequence[FunctionTool]:
        """Those that the model is shown and may call."""
        choice = self.tool_choice
        if choice.mode == "none":
            return ()
        return [tool for tool in self.tools if choice.names is None or tool.name in choice.names]


class TurnEvent(msgspec.Struct):
    """Something new in one choice. Its last event is its only `Finish`."""

    choice: int
    delta: AnswerDelta | Finish
    tokens: list[ScoredToken] | None = None
    """Beside a `TextDelta`: the tokens that begin in it, when log-probabilities are wanted."""


@dataclass
class ToolCall:
    """A call put together from its events."""

    id: str
    name: str
    arguments: str = ""
    """JSON, unless the model's answer was cut or the model wrote something else; of a custom tool its input."""
    is_custom: bool = False


@dataclass
class TurnAnswer:
    """A choice put together from its events."""

    text: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)
    tokens: list[ScoredToken] = field(default_factory=list)
    finish_reason: TurnFinishReason = "length"

    def add(self, event: TurnEvent) -> None:
        self.tokens.extend(event.tokens or ())
        match event.delta:
            case TextDelta(text):
                self.text += text
            case ReasoningDelta(text):
                self.reasoning += text
            case ToolCallBegin(_, id, name, is_custom):
                self.tool_calls.append(ToolCall(id, name, is_custom=is_custom))
            case ToolCallDelta(index, arguments):
                self.tool_calls[index].arguments += arguments
            case Finish(reason):
                self.finish_reason = reason


class ChatTurn:
    """A turn ready to run; `events` or `answers` may be read once, then `usage` is complete."""

    def __init__(
        self, generation: Generation, parsers: Sequence[AnswerParser], *, allows_parallel: bool = True
    ) -> None:
        """`parsers`: one per choice of the generation. A choice ends with its first call unless more are allowed."""
        self._generation = generation
        self._choices = [
            _Choice(number, parser, allows_parallel=allows_parallel) for number, parser in enumerate(parsers)
        ]

    @property
    def num_choices(self) -> int:
        """Of `events`; `answers` may show fewer (best_of)."""
        return len(self._choices)

    async def events(self) -> AsyncGenerator[TurnEvent, None]:
        """All choices as they come.

        Raises: EngineFailed, Unavailable. Closing it early aborts the engine's work.
        """
        async with aclosing(self._generation.events()) as events:
            async for event in events:
                choice = self._choices[event.choice]
                for part in choice.take(event):
                    yield part
                if choice.is_done:
                    self._generation.end(event.choice)

    async def answers(self) -> list[TurnAnswer]:
        """The fold of all events: the choices to show, in the order of their draws or the best first."""
        answers = [TurnAnswer() for _ in self._choices]
        async with aclosing(self.events()) as events:
            async for event in events:
                answers[event.choice].add(event)
        return self._generation.best(answers)

    def usage(self) -> Usage:
        reasoning = sum(self._generation.num_tokens(choice.number, choice.reasoning_end) for choice in self._choices)
        return self._generation.usage(reasoning_tokens=reasoning)

    def tokens(self) -> TokenUsage:
        """Those so far, for a meter."""
        return self._generation.tokens()

    def prompt_logprobs(self, num_top: int | None) -> PromptLogprobs | msgspec.UnsetType:
        """As the answer shows them; unset when `num_top` says that nobody asked."""
        return self._generation.prompt_logprobs(0, num_top)


class _Choice:
    """One choice's text on its way through its parser, and what was seen of it."""

    def __init__(self, number: int, parser: AnswerParser, *, allows_parallel: bool) -> None:
        self.number = number
        self.is_done = False
        self._parser = parser
        self._allows_parallel = allows_parallel
        self._waiting: deque[ScoredToken] = deque()
        self._is_in_text = True
        self._has_call = False
        """A whole one."""

    @property
    def reasoning_end(self) -> int | None:
        """Characters of the text up to the end of the reasoning; None when all of it is."""
        return self._parser.reasoning_end

    def take(self, event: TextEvent) -> list[TurnEvent]:
        if self.is_done:
            return []
        self._waiting.extend(event.tokens or ())
        deltas = [*self._parser.push(event.text)]
        if event.finish_reason is not None:
            deltas += self._parser.end()
        events = []
        for delta in deltas:
            events.append(self._event(delta, event))
            if self._has_call and not self._allows_parallel:
                return [*events, self._finish("tool_calls")]
        if event.finish_reason is None:
            return events
        if self._waiting and self._is_in_text:  # tokens without text, at the end
            events.append(TurnEvent(self.number, TextDelta("", 0), list(self._waiting)))
        is_call = self._has_call and event.finish_reason == "stop"
        reason: TurnFinishReason = "tool_calls" if is_call else event.finish_reason
        return [*events, self._finish(reason, event.stop_string)]

    def _finish(self, reason: TurnFinishReason, stop_string: str | None = None) -> TurnEvent:
        self.is_done = True
        return TurnEvent(self.number, Finish(reason, stop_string))

    def _event(self, delta: AnswerDelta, event: TextEvent) -> TurnEvent:
        tokens = None
        if isinstance(delta, TextDelta) and event.tokens is not None:
            tokens = self._tokens_in(delta)
        self._is_in_text = isinstance(delta, TextDelta)
        self._has_call = self._has_call or isinstance(delta, ToolCallEnd)
        return TurnEvent(self.number, delta, tokens)

    def _tokens_in(self, delta: TextDelta) -> list[ScoredToken]:
        """The tokens that begin in this text; those before it were not of the text."""
        found = []
        while self._waiting and self._waiting[0].offset < delta.offset + len(delta.text):
            token = self._waiting.popleft()
            if token.offset >= delta.offset:
                found.append(token)
        return found


async def prepare_turn(turn: TurnRequest, model: ServedModel, info: ModelInfo, request_id: str) -> ChatTurn:
    """Everything up to the first token: the prompt, the engine's parameters and the parsers of the answer.

    `request_id` is unique in this process. Raises: InvalidRequest naming the parameter that does not fit.
    """
    try:
        return await _prepare(turn, model, info, request_id)
    except InvalidRequest as error:
        place = _place(error.param or "", turn.places)
        if place is None or error.param is None:
            raise
        raise type(error)(error.message.replace(error.param, place), param=place, code=error.code) from error


def _place(param: str, places: Mapping[str, str]) -> str | None:
    """Where the request has what chat completions call `param`; None where it is called the same."""
    for theirs, ours in places.items():
        if param.startswith(theirs):
            return ours + param.removeprefix(theirs)
    return None


async def _prepare(turn: TurnRequest, model: ServedModel, info: ModelInfo, request_id: str) -> ChatTurn:
    fields = turn.fields
    n, num_draws, beams = num_choices(fields, model)
    if turn.max_tokens == 0:
        raise InvalidRequest(f"{turn.max_tokens_param} must be at least 1, got 0.", param=turn.max_tokens_param)
    limit = model.limits.completion_max_tokens
    wanted = wanted_tokens(turn.max_tokens, turn.max_tokens_param, default=None, limit=limit)
    # The best draws are picked by log-probability, whether or not the client sees any.
    picks = 0 if num_draws > n else None
    logprobs = picks if turn.top_logprobs is None else turn.top_logprobs
    prompt = await encode_turn(turn, model)
    grammar = await turn_grammar(turn, prompt.text, model, info)
    sampling = sampling_params(fields, model, info, wanted=wanted, logprobs=logprobs, grammar=grammar)
    token_ids = truncated(prompt.token_ids, fields.truncate_prompt_tokens, info.max_model_len)
    room = model.completion_room(len(token_ids), wanted, info, turn.messages_param)
    predicted = await model.tokenizer.encode_async([turn.prediction], add_special_tokens=False)
    plan = Plan(
        request_id,
        [Prompt(token_ids, room)],
        sampling,
        _text_options(turn, model),
        num_draws=num_draws,
        num_choices=n,
        beams=beams,
        end_token_ids=end_token_ids(sampling, info),
        priority=fields.priority or 0,
        cache_salt=fields.cache_salt or "",
        prediction=predicted[0][: info.max_model_len],
    )
    generation = Generation(model.engine, model.tokenizer, plan)
    parsers = [_parser(turn, prompt.text, model) for _ in range(generation.num_choices)]
    return ChatTurn(generation, parsers, allows_parallel=turn.parallel_tool_calls)


def _parser(turn: TurnRequest, prompt: str, model: ServedModel) -> AnswerParser:
    """Of one answer to the prompt."""
    tools = turn.callable_tools
    is_forced = turn.tool_choice.mode == "required"
    parser = model.answer_format.parser(prompt, tools, continues=turn.continues_last, is_forced=is_forced)
    custom = frozenset(tool.name for tool in tools if tool.custom is not None)
    return CustomInputs(parser, custom) if custom else parser


def _text_options(turn: TurnRequest, model: ServedModel) -> TextOptions:
    """With the marks that the parsers look for."""
    options = text_options(turn.fields, has_logprobs=turn.top_logprobs is not None)
    answers = model.answer_format
    shown_ids = answers.reasoning_ids | (answers.call_ids if turn.callable_tools else frozenset())
    return msgspec.structs.replace(options, shown_ids=shown_ids, counts_offsets=answers.reasoning is not None)


async def encode_turn(turn: TurnRequest, model: ServedModel) -> EncodedPrompt:
    """The prompt. Raises: InvalidRequest when the model's template refuses the messages, or it has none."""
    return await encode_prompt(
        model,
        turn.messages,
        tools=turn.callable_tools,
        add_generation_prompt=turn.add_generation_prompt,
        continues_last=turn.continues_last,
        variables={**_effort(turn.reasoning_effort, model), **turn.template_variables},
    )


def _effort(effort: str | None, model: ServedModel) -> dict[str, Any]:
    """How much to think, as a template's variables: the effort by name, and whether at all where it asks for that."""
    if effort is None or model.template is None:
        return {}
    switches = {name: effort != "none" for name in _THINKING_SWITCHES if name in model.template.text}
    return {"reasoning_effort": effort, **switches}
