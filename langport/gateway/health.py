"""Whether a deployment should be asked: a circuit breaker, fed by requests and by checks.

Too many failures in a row, or too large a share of the latest ones, open it for a cooldown that doubles with every
trial that fails. A deployment that says itself when to come back (429) is left alone until then, and that is no
failure. Pattern: Nygard, Release It!, "Circuit Breaker".
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum

from langport.gateway.clock import Clock
from langport.settings.tree import HealthSettings

WINDOW = 20
"""Latest requests whose share of failures counts; half of them must be there before it does."""
MAX_HOLD_S = 3600.0
"""A deployment that asks for more patience than this is asked again after it."""


class State(Enum):
    """Moved by `Health.begin`, `failed`, `passed` and the clock."""

    HEALTHY = "healthy"
    """Takes requests."""
    COOLING = "cooling"
    """Failed too often, and is left alone until its cooldown is over."""
    HALF_OPEN = "half-open"
    """The cooldown is over: one request at a time may try."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """Given to a request that begins."""

    epoch: int
    """How often the deployment had cooled down by then: what began before a cooldown says nothing about after it."""
    is_trial: bool


class Health:
    """What is known of one deployment."""

    def __init__(self, settings: HealthSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._cools_until: float | None = None
        self._held_until = 0.0
        self._epoch = 0
        self._num_doublings = 0
        self._num_in_a_row = 0
        self._latest: deque[bool] = deque(maxlen=WINDOW)
        """Which of the latest requests failed."""
        self._has_trial = False

    @property
    def state(self) -> State:
        """Without regard to what the deployment asked for itself."""
        if self._cools_until is None:
            return State.HEALTHY
        return State.COOLING if self._clock.now() < self._cools_until else State.HALF_OPEN

    @property
    def is_held(self) -> bool:
        """Whether it has asked to be left alone until later."""
        return self._clock.now() < self._held_until

    @property
    def is_open(self) -> bool:
        """Whether a request may be sent."""
        if self._cools_until is None:
            return not self.is_held
        return self.state is State.HALF_OPEN and not self._has_trial and not self.is_held

    @property
    def wait_s(self) -> float:
        """Seconds until a request may be sent, as far as is known."""
        return max(0.0, self._held_until - self._clock.now(), (self._cools_until or 0.0) - self._clock.now())

    def begin(self) -> Ticket:
        """A request is sent. One of `passed`, `failed`, `held` and `given_up` must follow."""
        is_trial = self.state is State.HALF_OPEN and not self._has_trial
        self._has_trial |= is_trial
        return Ticket(self._epoch, is_trial)

    def passed(self, ticket: Ticket) -> None:
        """It was answered, be it with an error that is the client's own."""
        if self._settle(ticket):
            self._num_in_a_row = 0
            self._latest.append(False)
            if self._cools_until is not None:
                self._recover()

    def failed(self, ticket: Ticket, retry_after_s: float | None = None) -> None:
        """It was not. `retry_after_s`: when the deployment says that it is better, if it says so."""
        state = self.state
        if not self._settle(ticket):
            return
        self._num_in_a_row += 1
        self._latest.append(True)
        if retry_after_s is not None or state is State.HALF_OPEN or (state is State.HEALTHY and self._is_too_much()):
            self._cool(retry_after_s or 0.0)

    def held(self, ticket: Ticket, retry_after_s: float | None) -> None:
        """It asked for less work, until so many seconds from now; for one cooldown where it did not say."""
        self._settle(ticket)
        wait_s = self._settings.cooldown_s if retry_after_s is None else min(retry_after_s, MAX_HOLD_S)
        self._held_until = max(self._held_until, self._clock.now() + wait_s)

    def given_up(self, ticket: Ticket) -> None:
        """Nobody waited for what it would have answered."""
        self._settle(ticket)

    def checked(self, *, lives: bool) -> None:
        """A look at it has shown that it lives, so that a request may try it, or that it does not."""
        if not lives:
            self.failed(Ticket(self._epoch, is_trial=False))
        elif self._cools_until is not None:
            self._cools_until = min(self._cools_until, self._clock.now())

    def _settle(self, ticket: Ticket) -> bool:
        """Whether the request says anything about the deployment as it is now."""
        if ticket.epoch != self._epoch:
            return False
        self._has_trial &= not ticket.is_trial
        return True

    def _is_too_much(self) -> bool:
        if self._num_in_a_row >= self._settings.max_failures:
            return True
        return len(self._latest) * 2 >= WINDOW and (
            sum(self._latest) >= self._settings.failure_rate * len(self._latest)
        )

    def _cool(self, at_least_s: float) -> None:
        grown_s = self._settings.cooldown_s * 2.0 ** min(self._num_doublings, 64)
        wait_s = min(max(grown_s, at_least_s), self._settings.max_cooldown_s)
        self._num_doublings += 1
        self._forget()
        self._cools_until = self._clock.now() + wait_s

    def _recover(self) -> None:
        self._num_doublings = 0
        self._forget()
        self._cools_until = None

    def _forget(self) -> None:
        self._epoch += 1
        self._has_trial = False
        self._num_in_a_row = 0
        self._latest.clear()
