"""Beam search over any engine: each round asks the engine for the likeliest next tokens of every live beam.

A round is one request whose sequences go on from the beams' tokens; a decoder's prefix cache makes that cheap, an
encoder-decoder reads its input again. The search itself is transformers' `generate(num_beams=...)`, whose parameters
have the same names here; older vLLM servers used them too. Source: its `_beam_search`, version 5.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Literal, cast

import msgspec

from langport.errors import EngineFailed
from langport.types import Delta, Engine, GenerateRequest, TokenLogprob

EarlyStopping = bool | Literal["never"]


@dataclass(frozen=True)
class BeamParams:
    """What to search for."""

    width: int
    """Live beams, and finished ones to choose from."""
    length_penalty: float = 1.0
    """A finished beam's score is its log-probability over its length to this power; above 0 prefers long ones."""
    early_stopping: EarlyStopping = False
    """True ends the search at `width` finished beams. False: when the best live beam, were it to end now, would not be
    among them; "never": when it could not be, however long it became."""


@dataclass(frozen=True)
class _Beam:
    """A beginning of the answer; the lists are shared with no other."""

    tokens: list[int] = field(default_factory=list)
    entries: list[TokenLogprob] = field(default_factory=list)
    logprob: float = 0.0
    """Sum over the tokens."""

    def followed_by(self, token: int, logprob: float, entry: TokenLogprob) -> _Beam:
        return _Beam([*self.tokens, token], [*self.entries, entry], self.logprob + logprob)


async def beam_search(
    engine: Engine,
    request: GenerateRequest,
    params: BeamParams,
    *,
    end_token_ids: Collection[int],
    is_stopped: Callable[[list[int]], bool],
) -> AsyncGenerator[Delta, None]:
    """The `request.n` best answers, best first: one delta for each, when the search is over.

    `is_stopped` says whether an answer's text has reached a stop string. Temperature and seed are not read.
    Raises: EngineFailed, Unavailable. Closing it early aborts the round that runs.
    """
    search = _Search(request, params, end_token_ids, is_stopped)
    first: Delta | None = None
    while search.goes_on:
        answers = await one_step(engine, search.round())
        first = first or answers[0]
        search.advance([answer.logprobs[0] for answer in answers if answer.logprobs])
    assert first is not None
    for delta in search.deltas():
        if delta.index == 0:
            delta.prompt_logprobs, delta.cached_tokens = first.prompt_logprobs, first.cached_tokens
        yield delta


async def one_step(engine: Engine, request: GenerateRequest) -> list[Delta]:
    """The delta of each of the request's sequences, in order, when each has but one.

    Raises: EngineFailed when one is missing.
    """
    found: dict[int, Delta] = {}
    async with aclosing(cast("AsyncGenerator[Delta, None]", engine.generate(request))) as deltas:
        async for delta in deltas:
            found[delta.index] = delta
    if len(found) < request.n:
        raise EngineFailed("The engine ended this request before its answer was complete. Try again.")
    return [found[index] for index in range(request.n)]


class _Search:
    """The beams between two rounds; knows no engine."""

    def __init__(
        self,
        request: GenerateRequest,
        params: BeamParams,
        end_token_ids: Collection[int],
        is_stopped: Callable[[list[int]], bool],
    ) -> None:
        self.goes_on = True
        self._request = request
        self._params = params
        self._end_token_ids = frozenset(end_token_ids)
        self._is_stopped = is_stopped
        # So many that enough can go on even if all end tokens are among them.
        self._num_candidates = max(2, 1 + len(self._end_token_ids)) * params.width
        self._live = [_Beam()]
        self._finished: list[tuple[float, _Beam]] = []
        """With their scores, best first."""

    def round(self) -> GenerateRequest:
        """Ask for the likeliest next tokens of all live beams."""
        asked = self._request.sampling
        is_first = not self._live[0].tokens
        sampling = msgspec.structs.replace(
            asked,
            temperature=0.0,
            is_beam=True,
            logprobs=max(self._num_candidates, asked.logprobs or 0),
            prompt_logprobs=asked.prompt_logprobs if is_first else None,
        )
        outputs = [] if is_first else [beam.tokens for beam in self._live]
        return msgspec.structs.replace(self._request, sampling=sampling, n=len(self._live), outputs=outputs)

    def advance(self, entries: list[TokenLogprob]) -> None:
        """Take the round's answer, one entry per live beam."""
        candidates = self._candidates(entries)
        ended = [self._has_ended(beam) for beam in candidates]
        # Those after the first `width` only stand in for beams that end here.
        for beam, has_ended in zip(candidates[: self._params.width], ended, strict=False):
            if has_ended:
                self._finish(beam)
        live = [beam for beam, has_ended in zip(candidates, ended, strict=True) if not has_ended]
        self._live = live[: self._params.width]
        self.goes_on = bool(self._live) and self._may_improve()

    def deltas(self) -> list[Delta]:
        """The best answers; where there are fewer than asked for, the others are empty."""
        beams = [beam for _, beam in self._finished]
        beams += [_Beam()] * (self._request.n - len(beams))
        num_top = self._request.sampling.logprobs
        return [
            Delta(
                self._request.request_id,
                index,
                beam.tokens,
                "stop" if beam.tokens and beam.tokens[-1] in self._end_token_ids else "length",
                None if num_top is None else [msgspec.structs.replace(e, top=e.top[:num_top]) for e in beam.entries],
            )
            for index, beam in enumerate(beams[: self._request.n])
        ]

    def _candidates(self, entries: list[TokenLogprob]) -> list[_Beam]:
        """The likeliest continuations of all beams together, likeliest first."""
        found = [
            (beam.logprob + logprob, beam, token, logprob, entry.top)
            for beam, entry in zip(self._live, entries, strict=True)
            for token, logprob in entry.top
            if logprob > -math.inf
        ]
        found.sort(key=lambda candidate: candidate[0], reverse=True)
        return [
            beam.followed_by(token, logprob, TokenLogprob(token, logprob, top))
            for _, beam, token, logprob, top in found[: self._num_candidates]
        ]

    def _has_ended(self, beam: _Beam) -> bool:
        sampling = self._request.sampling
        num_tokens = len(beam.tokens)
        return (
            beam.tokens[-1] in self._end_token_ids or num_tokens >= sampling.max_tokens or self._is_stopped(beam.tokens)
        )

    def _finish(self, beam: _Beam) -> None:
        self._finished.append((self._score(beam, len(beam.tokens)), beam))
        self._finished.sort(key=lambda scored: scored[0], reverse=True)
        del self._finished[self._params.width :]

    def _score(self, beam: _Beam, length: int) -> float:
        return beam.logprob / math.pow(length, self._params.length_penalty)

    def _may_improve(self) -> bool:
        """Whether a live beam could still be among the finished ones."""
        if len(self._finished) < self._params.width:
            return True
        stopping = self._params.early_stopping
        if stopping is True:
            return False
        is_patient = stopping == "never" and self._params.length_penalty > 0
        best = self._live[0]
        length = self._request.sampling.max_tokens if is_patient else len(best.tokens)
        return self._score(best, length) > self._finished[-1][0]
