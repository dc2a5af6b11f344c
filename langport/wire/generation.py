"""What chat completions and completions share: request fields, usage and the parts of a streamed chunk."""

from __future__ import annotations

import secrets
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

from langport.wire import sse
from langport.wire.structured import Choices, ResponseFormat, StructuredOutputs

Penalty = Annotated[float, Meta(ge=-2, le=2)]
Count = Annotated[int, Meta(ge=0)]
StopList = Annotated[list[str], Meta(min_length=1, max_length=4)]

_encode = msgspec.json.Encoder().encode


class StreamOptions(msgspec.Struct):
    """`stream_options` of a request."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class PromptCacheOptions(msgspec.Struct):
    """What OpenAI's servers are asked of their cache; this one keeps what it can for as long as it has room."""

    ttl: Literal["30m"] | None = None
    mode: Literal["implicit", "explicit"] | None = None


class PromptCacheBreakpoint(msgspec.Struct):
    """Where a client would have a cached beginning end; here every block may be one."""

    mode: Literal["explicit"]


class GenerationFields(msgspec.Struct, kw_only=True):
    """Request fields of both text endpoints. None (absent or null) means the default, everywhere.

    Fields typed `Raw` are known, so that they can be refused by name, but not read yet.
    """

    model: str | None = None
    max_tokens: Count | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    n: Annotated[int, Meta(ge=1)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: str | StopList | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[int, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    seed: int | None = None
    user: str | None = None

    min_tokens: Count | None = None
    top_k: Annotated[int, Meta(ge=-1)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    typical_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0)] | None = None
    stop_token_ids: list[Count] | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    truncate_prompt_tokens: Annotated[int, Meta(ge=-1)] | None = None

    bad_words: list[Annotated[str, Meta(min_length=1)]] | None = None
    allowed_token_ids: Annotated[list[Count], Meta(min_length=1)] | None = None
    priority: Annotated[int, Meta(ge=-(2**31), le=2**31)] | None = None
    cache_salt: Annotated[str, Meta(min_length=1)] | None = None

    prompt_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None

    best_of: Annotated[int, Meta(ge=0, le=20)] | None = None
    use_beam_search: bool | None = None
    length_penalty: Annotated[float, Meta(ge=-10, le=10)] | None = None
    early_stopping: bool | Literal["never"] | None = None

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: Choices | None = None
    guided_grammar: str | None = None


def is_given(field: msgspec.Raw) -> bool:
    """Whether an unread field is there and not null."""
    return bytes(field) not in (b"", b"null")


class PromptTokensDetails(msgspec.Struct):
    cached_tokens: int = 0
    audio_tokens: int = 0


class CompletionTokensDetails(msgspec.Struct):
    reasoning_tokens: int = 0
    audio_tokens: int = 0
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0


class Usage(msgspec.Struct):
    """Token counts of an answer. Each prompt counts once, every drawn sequence counts."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class ScoredToken(msgspec.Struct):
    """A token of the answer's text and its log-probability, for either endpoint's form."""

    text: bytes
    """The bytes that it adds to the text; not always whole characters."""
    logprob: float | None
    """None for the first token of a prompt, which nothing precedes."""
    top: list[tuple[bytes, float]]
    """The likeliest tokens at its place, likeliest first."""
    offset: int
    """Characters of the answer's text before it."""


class PromptLogprob(msgspec.Struct):
    """One token at one place of the prompt, as vLLM's server answers `prompt_logprobs`."""

    logprob: float
    rank: int | None
    """1 for the likeliest token at its place."""
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]
"""By token id, one dict per prompt token: the token itself and the likeliest ones. The first has none."""


def token_name(data: bytes) -> str:
    """A token's bytes as text; incomplete characters as OpenAI spells them, `bytes:\\xe2\\x80`."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def finite(logprob: float) -> float:
    """JSON knows no infinity; a banned token gets the value that OpenAI gives it."""
    return max(logprob, -9999.0)


class ChunkWriter:
    """Writes the events of one streamed answer.

    All that stays the same is laid out once, so that a piece of text costs its escaping and two joins.
    """

    object_name: ClassVar[str]
    before_text: ClassVar[str]
    """What stands in a choice between its index and its text."""
    after_text: ClassVar[str]
    """What closes the text."""

    def __init__(
        self,
        *,
        id: str,
        created: int,
        model: str,
        num_choices: int,
        include_usage: bool = False,
        obfuscate: bool = False,
        service_tier: str | None = None,
    ) -> None:
        self._head = b'data: {"id":%b,"object":"%b","created":%d,"model":%b,' % (
            sse.document(id),
            self.object_name.encode(),
            created,
            sse.document(model),
        )
        if service_tier:
            self._head += b'"service_tier":%b,' % sse.document(service_tier)
        self._tail = b',"usage":null' if include_usage else b""
        self._obfuscate = obfuscate
        self._starts = [
            self._head + b'"choices":[{"index":%d,%b' % (index, self.before_text.encode())
            for index in range(num_choices)
        ]
        self._after_text = self.after_text.encode() + b',"logprobs":'
        self._plain_end = self._after_text + b'null,"finish_reason":null}]' + self._tail + b"}\n\n"

    def opening(self, index: int) -> bytes:
        """The event that begins a choice, if this kind of stream has one."""
        return b""

    def piece(self, index: int, text: str, logprobs: msgspec.Struct | None = None) -> bytes:
        """The event that adds text to a choice."""
        if logprobs is None and not self._obfuscate:
            return self._starts[index] + sse.document(text) + self._plain_end
        end = self._after_text + sse.document(logprobs) + b',"finish_reason":null}]'
        return self._starts[index] + sse.document(text) + end + self._end()

    def finish(self, index: int, reason: Literal["stop", "length"]) -> bytes:
        """The last event of a choice."""
        raise NotImplementedError

    def usage(self, usage: Usage) -> bytes:
        """The event after all choices, for clients that asked for it."""
        return self._head + b'"choices":[],"usage":' + _encode(usage) + b"}\n\n"

    def _end(self) -> bytes:
        """Close an event after its choices; the padding hides the text's length from an eavesdropper."""
        if not self._obfuscate:
            return self._tail + b"}\n\n"
        padding = secrets.token_urlsafe(secrets.randbelow(16) + 1)
        return self._tail + b',"obfuscation":"%b"}\n\n' % padding.encode()
