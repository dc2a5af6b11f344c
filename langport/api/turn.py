"""One turn of a conversation: messages and tools in, a stream of typed events out, whichever API asks.

Every endpoint that answers a conversation describes it as a `TurnRequest` and writes the events of its
`ChatTurn` in its own form. Nothing here knows how a request or an answer looks on the wire, but for the
sampling parameters (`GenerationFields`), which are named the same everywhere.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Literal

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
from langport.api.messages import encode_prompt
from langport.api.model import ServedModel
from langport.api.sequence import TextEvent
from langport.errors import InvalidRequest
from langport.text.answer import (
    AnswerDelta,
    AnswerParser,
    PlainText,
    ReasoningDelta,
    TextDelta,
    ToolCallBegin,
    ToolCallDelta,
)
from langport.text.chat_template import Message
from langport.text.tools import AUTO, FunctionTool, ToolChoice
from langport.types import ModelInfo
from langport.wire.generation import GenerationFields, PromptLogprobs, ScoredToken, Usage

TurnFinishReason = Literal["stop", "length", "tool_calls"]


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
    messages_param: str = "messages"
    max_tokens_param: str = "max_tokens"


class Finish(msgspec.Struct):
    """A choice has ended; after the last one `ChatTurn.usage` is complete."""

    reason: TurnFinishReason


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
    """JSON, unless the model's answer was cut or the model wrote something else."""


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
            case ToolCallBegin(_, id, name):
                self.tool_calls.append(ToolCall(id, name))
            case ToolCallDelta(index, arguments):
                self.tool_calls[index].arguments += arguments
            case Finish(reason):
                self.finish_reason = reason


class ChatTurn:
    """A turn ready to run; `events` or `answers` may be read once, then `usage` is complete."""

    def __init__(self, generation: Generation, parsers: Sequence[AnswerParser]) -> None:
        """`parsers`: one per choice of the generation."""
        self._generation = generation
        self._choices = [_Choice(number, parser) for number, parser in enumerate(parsers)]

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
                for part in self._choices[event.choice].take(event):
                    yield part

    async def answers(self) -> list[TurnAnswer]:
        """The fold of all events: the choices to show, in the order of their draws or the best first."""
        answers = [TurnAnswer() for _ in self._choices]
        async with aclosing(self.events()) as events:
            async for event in events:
                answers[event.choice].add(event)
        return self._generation.best(answers)

    def usage(self) -> Usage:
        return self._generation.usage()

    def prompt_logprobs(self, num_top: int | None) -> PromptLogprobs | msgspec.UnsetType:
        """As the answer shows them; unset when `num_top` says that nobody asked."""
        return self._generation.prompt_logprobs(0, num_top)


class _Choice:
    """One choice's text on its way through its parser, and what was seen of it."""

    def __init__(self, number: int, parser: AnswerParser) -> None:
        self._number = number
        self._parser = parser
        self._waiting: deque[ScoredToken] = deque()
        self._has_calls = False

    def take(self, event: TextEvent) -> list[TurnEvent]:
        deltas = [*self._parser.push(event.text)]
        if event.finish_reason is not None:
            deltas += self._parser.end()
        self._waiting.extend(event.tokens or ())
        events = [self._event(delta, event) for delta in deltas]
        if event.finish_reason is None:
            return events
        if self._waiting and not self._has_calls:  # tokens without text, at the end
            events.append(TurnEvent(self._number, TextDelta("", 0), list(self._waiting)))
        reason = event.finish_reason
        is_call = self._has_calls and reason == "stop"
        events.append(TurnEvent(self._number, Finish("tool_calls" if is_call else reason)))
        return events

    def _event(self, delta: AnswerDelta, event: TextEvent) -> TurnEvent:
        if isinstance(delta, ToolCallBegin):
            self._has_calls = True
        tokens = None if event.tokens is None or not isinstance(delta, TextDelta) else self._tokens_in(delta)
        return TurnEvent(self._number, delta, tokens)

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
    plan = await _plan(turn, model, info, request_id)
    generation = Generation(model.engine, model.tokenizer, plan)
    return ChatTurn(generation, [PlainText() for _ in range(generation.num_choices)])


async def _plan(turn: TurnRequest, model: ServedModel, info: ModelInfo, request_id: str) -> Plan:
    fields = turn.fields
    n, num_draws, beams = num_choices(fields, model)
    if turn.max_tokens == 0:
        raise InvalidRequest(f"{turn.max_tokens_param} must be at least 1, got 0.", param=turn.max_tokens_param)
    limit = model.limits.completion_max_tokens
    wanted = wanted_tokens(turn.max_tokens, turn.max_tokens_param, default=None, limit=limit)
    # The best draws are picked by log-probability, whether or not the client sees any.
    picks = 0 if num_draws > n else None
    logprobs = picks if turn.top_logprobs is None else turn.top_logprobs
    sampling = sampling_params(fields, model, info, wanted=wanted, logprobs=logprobs)
    text = text_options(fields, has_logprobs=turn.top_logprobs is not None)
    token_ids = await _prompt(turn, model)
    token_ids = truncated(token_ids, fields.truncate_prompt_tokens, info.max_model_len)
    room = model.completion_room(len(token_ids), wanted, info, turn.messages_param)
    return Plan(
        request_id,
        [Prompt(token_ids, room)],
        sampling,
        text,
        num_draws=num_draws,
        num_choices=n,
        beams=beams,
        end_token_ids=end_token_ids(sampling, info),
        priority=fields.priority or 0,
        cache_salt=fields.cache_salt or "",
    )


async def _prompt(turn: TurnRequest, model: ServedModel) -> list[int]:
    variables = dict(turn.template_variables)
    if turn.reasoning_effort is not None:
        variables.setdefault("reasoning_effort", turn.reasoning_effort)
    return await encode_prompt(
        model,
        turn.messages,
        tools=() if turn.tool_choice.mode == "none" else turn.tools,
        add_generation_prompt=turn.add_generation_prompt,
        continues_last=turn.continues_last,
        variables=variables,
    )
