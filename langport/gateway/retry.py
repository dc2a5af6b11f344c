"""When a request may be asked again: which failures allow it, how long to wait, and how many in all.

Sources: full jitter, Brooker, "Exponential Backoff And Jitter" (AWS, 2015); a budget of retries as a share of
requests, as in Finagle's RetryBudget.
"""

from __future__ import annotations

from random import Random

from langport.settings.tree import RetrySettings

RETRYABLE = frozenset((408, 429, 500, 502, 503, 504))
"""Answers that another try may better. Every other error is the client's own."""
RESERVE = 10.0
"""Failed retries that are always granted, so that a quiet server may retry at all."""


class Budget:
    """Lets failed retries be a share of all requests and no more, so that they cannot multiply an outage.

    A retry that succeeds is free: it is the request's own work, done elsewhere.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self._left = RESERVE if share > 0 else 0.0

    @property
    def is_left(self) -> bool:
        """Whether another retry may be made."""
        return self._left >= 1

    def earn(self) -> None:
        """A request has come."""
        self._left = min(self._left + self._share, RESERVE)

    def spend(self) -> None:
        """A retry has failed. Those that run at once may spend more than there is; it must be earned back."""
        self._left -= 1


def backoff_s(settings: RetrySettings, num_failures: int, random: Random) -> float:
    """How long to wait before a deployment that failed is asked again, after so many failures of the request."""
    most = min(settings.max_backoff_s, settings.backoff_s * 2.0 ** min(num_failures - 1, 64))
    return random.uniform(0.0, most)
