"""`POST /v1/decisions`: questions about an input, answered with probabilities, in the shape of openai-python 3.54."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from langport.wire.responses import ResponseUsage

Values = dict[str, Any] | list[dict[str, Any]]


class DecisionPart(msgspec.Struct):
    """One part of a content: text, or JSON that is read as text."""

    type: str
    text: str | None = None
    refusal: str | None = None
    data: Values | None = None


Content = str | Annotated[list[DecisionPart], Meta(min_length=1)]


class DecisionItem(msgspec.Struct):
    """A message, a call or the output of one; without a type it is a message."""

    type: Literal["message", "function_call", "function_call_output", "custom_tool_call", "custom_tool_call_output"] = (
        "message"
    )
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: Content | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    input: str | None = None
    output: Content | None = None
    id: Any = None
    namespace: Any = None
    phase: Any = None
    status: Any = None


class Predicate(msgspec.Struct, tag_field="type", tag="predicate"):
    """How likely is it that a statement is true?"""

    instructions: Content
    name: str | None = None


class Option(msgspec.Struct):
    """A string and a boolean of the same text are two options."""

    value: str | bool
    description: str | None = None


class Choice(msgspec.Struct, tag_field="type", tag="choice"):
    """Which of these is it?"""

    instructions: Content
    choices: Annotated[list[Option], Meta(min_length=2, max_length=255)]
    name: str | None = None


class Level(msgspec.Struct):
    label: str
    description: str | None = None


class Score(msgspec.Struct, tag_field="type", tag="score"):
    """Which of these levels, from the lowest to the highest?"""

    instructions: Content
    levels: Annotated[list[Level], Meta(min_length=2, max_length=255)]
    name: str | None = None


Question = Predicate | Choice | Score


class DecisionRequest(msgspec.Struct, kw_only=True):
    """Every field of `client.decisions.create`."""

    model: str | None = None
    input: str | Annotated[list[DecisionItem], Meta(min_length=1)] | None = None
    questions: Annotated[list[Question], Meta(min_length=1, max_length=400)] | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    safety_identifier: Annotated[str, Meta(max_length=64)] | None = None


DECODER = msgspec.json.Decoder(DecisionRequest)


class PredicateAnswer(msgspec.Struct, tag_field="type", tag="predicate", kw_only=True):
    name: str | None
    probability: float


class OptionProbability(msgspec.Struct):
    value: str | bool
    probability: float


class ChoiceAnswer(msgspec.Struct, tag_field="type", tag="choice", kw_only=True):
    name: str | None
    choice: str | bool
    """The likeliest."""
    confidence: float
    """Its probability."""
    probabilities: list[OptionProbability]


class LevelProbability(msgspec.Struct):
    label: str
    value: int
    """The level's place, from 0."""
    probability: float


class ScoreAnswer(msgspec.Struct, tag_field="type", tag="score", kw_only=True):
    name: str | None
    score: float
    """The mean of the levels' values by their probabilities."""
    confidence: float
    """The probability of the likeliest level."""
    probabilities: list[LevelProbability]


Answer = PredicateAnswer | ChoiceAnswer | ScoreAnswer


class Decision(msgspec.Struct, kw_only=True):
    """Answers in the order of the questions."""

    answers: list[Answer]
    model: str
    usage: ResponseUsage
