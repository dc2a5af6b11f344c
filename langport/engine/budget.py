"""How many tokens a step may have, found out from the steps that run anyway.

A step cannot be interrupted, so its length is what a stream stalls while the prompts of others are computed. A
constant number of tokens would be a tenth of a second of one model and ten seconds of another.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

STEP_S = 0.25
"""How long a step should take, in seconds."""
SMALLEST = 32
"""Prompt tokens in a step, at least: fewer would hardly be faster, since the weights are read once per step."""
GRAIN = 16
"""Budgets are multiples of it: whole blocks, and whole tiles of the kernels."""
NEWEST_SHARE = 0.5
"""Weight of the newest step against all before it."""


class StepBudget:
    """A number of tokens between `smallest` and `largest`: as many as are computed in `STEP_S` seconds.

    `smallest` is in force before anything is measured. A budget whose bounds are equal is fixed.
    """

    def __init__(self, largest: int, *, smallest: int = SMALLEST, clock: Callable[[], float] = time.monotonic) -> None:
        self.largest = largest
        self.smallest = min(smallest, largest)
        self._clock = clock
        self._current = self.smallest
        self._speed = 0.0
        """Tokens per second; 0: not measured yet."""

    @classmethod
    def fixed(cls, num_tokens: int) -> StepBudget:
        return cls(num_tokens, smallest=num_tokens)

    def tokens(self, num_decoding: int) -> int:
        """Of the next step, `num_decoding` sequences' single tokens included. Prompts always get some beside them."""
        wanted = int(self._speed * STEP_S) // GRAIN * GRAIN
        self._current = min(self.largest, max(wanted, self.smallest + num_decoding))
        return self._current

    def seconds(self, num_tokens: int) -> float:
        """How long a prompt of `num_tokens` takes to compute; 0 before anything is measured."""
        return num_tokens / self._speed if self._speed else 0.0

    @contextmanager
    def measure(self, num_tokens: int) -> Iterator[None]:
        """Learn from the step inside, unless it fills less than half of its budget.

        Such a step would make the engine look slow: every step costs a fixed part, however few its tokens are.
        """
        begin = self._clock()
        yield
        seconds = self._clock() - begin
        if 2 * num_tokens < self._current or seconds <= 0:
            return
        speed = num_tokens / seconds
        self._speed = NEWEST_SHARE * speed + (1 - NEWEST_SHARE) * self._speed if self._speed else speed
