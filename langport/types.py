"""The domain's words: what the API asks of an engine, and what an engine answers.

These structs cross the boundary between the API's process and the engine's process, so they hold plain
values only. Nothing here knows HTTP, OpenAI's parameter names or tensors.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Literal, Protocol

import msgspec

ModelKind = Literal["decoder", "encoder-decoder", "encoder"]
FinishReason = Literal["stop", "length"]


class ModelInfo(msgspec.Struct, frozen=True):
    """What a loaded model tells the API about itself."""

    kind: ModelKind
    architecture: str
    max_model_len: int
    """Longest sequence in tokens: prompt and completion of a decoder; each side alone of an encoder-decoder."""
    vocab_size: int
    """Rows of the logits; every token id in a request must be below it."""
    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None
    num_parameters: int = 0
    dtype: str = "float32"
    device: str = "cpu"
    kv_cache_dtype: str = ""
    """Of the KV cache's numbers; empty for encoders."""
    kv_cache_blocks: int = 0
    """Blocks of the KV cache; 0 for encoders."""
    kv_cache_tokens: int = 0
    """Token slots in them."""
    kv_cache_sequences: int = 0
    """Sequences that fill the whole context and fit at once."""
    max_num_seqs: int = 0
    embedding_size: int = 0
    """Length of the vectors of an embedder; 0 when the model does not embed."""
    is_matryoshka: bool = False
    """The embedder was trained so that leading dimensions are useful on their own."""
    is_normalized: bool = False
    """The embedder's configuration says its vectors have unit length."""
    num_labels: int = 0
    """Length of the vectors of a classifier, its outputs; 0 when the model does not classify."""


class Grammar(msgspec.Struct, frozen=True):
    """What a generated text has to look like from its first token to its end.

    Made by the functions of `langport.text.grammar`; an engine keeps one matcher of it per sequence.
    """

    text: str
    """In llguidance's dialect of Lark, with a rule `start`."""
    hides_first_space: bool = False
    """The first token may have a space that is not shown, as `Tokenizer.hides_first_space` says."""


class SamplingParams(msgspec.Struct, frozen=True, omit_defaults=True):
    """How to draw tokens. Values are already validated; the engine trusts them."""

    max_tokens: int
    min_tokens: int = 0
    temperature: float = 1.0
    """0 takes the likeliest token."""
    top_p: float = 1.0
    top_k: int = 0
    """0 is off."""
    min_p: float = 0.0
    typical_p: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}
    seed: int | None = None
    """None draws a fresh seed for the request."""
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()
    allowed_token_ids: tuple[int, ...] = ()
    """Only these may be drawn; empty allows all."""
    bad_words: tuple[tuple[int, ...], ...] = ()
    """Token sequences that are never completed."""
    grammar: Grammar | None = None
    """The text follows it and ends only where it may end.

    It goes before everything else that forbids or forces tokens: where those leave none, only the grammar counts.
    """
    logprobs: int | None = None
    """None: no log-probabilities; k: of the chosen token and the k likeliest ones."""
    prompt_logprobs: int | None = None
    """The same for the prompt's tokens (decoder-only)."""
    ranks_prompt: bool = False
    """Say with `prompt_logprobs` at which rank each prompt token was."""
    is_beam: bool = False
    """One step of a beam search: end after one token, whose `logprobs` are what the search adds up.

    They are the raw ones with penalties, bias and bans applied to them, and not normalized again.
    """


class GenerateRequest(msgspec.Struct, frozen=True):
    """Continue one prompt with `n` sequences drawn separately."""

    request_id: str
    prompt_token_ids: list[int]
    """Used exactly as given; the encoder's input for an encoder-decoder. Never empty."""
    sampling: SamplingParams
    n: int = 1
    priority: int = 0
    """Lower runs earlier; waiting makes up for it (see `engine.scheduler`)."""
    lora: int | None = None
    """The adapter of the model to use, by the number it was loaded under."""
    cache_salt: str = ""
    """Requests whose salts differ share no cached beginnings, so none learns from its speed what others asked."""
    outputs: list[list[int]] = []
    """Tokens that each of the n sequences has generated before: it goes on after them. Empty: none has."""
    prediction: list[int] = []
    """What the answer will probably repeat in large parts: that makes it faster, and never another one."""


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """One token's natural log-probability, from the raw logits, and the likeliest tokens at its place."""

    token_id: int
    logprob: float
    top: list[tuple[int, float]] = []
    """(token id, logprob), likeliest first; as many as were asked for."""
    rank: int | None = None
    """1 for the likeliest token; only where it was asked for."""


class Delta(msgspec.Struct, array_like=True):
    """New tokens of one sequence."""

    request_id: str
    index: int
    """Which of the request's n sequences."""
    token_ids: list[int]
    """With finish_reason `stop` the last one is the eos or stop token itself: counted, not shown."""
    finish_reason: FinishReason | None = None
    logprobs: list[TokenLogprob] | None = None
    """One entry per token in `token_ids`, when asked for."""
    prompt_logprobs: list[TokenLogprob | None] | None = None
    """On the first delta of sequence 0, when asked for; the first prompt token's entry is None."""
    cached_tokens: int = 0
    """On a sequence's first delta: prompt tokens that were served from the prefix cache."""
    accepted_prediction_tokens: int = 0
    """Of the request's prediction: tokens that this step drafted and drew."""
    rejected_prediction_tokens: int = 0
    """Tokens of it that this step drafted in vain."""


class EmbedRequest(msgspec.Struct, frozen=True):
    """Turn token sequences into vectors: an embedder's, or a classifier's outputs as its head gives them."""

    request_id: str
    inputs: list[list[int]]
    """Used exactly as given; none is empty or longer than the model's context."""
    second_text: list[int] = []
    """Of each input the place where a second text begins, whose tokens are of another type; its length where it has
    none. Empty when no input has one."""


class TokenUsage(msgspec.Struct, frozen=True):
    """What answering one API call took."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    is_estimated: bool = False
    """Nobody counted them: they are guessed from the sizes of the request and of its answer."""

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


class Meter(Protocol):
    """Who answers a call tells it how the tokens are counted, before the first is made; a later telling replaces it."""

    def __call__(self, count: Callable[[], TokenUsage], work: asyncio.Future[Any] | None = None) -> None:
        """`count` is asked when the call has ended, however it ended, or when `work` has, which outlives the call."""
        ...


class EngineTotals(msgspec.Struct, frozen=True, array_like=True):
    """What an engine's process has done since it was started."""

    num_steps: int = 0
    """Forward passes."""
    num_computed_tokens: int = 0
    """Tokens that went through the model, of prompts and completions, again after a preemption."""
    num_generated_tokens: int = 0
    num_queried_tokens: int = 0
    """Prompt tokens that were looked for in the prefix cache."""
    num_cached_tokens: int = 0
    """Those of them that were found there."""
    num_preemptions: int = 0
    num_drafted_tokens: int = 0
    """Tokens that went through the model because they were likely to be drawn."""
    num_accepted_tokens: int = 0
    """Those of them that were drawn."""


class EngineHealth(msgspec.Struct, frozen=True):
    """A look at an engine without asking its process."""

    is_ready: bool
    reason: str = ""
    """Why it is not ready, for an operator."""
    num_running: int = 0
    num_waiting: int = 0
    kv_cache_usage: float = 0.0
    """Used share of the KV cache, 0 to 1."""
    totals: EngineTotals = EngineTotals()


class EngineNews(msgspec.Struct, array_like=True):
    """An engine as its owner sees it."""

    is_ready: bool
    reason: str
    """Why it is not."""
    info: ModelInfo | None
    door: str
    """Where guests come; empty while there is no process."""
    num_running: int
    num_waiting: int
    kv_cache_usage: float
    totals: EngineTotals
    adapters: list[int]
    """Numbers of those that requests may name."""
    adapter_problems: dict[int, str]


class Engine(Protocol):
    """An engine is an async stream. The process that owns a device, a remote replica and a fake all fit it."""

    async def wait_ready(self) -> ModelInfo:
        """The loaded model's description, as soon as there is one.

        Raises: CheckpointError when it cannot be loaded, Unavailable when the engine was stopped.
        """
        ...

    def generate(self, request: GenerateRequest) -> AsyncIterator[Delta]:
        """Yield deltas of all n sequences as engine steps bring them, until each has its finish_reason.

        Closing the iterator early (`aclose`) aborts what still runs and frees it within one step.
        Raises: EngineFailed or Unavailable when the engine dies or gives up on the request.
        """
        ...

    def abort(self, request_id: str, index: int | None = None) -> None:
        """Stop one sequence (a stop string was found), or all of a request. Unknown ids are ignored.

        `generate` yields nothing more for it and ends when no other sequence runs.
        """
        ...

    async def embed(self, request: EmbedRequest) -> list[bytes]:
        """One vector per input, in order, as little-endian float32 bytes; pooled and, where configured, normalized.

        A classifier's vectors are its outputs, one number per label.

        Cancelling the call aborts it. Raises: EngineFailed, Unavailable.
        """
        ...

    def health(self) -> EngineHealth:
        """The state as last reported; never blocks."""
        ...

    async def close(self) -> None:
        """End the engine and its process; open requests end with Unavailable."""
        ...
