"""How likely a model finds each of several given answers: read off its own probabilities, nothing is drawn.

The answers are a tree of tokens whose branches are asked for side by side, one engine request for all that is not
deeper than another's beginning. An answer counts with its end, so that one may begin with another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from langport.api.beam import one_step
from langport.types import Engine, GenerateRequest, SamplingParams

MAX_BRANCHES = 64
"""Beginnings of answers in one engine request; more are asked for in further ones."""

Beginning = tuple[int, ...]


@dataclass(frozen=True)
class Scored:
    """What came of it."""

    logprobs: list[float]
    """Natural logarithm of the probability that the model answers this and nothing else; one per candidate."""
    num_tokens: int
    """Places at which the model was asked for the next token."""
    cached_tokens: int
    """Tokens of the prompt that the first request took from the prefix cache."""


async def score_candidates(
    engine: Engine,
    prompt: Sequence[int],
    candidates: Sequence[Sequence[int]],
    *,
    end_token_ids: Sequence[int],
    request_id: str,
    priority: int = 0,
    cache_salt: str = "",
) -> Scored:
    """The log-probabilities of the candidates' tokens after the prompt, with one of the end tokens behind them.

    A model without end tokens is asked for the candidates alone. Raises: EngineFailed, Unavailable; cancelling it
    aborts the engine's work.
    """
    next_tokens = _next_tokens(candidates, end_token_ids)
    beginnings = list(next_tokens)
    logprobs: dict[Beginning, dict[int, float]] = {}
    cached_tokens = 0
    # The root alone, so that the prompt is in the prefix cache for all others.
    parts = [beginnings[:1]] + [beginnings[i : i + MAX_BRANCHES] for i in range(1, len(beginnings), MAX_BRANCHES)]
    for number, part in enumerate(parts):
        wanted = sorted({token for beginning in part for token in next_tokens[beginning]})
        request = msgspec.structs.replace(
            _request(f"{request_id}-{number}", prompt, part, wanted), priority=priority, cache_salt=cache_salt
        )
        for delta in await one_step(engine, request):
            assert delta.logprobs is not None
            logprobs[part[delta.index]] = dict(delta.logprobs[0].top)
            cached_tokens += delta.cached_tokens if number == 0 else 0
    found = [_total(tuple(candidate), logprobs, end_token_ids) for candidate in candidates]
    return Scored(found, len(beginnings), cached_tokens)


def _next_tokens(candidates: Sequence[Sequence[int]], end_token_ids: Sequence[int]) -> dict[Beginning, set[int]]:
    """By each beginning of an answer what it may go on with, the empty one first."""
    found: dict[Beginning, set[int]] = {(): set()}
    for candidate in candidates:
        for position, token in enumerate(candidate):
            found.setdefault(tuple(candidate[:position]), set()).add(token)
        if end_token_ids:
            found.setdefault(tuple(candidate), set()).update(end_token_ids)
    return found


def _request(
    request_id: str, prompt: Sequence[int], beginnings: Sequence[Beginning], wanted: list[int]
) -> GenerateRequest:
    """Ask each beginning for the log-probabilities of the wanted next tokens: all others are banned, so these are
    the likeliest, and in a beam search's step they are the raw ones.
    """
    sampling = SamplingParams(
        max_tokens=max(map(len, beginnings)) + 1,
        temperature=0.0,
        allowed_token_ids=tuple(wanted),
        logprobs=len(wanted),
        is_beam=True,
    )
    outputs = [list(beginning) for beginning in beginnings] if any(beginnings) else []
    return GenerateRequest(request_id, list(prompt), sampling, len(beginnings), outputs=outputs)


def _total(candidate: Beginning, logprobs: dict[Beginning, dict[int, float]], end_token_ids: Sequence[int]) -> float:
    steps = [logprobs[candidate[:i]].get(token, -math.inf) for i, token in enumerate(candidate)]
    if end_token_ids:
        ends = logprobs[candidate]
        steps.append(log_sum_exp([ends.get(token, -math.inf) for token in end_token_ids]))
    return sum(steps)


def log_sum_exp(values: Sequence[float]) -> float:
    """The logarithm of the sum of what these are the logarithms of."""
    largest = max(values)
    return largest if largest == -math.inf else largest + math.log(sum(math.exp(v - largest) for v in values))


def softmax(logits: Sequence[float]) -> list[float]:
    """Probabilities that add up to 1; equal ones where nothing is possible at all."""
    total = log_sum_exp(logits)
    if total == -math.inf:
        return [1 / len(logits)] * len(logits)
    return [math.exp(logit - total) for logit in logits]
