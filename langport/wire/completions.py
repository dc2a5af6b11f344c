"""`POST /v1/completions`: the request, the answer and the chunks of a streamed answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from langport.types import FinishReason
from langport.wire import sse
from langport.wire.generation import (
    ChunkWriter,
    Count,
    GenerationFields,
    PromptLogprobs,
    ScoredToken,
    Usage,
    finite,
    token_name,
)


class CompletionRequest(GenerationFields, kw_only=True):
    """Every field OpenAI documents for completions, and the usual extras. `prompt` is read by `inputs`."""

    prompt: msgspec.Raw = msgspec.Raw()
    suffix: str | None = None
    echo: bool | None = None
    logprobs: Count | None = None
    add_special_tokens: bool | None = None


DECODER = msgspec.json.Decoder(CompletionRequest)


class CompletionLogprobs(msgspec.Struct):
    """Four lists with one entry per token."""

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


def completion_logprobs(tokens: Sequence[ScoredToken]) -> CompletionLogprobs:
    """The tokens in the form of `choices[].logprobs`; the chosen token is always among the alternatives."""
    return CompletionLogprobs(
        text_offset=[token.offset for token in tokens],
        token_logprobs=[None if token.logprob is None else finite(token.logprob) for token in tokens],
        tokens=[token_name(token.text) for token in tokens],
        top_logprobs=[_alternatives(token) for token in tokens],
    )


def _alternatives(token: ScoredToken) -> dict[str, float] | None:
    if token.logprob is None:
        return None
    found: dict[str, float] = {}
    for text, logprob in token.top:
        found.setdefault(token_name(text), finite(logprob))
    found.setdefault(token_name(token.text), finite(token.logprob))
    return found


class CompletionChoice(msgspec.Struct, kw_only=True):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason
    prompt_logprobs: PromptLogprobs | msgspec.UnsetType = msgspec.UNSET


class Completion(msgspec.Struct, kw_only=True):
    """A whole answer."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


class CompletionChunkWriter(ChunkWriter):
    """The events of a streamed completion."""

    object_name = "text_completion"
    before_text = '"text":'
    after_text = ""

    def finish(self, index: int, reason: FinishReason) -> bytes:
        end = b'"","logprobs":null,"finish_reason":%b}]' % sse.document(reason)
        return self._starts[index] + end + self._end()
