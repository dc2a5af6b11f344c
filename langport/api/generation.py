"""One API call's text generation: wire parameters to the engine's, the engine's deltas to text.

The one place that maps `GenerationFields` to `SamplingParams`. Several prompts are several engine requests,
merged as they come. Streamed and plain answers read the same events.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TypeVar, cast

import msgspec

from langport.api.beam import BeamParams, beam_search
from langport.api.model import ServedModel, check_vocabulary
from langport.api.sequence import SequenceText, TextEvent, TextOptions, prompt_logprobs, score_prompt
from langport.api.structured import demand
from langport.errors import EngineFailed, InvalidRequest
from langport.text.tokenizer import Tokenizer
from langport.types import (
    Delta,
    Engine,
    FinishReason,
    GenerateRequest,
    Grammar,
    ModelInfo,
    SamplingParams,
    TokenLogprob,
    TokenUsage,
)
from langport.wire.generation import (
    CompletionTokensDetails,
    GenerationFields,
    PromptLogprobs,
    PromptTokensDetails,
    ScoredToken,
    Usage,
    is_given,
)

T = TypeVar("T")

_NUM_PRIMING_TOKENS = 8
"""Prompt tokens among which one is looked for that a completion can be decoded after."""


@dataclass(frozen=True)
class Prompt:
    """One prompt and how many tokens may follow it."""

    token_ids: list[int]
    max_tokens: int
    text: str = ""
    """What `echo` repeats."""
    echoed: slice = field(default_factory=lambda: slice(None))
    """The tokens of that text; the others are around it, as where a gap is filled."""


@dataclass(frozen=True)
class Plan:
    """All that is asked of the engine in one API call."""

    request_id: str
    """Unique in this process."""
    prompts: list[Prompt]
    sampling: SamplingParams
    """Of all prompts, but for `max_tokens`."""
    text: TextOptions
    num_draws: int = 1
    """Sequences per prompt."""
    num_choices: int = 1
    """How many of them are shown, the likeliest; all, when there are no more."""
    beams: BeamParams | None = None
    """Search for the draws instead of drawing them."""
    end_token_ids: frozenset[int] = frozenset()
    """Tokens that end a beam."""
    priority: int = 0
    cache_salt: str = ""
    is_echo: bool = False
    prediction: list[int] = field(default_factory=list)
    """What the answers will probably repeat in large parts."""
    continues_text: bool = False
    """The answer goes on in the prompt's last word (completions of a decoder)."""


def refuse_unsupported(fields: GenerationFields, **more: msgspec.Raw) -> None:
    """Raises: InvalidRequest naming a known parameter that is given but not honoured yet."""
    for name, value in more.items():
        if is_given(value):
            raise InvalidRequest(f"{name} is not supported by this server; leave it out.", param=name)
    if fields.prompt_logprobs is not None and fields.stream:
        raise InvalidRequest(
            "prompt_logprobs cannot be streamed; leave out stream or prompt_logprobs.", param="prompt_logprobs"
        )
    if fields.stream_options is not None and not fields.stream:
        raise InvalidRequest("stream_options is only allowed together with stream: true.", param="stream_options")


def num_choices(fields: GenerationFields, model: ServedModel) -> tuple[int, int, BeamParams | None]:
    """How many choices per prompt, of how many draws, and how to search for them if they are not drawn.

    Raises: InvalidRequest above the server's limit, and for what does not go together.
    """
    limit = model.limits.completion_max_n
    n = 1 if fields.n is None else fields.n
    if n > limit:
        raise InvalidRequest(f"n must be at most {limit} on this server, got {n}.", param="n")
    num_draws = n if fields.best_of is None else fields.best_of
    if num_draws < n:
        raise InvalidRequest(f"best_of must not be below n ({n}), got {num_draws}.", param="best_of")
    if fields.use_beam_search:
        return n, n, _beam_params(fields, num_draws)
    if fields.early_stopping or fields.length_penalty not in (None, 1.0):
        param = "early_stopping" if fields.early_stopping else "length_penalty"
        raise InvalidRequest(f"{param} is only allowed together with use_beam_search: true.", param=param)
    if num_draws > n and fields.stream:
        raise InvalidRequest("best_of cannot be streamed; leave out stream or best_of.", param="best_of")
    return n, num_draws, None


def _beam_params(fields: GenerationFields, width: int) -> BeamParams:
    """Raises: InvalidRequest for what a search cannot do."""
    if fields.stream:
        raise InvalidRequest(
            "use_beam_search cannot be streamed: its answers are known at its end. Leave out stream.",
            param="use_beam_search",
        )
    if fields.temperature:
        raise InvalidRequest(
            f"temperature must be 0 or left out with use_beam_search, got {fields.temperature}.",
            param="temperature",
        )
    return BeamParams(width, _given(fields.length_penalty, 1.0), fields.early_stopping or False)


def wanted_tokens(value: int | None, param: str, *, default: int | None, limit: int | None) -> int | None:
    """How many tokens the request may generate; None for as many as there is room for.

    Raises: InvalidRequest naming `param` for a value above `limit`; a default above it is lowered.
    """
    if value is None:
        return limit if default is None else min(default, limit or default)
    if limit is not None and value > limit:
        raise InvalidRequest(f"{param} must be at most {limit} for this model, got {value}.", param=param)
    return value


def text_options(fields: GenerationFields, *, has_logprobs: bool, lists_hidden: bool = False) -> TextOptions:
    """Raises: InvalidRequest for an empty stop string."""
    stop = [fields.stop] if isinstance(fields.stop, str) else (fields.stop or [])
    if "" in stop:
        raise InvalidRequest("stop must not hold an empty string; leave it out to stop nowhere.", param="stop")
    return TextOptions(
        stop=tuple(stop),
        include_stop=bool(fields.include_stop_str_in_output),
        skip_special_tokens=fields.skip_special_tokens is not False,
        min_tokens=fields.min_tokens or 0,
        has_logprobs=has_logprobs,
        lists_hidden=lists_hidden,
    )


def sampling_params(
    fields: GenerationFields,
    model: ServedModel,
    info: ModelInfo,
    *,
    wanted: int | None,
    logprobs: int | None,
    echo_logprobs: int | None = None,
    grammar: Grammar | None = None,
) -> SamplingParams:
    """The engine's parameters. `wanted` tokens at most; each prompt's own `max_tokens` is set later.

    Raises: InvalidRequest naming the parameter that does not fit this model or another parameter.
    """
    if fields.prompt_logprobs is not None and info.kind != "decoder":
        raise InvalidRequest(
            "prompt_logprobs: an encoder-decoder does not predict its prompt; leave it out.", param="prompt_logprobs"
        )
    scored = [count for count in (fields.prompt_logprobs, echo_logprobs) if count is not None]
    min_tokens = fields.min_tokens or 0
    limit = info.max_model_len if wanted is None else wanted
    if min_tokens > limit:
        raise InvalidRequest(
            f"min_tokens must not be above the number of tokens to generate ({limit}), got {min_tokens}.",
            param="min_tokens",
        )
    return SamplingParams(
        max_tokens=limit,
        min_tokens=min_tokens,
        temperature=_given(fields.temperature, model.default("temperature", 1.0)),
        top_p=_given(fields.top_p, model.default("top_p", 1.0)),
        top_k=min(max(0, int(_given(fields.top_k, model.default("top_k", 0)))), info.vocab_size),
        min_p=_given(fields.min_p, model.default("min_p", 0.0)),
        presence_penalty=fields.presence_penalty or 0.0,
        frequency_penalty=fields.frequency_penalty or 0.0,
        repetition_penalty=_given(fields.repetition_penalty, model.default("repetition_penalty", 1.0)),
        logit_bias=_logit_bias(fields.logit_bias or {}, info.vocab_size),
        seed=_seed(fields.seed),
        ignore_eos=bool(fields.ignore_eos),
        stop_token_ids=_token_ids(fields.stop_token_ids, "stop_token_ids", info.vocab_size),
        allowed_token_ids=_token_ids(fields.allowed_token_ids, "allowed_token_ids", info.vocab_size),
        bad_words=_bad_words(fields.bad_words or [], model.tokenizer),
        typical_p=_given(fields.typical_p, 1.0),
        grammar=grammar,
        logprobs=logprobs,
        prompt_logprobs=max(scored) if scored else None,
        ranks_prompt=fields.prompt_logprobs is not None,
    )


def end_token_ids(sampling: SamplingParams, info: ModelInfo) -> frozenset[int]:
    """The tokens that end an answer."""
    ignores_eos = sampling.ignore_eos and sampling.grammar is None
    return frozenset(sampling.stop_token_ids).union(() if ignores_eos else info.eos_token_ids)


async def wanted_grammar(
    fields: GenerationFields, model: ServedModel, info: ModelInfo, *, begins_text: bool
) -> Grammar | None:
    """What the answers have to look like, compiled once to see that it can be followed.

    `begins_text`: they do not go on in the middle of the prompt's text. Raises: InvalidRequest.
    """
    wanted = demand(fields)
    return None if wanted is None else await model.grammars.check(wanted, info, begins_text=begins_text)


def _given(value: float | None, default: float) -> float:
    return default if value is None else value


def _seed(seed: int | None) -> int | None:
    """Any integer, brought into 64 bits with sign, which is what travels to the engine."""
    if seed is None or -(2**63) <= seed < 2**63:
        return seed
    return seed % 2**63


def _logit_bias(bias: dict[int, float], vocab_size: int) -> dict[int, float]:
    for token_id in bias:
        if not 0 <= token_id < vocab_size:
            raise InvalidRequest(
                f"logit_bias holds the token id {token_id}; this model's ids go from 0 to {vocab_size - 1}.",
                param="logit_bias",
            )
    return bias


def _token_ids(token_ids: list[int] | None, param: str, vocab_size: int) -> tuple[int, ...]:
    check_vocabulary(token_ids or [], vocab_size, param)
    return tuple(token_ids or ())


def _bad_words(words: list[str], tokenizer: Tokenizer) -> tuple[tuple[int, ...], ...]:
    """The tokens of each word, at the beginning of a text and after a space, which most tokenizers spell apart."""
    spellings = [text for word in words for text in (word, " " + word.lstrip())]
    encoded = (tuple(tokenizer.encode(text, add_special_tokens=False)) for text in spellings)
    return tuple(dict.fromkeys(tokens for tokens in encoded if tokens))


def truncated(token_ids: list[int], keep: int | None, max_model_len: int) -> list[int]:
    """The last `keep` tokens of a prompt; -1 keeps as many as leave room for one more."""
    if keep is None:
        return token_ids
    if keep == 0:
        raise InvalidRequest(
            "truncate_prompt_tokens must be at least 1, or -1 for the model's context.",
            param="truncate_prompt_tokens",
        )
    return token_ids[-(max_model_len - 1 if keep == -1 else keep) :]


@dataclass
class Answer:
    """A choice put together from its events."""

    text: list[str] = field(default_factory=list)
    tokens: list[ScoredToken] = field(default_factory=list)
    finish_reason: FinishReason = "length"

    def add(self, event: TextEvent) -> None:
        self.text.append(event.text)
        self.tokens.extend(event.tokens or ())
        if event.finish_reason is not None:
            self.finish_reason = event.finish_reason


class Generation:
    """Runs a plan; `events` may be read once, then `usage` and `mean_logprob` are complete."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer, plan: Plan) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._plan = plan
        self._cached_tokens = 0
        self._accepted_tokens = 0
        """Of the prediction."""
        self._rejected_tokens = 0
        self._prompt_logprobs: dict[int, list[TokenLogprob | None]] = {}
        self._sequences = [
            self._sequence(prompt, number * plan.num_draws + draw)
            for number, prompt in enumerate(plan.prompts)
            for draw in range(plan.num_draws)
        ]

    @property
    def num_choices(self) -> int:
        return len(self._sequences)

    def events(self) -> AsyncGenerator[TextEvent, None]:
        """The text of all choices as it comes; choice = prompt number * draws + draw.

        Raises: EngineFailed, Unavailable. Closing it early aborts the engine's work.
        """
        runs = [self._run(number) for number in range(len(self._plan.prompts))]
        return runs[0] if len(runs) == 1 else merge(runs)

    async def answers(self) -> list[Answer]:
        """The fold of all events: per prompt the choices to show, in the order of their draws or the best first."""
        answers = [Answer() for _ in self._sequences]
        async with aclosing(self.events()) as events:
            async for event in events:
                answers[event.choice].add(event)
        return self.best(answers)

    def best(self, answers: Sequence[T]) -> list[T]:
        """Of the answers to all draws those to show: the likeliest, best first, when more were drawn."""
        plan = self._plan
        if plan.num_choices == plan.num_draws:
            return list(answers)
        best: list[T] = []
        for first in range(0, len(answers), plan.num_draws):
            draws = range(first, first + plan.num_draws)
            ranked = sorted(draws, key=self._mean_logprob, reverse=True)
            best.extend(answers[choice] for choice in ranked[: plan.num_choices])
        return best

    def end(self, choice: int) -> None:
        """Nothing more of a choice is wanted."""
        sequence = self._sequences[choice]
        if sequence.finish_reason is None:
            sequence.finish_reason = "stop"
            number, draw = divmod(choice, self._plan.num_draws)
            self._engine.abort(self._request_id(number), draw)

    def num_tokens(self, choice: int, before: int | None = None) -> int:
        """Tokens of a choice, all or those that begin `before` so many characters."""
        sequence = self._sequences[choice]
        return sequence.num_tokens if before is None else sequence.num_tokens_before(before)

    def usage(self, *, reasoning_tokens: int = 0) -> Usage:
        prompt = sum(len(prompt.token_ids) for prompt in self._plan.prompts)
        completion = sum(sequence.num_tokens for sequence in self._sequences)
        return Usage(
            prompt,
            completion,
            prompt + completion,
            PromptTokensDetails(cached_tokens=self._cached_tokens),
            CompletionTokensDetails(
                reasoning_tokens=reasoning_tokens,
                accepted_prediction_tokens=self._accepted_tokens,
                rejected_prediction_tokens=self._rejected_tokens,
            ),
        )

    def tokens(self) -> TokenUsage:
        """The same so far, for a meter."""
        usage = self.usage()
        return TokenUsage(usage.prompt_tokens, usage.completion_tokens)

    def prompt_logprobs(self, prompt: int, num_top: int | None) -> PromptLogprobs | msgspec.UnsetType:
        """Of the prompt with this number, as the answer shows it; unset when `num_top` says nobody asked."""
        if num_top is None:
            return msgspec.UNSET
        return prompt_logprobs(self._tokenizer, self._prompt_logprobs[prompt], num_top)

    def _mean_logprob(self, choice: int) -> float:
        """Per token; only where log-probabilities were asked of the engine."""
        sequence = self._sequences[choice]
        return sequence.logprob_sum / max(1, sequence.num_tokens)

    def _sequence(self, prompt: Prompt, choice: int) -> SequenceText:
        return SequenceText(
            choice,
            self._tokenizer,
            self._plan.text,
            before=_priming(prompt) if self._plan.continues_text else (),
            offset=len(prompt.text) if self._plan.is_echo else 0,
        )

    async def _run(self, number: int) -> AsyncGenerator[TextEvent, None]:
        """The events of one prompt's sequences."""
        plan, prompt = self._plan, self._plan.prompts[number]
        first = number * plan.num_draws
        sequences = self._sequences[first : first + plan.num_draws]
        scores_prompt = plan.sampling.prompt_logprobs is not None
        if prompt.max_tokens == 0 and not scores_prompt:
            for event in self._opening(prompt, first, None):
                yield event
            return
        request = self._request(number)
        opening_is_due = plan.is_echo or prompt.max_tokens == 0
        waiting: list[Delta] = []
        deltas = self._deltas(request, prompt)
        async with aclosing(deltas):
            async for delta in deltas:
                if delta.index == 0:
                    self._cached_tokens += delta.cached_tokens
                self._accepted_tokens += delta.accepted_prediction_tokens
                self._rejected_tokens += delta.rejected_prediction_tokens
                if delta.prompt_logprobs is not None:
                    self._prompt_logprobs[number] = delta.prompt_logprobs
                waiting.append(delta)
                if opening_is_due:
                    if scores_prompt and delta.prompt_logprobs is None:
                        continue
                    opening_is_due = False
                    for event in self._opening(prompt, first, delta):
                        yield event
                    if prompt.max_tokens == 0:
                        return
                for ready in waiting:
                    text = self._take(sequences[ready.index], ready)
                    if text is not None:
                        yield text
                waiting.clear()
        if any(sequence.finish_reason is None for sequence in sequences):
            raise EngineFailed("The engine ended this request before its answer was complete. Try again.")

    def _deltas(self, request: GenerateRequest, prompt: Prompt) -> AsyncGenerator[Delta, None]:
        plan = self._plan
        if plan.beams is None or prompt.max_tokens == 0:
            return cast("AsyncGenerator[Delta, None]", self._engine.generate(request))

        def is_stopped(tokens: list[int]) -> bool:
            if not plan.text.stop:
                return False
            text = self._sequence(prompt, 0)
            text.take(Delta(request.request_id, 0, tokens))
            return text.found_stop

        return beam_search(self._engine, request, plan.beams, end_token_ids=plan.end_token_ids, is_stopped=is_stopped)

    def _request(self, number: int) -> GenerateRequest:
        plan, prompt = self._plan, self._plan.prompts[number]
        sampling = msgspec.structs.replace(
            plan.sampling,
            max_tokens=prompt.max_tokens,
            min_tokens=min(plan.sampling.min_tokens, prompt.max_tokens),
        )
        # Scoring a prompt without continuing it needs no more than one sequence.
        n = plan.num_draws if prompt.max_tokens else 1
        return GenerateRequest(
            self._request_id(number),
            prompt.token_ids,
            sampling,
            n,
            priority=plan.priority,
            cache_salt=plan.cache_salt,
            prediction=plan.prediction,
        )

    def _request_id(self, number: int) -> str:
        plan = self._plan
        return plan.request_id if len(plan.prompts) == 1 else f"{plan.request_id}-{number}"

    def _take(self, sequence: SequenceText, delta: Delta) -> TextEvent | None:
        event = sequence.take(delta)
        if event is not None and event.finish_reason is not None and delta.finish_reason is None:
            self._engine.abort(delta.request_id, delta.index)  # a stop string; the engine does not know
        return event

    def _opening(self, prompt: Prompt, first: int, delta: Delta | None) -> list[TextEvent]:
        """The repeated prompt, for every sequence; the whole answer where nothing is to be generated."""
        tokens = None
        if self._plan.is_echo and self._plan.text.has_logprobs and delta is not None and delta.prompt_logprobs:
            num_top = self._plan.sampling.logprobs or 0
            shown, scored = prompt.token_ids[prompt.echoed], delta.prompt_logprobs[prompt.echoed]
            tokens = score_prompt(self._tokenizer, shown, scored, prompt.text, num_top)
        text = prompt.text if self._plan.is_echo else ""
        reason: FinishReason | None = None if prompt.max_tokens else "length"
        return [TextEvent(first + draw, text, tokens, finish_reason=reason) for draw in range(self._plan.num_draws)]


def _priming(prompt: Prompt) -> list[int]:
    """The tokens that an answer goes on after."""
    return (prompt.token_ids[prompt.echoed] or prompt.token_ids)[-_NUM_PRIMING_TOKENS:]


async def merge(streams: Sequence[AsyncGenerator[T, None]]) -> AsyncGenerator[T, None]:
    """The items of all streams as they come. Closing it closes them; the first error ends it."""
    ready: deque[T] = deque()
    errors: list[Exception] = []
    num_open = len(streams)
    wake = asyncio.Event()

    async def pump(stream: AsyncIterator[T]) -> None:
        nonlocal num_open
        try:
            async for item in stream:
                ready.append(item)
                wake.set()
        except Exception as error:  # raised where the merged stream is read
            errors.append(error)
        finally:
            num_open -= 1
            wake.set()

    tasks = [asyncio.create_task(pump(stream)) for stream in streams]
    try:
        while True:
            while ready:
                yield ready.popleft()
            if errors:
                raise errors[0]
            if num_open == 0:
                return
            wake.clear()
            await wake.wait()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for stream in streams:
            await stream.aclose()
