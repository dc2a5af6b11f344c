"""What was measured: samples of requests, their summary, and the report that is kept as JSON."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import msgspec

Loop = Literal["closed", "open"]
"""closed: so many clients, each with one request after the other; open: so many arrivals a second, come what may."""


@dataclass
class Sample:
    """One request. Times are seconds of the same clock."""

    began_s: float
    ended_s: float = 0.0
    pieces_s: list[float] = field(default_factory=list)
    """When text came."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    num_inputs: int = 0
    """Texts that were embedded."""
    error: str | None = None
    """What kind of failure it was; a short answer is one and has its figures all the same."""
    message: str = ""


@dataclass
class Run:
    """All requests of one level of load."""

    loop: Loop
    level: float
    """Clients, or arrivals a second."""
    samples: list[Sample]
    elapsed_s: float
    """From the first request's beginning to the last one's end."""
    client_cpu_s: float
    """What measuring took."""


class Spread(msgspec.Struct, frozen=True):
    """Of a sample of times, in milliseconds. Percentiles lie between the two nearest values, in proportion."""

    num: int
    mean: float
    p50: float
    p95: float
    p99: float
    max: float


class Level(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of one level of load."""

    loop: Loop
    level: float
    """Clients, or arrivals a second."""
    num_requests: int
    num_answered: int
    """Those with a whole answer, short ones included."""
    elapsed_s: float
    output_tokens_per_s: float
    requests_per_s: float
    inputs_per_s: float
    """Embedded texts."""
    prompt_tokens: float
    """Mean, as the server counts them."""
    output_tokens: float
    """Mean."""
    cached_share: float
    """Of the prompts' tokens, those that the server found in its cache, by its own word."""
    first_token_ms: Spread | None
    """From sending to the first text."""
    inter_token_ms: Spread | None
    """From one piece of text to the next of the same answer."""
    per_token_ms: Spread | None
    """Each answer's mean time from token to token, after its first text."""
    tokens_per_piece: float
    """1 where a server sends every token at once; otherwise inter_token_ms is the time of several."""
    answer_ms: Spread | None
    """From sending to the end."""
    errors: dict[str, int]
    """How many, by kind."""
    messages: dict[str, str]
    """The first message of each kind."""
    client_cpu_share: float
    """Of one core, taken by the measuring itself."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What `--json` writes and `--compare` reads."""

    format: Literal[1] = 1
    date: str
    url: str
    model: str
    endpoint: str
    load: dict[str, str | int | float | bool]
    """The options that say what was asked."""
    levels: list[Level]


def percentile(ascending: Sequence[float], percent: float) -> float:
    """Between the two nearest of the values, in proportion (as numpy does by default). They must not be empty."""
    place = (len(ascending) - 1) * percent / 100
    below = math.floor(place)
    above = min(below + 1, len(ascending) - 1)
    return ascending[below] + (ascending[above] - ascending[below]) * (place - below)


def spread(seconds: Sequence[float]) -> Spread | None:
    """None of no values."""
    if not seconds:
        return None
    values = sorted(1e3 * value for value in seconds)
    mean = math.fsum(values) / len(values)
    p50, p95, p99 = (percentile(values, percent) for percent in (50, 95, 99))
    return Spread(len(values), mean, p50, p95, p99, values[-1])


def summary(run: Run) -> Level:
    """The figures of a run. Rates are those of whole answers, over all of its time."""
    answered = [sample for sample in run.samples if sample.output_tokens or sample.num_inputs]
    streamed = [sample for sample in answered if sample.pieces_s]
    num_tokens = sum(sample.output_tokens for sample in answered)
    num_prompt_tokens = sum(sample.prompt_tokens for sample in answered)
    num_pieces = sum(len(sample.pieces_s) for sample in streamed)
    gaps_s = [b - a for s in streamed for a, b in zip(s.pieces_s, s.pieces_s[1:], strict=False)]
    per_token_s = [
        (s.pieces_s[-1] - s.pieces_s[0]) / (s.output_tokens - 1)
        for s in streamed
        if len(s.pieces_s) > 1 and s.output_tokens > 1
    ]
    messages: dict[str, str] = {}
    for sample in run.samples:
        if sample.error is not None:
            messages.setdefault(sample.error, sample.message)
    elapsed_s = run.elapsed_s or math.inf
    return Level(
        loop=run.loop,
        level=run.level,
        num_requests=len(run.samples),
        num_answered=len(answered),
        elapsed_s=run.elapsed_s,
        output_tokens_per_s=num_tokens / elapsed_s,
        requests_per_s=len(answered) / elapsed_s,
        inputs_per_s=sum(sample.num_inputs for sample in answered) / elapsed_s,
        prompt_tokens=num_prompt_tokens / max(1, len(answered)),
        output_tokens=num_tokens / max(1, len(answered)),
        cached_share=sum(sample.cached_tokens for sample in answered) / max(1, num_prompt_tokens),
        first_token_ms=spread([sample.pieces_s[0] - sample.began_s for sample in streamed]),
        inter_token_ms=spread(gaps_s),
        per_token_ms=spread(per_token_s),
        tokens_per_piece=sum(sample.output_tokens for sample in streamed) / max(1, num_pieces),
        answer_ms=spread([sample.ended_s - sample.began_s for sample in answered]),
        errors=dict(Counter(sample.error for sample in run.samples if sample.error is not None)),
        messages=messages,
        client_cpu_share=run.client_cpu_s / elapsed_s,
    )
