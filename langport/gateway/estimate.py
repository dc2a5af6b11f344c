"""What a request will take in tokens, guessed before it is begun from its size and the few fields in its envelope.

The prompt: a token for every four bytes of the body, without base64 (about right for English; too few for other
scripts and too many for lists of token ids). The completion: what the request allows, times its choices; where it does
not say, the mean of the model's answers so far. The truth is settled when the answer has ended.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from langport.gateway.envelope import Envelope
from langport.gateway.usage import estimate_prompt

UNMETERED_PATHS = frozenset(
    ("/v1/responses/input_tokens", "/v1/messages/count_tokens", "/tokenize", "/detokenize"),
)
"""What a model's upstream answers without the model: it takes no tokens."""
PROMPT_PATHS = frozenset(("/v1/embeddings", "/v1/decisions", "/v1/rerank", "/v1/score", "/v1/classify"))
"""What is answered without generating anything."""
MIN_TOKENS = 64
"""What a request costs in the queue at least: the shortest one takes its step, its memory and its answer too."""
FIRST_MEAN = 256.0
"""The completion of a model of which nothing is known yet."""
NEWEST_SHARE = 0.05
"""Weight of the newest answer against all before it."""
MAX_COUNT = 1 << 31
"""Larger numbers than this in a request are nonsense, which the upstream refuses."""


class MeanAnswer:
    """A model's answers so far, the latest ones counting most."""

    __slots__ = ("num_tokens", "seconds")

    def __init__(self) -> None:
        self.num_tokens = FIRST_MEAN
        """Completion tokens of a choice."""
        self.seconds = 0.0
        """From a request's turn to its end."""

    def count(self, num_tokens: float, seconds: float) -> None:
        """One more."""
        self.num_tokens += NEWEST_SHARE * (num_tokens - self.num_tokens)
        self.seconds += NEWEST_SHARE * (seconds - self.seconds) if self.seconds else seconds


class Estimate(NamedTuple):
    """Tokens of prompt and completion together."""

    most: int
    """What is claimed of limits per minute: up to the request's own maximum of completion tokens."""
    likely: int
    """What is counted in the queue: with the model's mean completion, where that is less."""
    num_sequences: int
    """Choices that are drawn at once."""
    prompt: int
    """By the size of the prompt alone."""

    @classmethod
    def of(cls, path: str, envelope: Envelope, body: bytes, mean_completion: float) -> Estimate:
        """`path`: of the route; `mean_completion`: tokens that one of the model's choices takes."""
        if path in UNMETERED_PATHS:
            return cls(0, 0, 1, 0)
        prompt = estimate_prompt(body)
        if path in PROMPT_PATHS:
            return cls(prompt + 1, prompt + 1, 1, prompt)
        num_sequences = 1
        if envelope.n is not None or envelope.best_of is not None:
            num_sequences = max(_count(envelope.n) or 1, _count(envelope.best_of) or 1)
        mean = most = round(mean_completion)
        for limit in (envelope.max_completion_tokens, envelope.max_output_tokens, envelope.max_tokens):
            count = _count(limit)
            if count is not None:
                most = count
                break
        likely = prompt + 1 + num_sequences * min(most, mean)
        return cls(prompt + 1 + num_sequences * most, likely, num_sequences, prompt)


def _count(value: Any) -> int | None:
    """A sensible number; anything else is for the upstream to refuse, or to take for nothing said."""
    return value if type(value) is int and 0 <= value <= MAX_COUNT else None
