"""Limits of requests, tokens and concurrency, counted exactly: in no minute is more admitted than the limit.

A request claims its share of all its limits at once, all or nothing. Tokens are claimed as estimated and settled when
the answer ends: what was not used counts no longer, what was used beyond the estimate counts from then on. Where the
counts are kept is behind `LimitStore`: `LocalLimits` here, in one process; `gateway.shared_limits`, in Redis. What a
request is, and what follows from a refusal, is `gateway.admission`'s business.

A window slides: what was admitted counts for 60 seconds. The counts of a quarter of a second are kept as one, until
the newest of them is 60 seconds old, so a window takes 240 numbers at most and never admits too much.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import msgspec

from langport.gateway.clock import Clock

WINDOW_S = 60.0
GRAIN_S = 0.25
"""What is admitted within so many seconds is counted together."""

Kind = Literal["requests", "tokens", "concurrency"]
"""Requests and tokens are per minute; concurrency is what runs at once."""


class ModelLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What all clients together may use of one model; None is as much as there is."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None


UNLIMITED = ModelLimits()


class Limit(NamedTuple):
    """One number that is not to be exceeded."""

    name: str
    """Says whose it is and of what kind, so that a limit that is changed goes on with its counts."""
    kind: Kind
    most: int

    @classmethod
    def of(cls, who: str, kind: Kind, most: int) -> Limit:
        """`who`: `key ID` or `model NAME`."""
        return cls(f"{kind} of {who}", kind, most)

    @property
    def who(self) -> str:
        return self.name.partition(" of ")[2]


class Share(NamedTuple):
    """What one request takes of a limit."""

    limit: Limit
    amount: int


class Standing(msgspec.Struct, frozen=True, gc=False):
    """How a limit stands after a claim."""

    limit: Limit
    remaining: int
    """Never below 0."""
    reset_s: float
    """When all of it will be there again, if nothing more is taken; 0 for concurrency."""


class Refusal(NamedTuple):
    """Why a claim was not met; nothing has been counted."""

    limit: Limit
    retry_after_s: float | None
    """When it could be met, if nothing else is taken until then; None where only the end of others' work can tell."""


@dataclass(slots=True)
class Claim:
    """What one request takes of all its limits, and what it got."""

    shares: Sequence[Share]
    standings: Sequence[Standing] = ()
    refusal: Refusal | None = None
    places: list[Any] = field(default_factory=list)
    """The store's own, one per share: where it was counted."""


class LimitStore(Protocol):
    """Where the counts are."""

    async def take(self, claim: Claim) -> None:
        """Count all shares, or none and say why in `claim.refusal`; `standings` are set either way.

        Raises: LimitsUnavailable when the store does not answer and the settings want that refused.
        """
        ...

    async def look(self, claim: Claim) -> None:
        """Set `claim.standings` and count nothing. Raises: as `take` does."""
        ...

    def settle(self, claim: Claim, num_tokens: int) -> None:
        """The request has ended and took so many tokens. Raises nothing."""
        ...

    def undo(self, claim: Claim) -> None:
        """The request is not served after all: as if it had claimed nothing. Raises nothing."""
        ...

    async def close(self) -> None:
        """Settle what is still to be settled."""
        ...


@dataclass(slots=True)
class _Entry:
    """What was admitted within one grain."""

    window: SlidingWindow
    since: float
    newest: float
    amount: int
    is_counted: bool = True

    def take_back(self, amount: int) -> None:
        """Count so much less of it; harmless when it is forgotten."""
        if self.is_counted:
            self.amount -= amount
            self.window.total -= amount


class SlidingWindow:
    """What was admitted within the last minute."""

    __slots__ = ("_entries", "expires_s", "total")

    def __init__(self) -> None:
        self._entries: deque[_Entry] = deque()
        """The oldest first."""
        self.total = 0
        self.expires_s = 0.0
        """Before then there is nothing to `expire`."""

    def expire(self, now: float) -> None:
        """Forget what is a minute old."""
        entries = self._entries
        while entries and entries[0].newest + WINDOW_S <= now:
            entry = entries.popleft()
            entry.is_counted = False
            self.total -= entry.amount
        self.expires_s = entries[0].since + WINDOW_S if entries else math.inf

    def add(self, amount: int, now: float) -> _Entry:
        """Count it from now on."""
        self.total += amount
        entries = self._entries
        if entries:
            entry = entries[-1]
            if now - entry.since < GRAIN_S:
                entry.newest = now
                entry.amount += amount
                return entry
        entry = _Entry(self, now, now, amount)
        entries.append(entry)
        self.expires_s = entries[0].since + WINDOW_S
        return entry

    def room_in(self, amount: int, most: int, now: float) -> float:
        """Seconds until `amount` more would be within `most`, which must not be smaller."""
        excess = self.total + amount - most
        for entry in self._entries:
            if excess <= 0:
                break
            excess -= entry.amount
            if excess <= 0:
                return entry.newest + WINDOW_S - now
        return 0.0

    def reset_in(self, now: float) -> float:
        """Seconds until nothing counts any more."""
        return self._entries[-1].newest + WINDOW_S - now if self.total > 0 else 0.0


class Running:
    """What is being answered, with the methods of a window that never moves."""

    __slots__ = ("total",)
    expires_s = math.inf

    def __init__(self) -> None:
        self.total = 0

    def expire(self, now: float) -> None:
        """Nothing: only its end ends a request."""

    def add(self, amount: int, now: float) -> Running:
        """So many more."""
        self.total += amount
        return self

    def take_back(self, amount: int) -> None:
        """So many fewer."""
        self.total -= amount

    def room_in(self, amount: int, most: int, now: float) -> None:
        """Nobody knows."""

    def reset_in(self, now: float) -> float:
        """Not by waiting."""
        return 0.0


class LocalLimits:
    """The counts of this process; implements `LimitStore`."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._counts: dict[str, SlidingWindow | Running] = {}
        """By the names of limits."""
        self._swept = clock.now()

    async def take(self, claim: Claim) -> None:
        """See `LimitStore`."""
        self.count(claim)

    def count(self, claim: Claim) -> None:
        """The same, at once."""
        now = self._clock.now()
        counts: list[SlidingWindow | Running] = []
        refusal: Refusal | None = None
        for limit, amount in claim.shares:
            count = self._counts.get(limit.name) or self._new(limit)
            counts.append(count)
            if count.expires_s <= now:
                count.expire(now)
            if count.total + amount > limit.most:
                refusal = _longer(refusal, Refusal(limit, count.room_in(amount, limit.most, now)))
        claim.refusal = refusal
        if refusal is None:
            claim.places = [count.add(share.amount, now) for share, count in zip(claim.shares, counts, strict=True)]
        claim.standings = _standings(claim, counts, now)
        if now - self._swept >= WINDOW_S:
            self._sweep(now)

    async def look(self, claim: Claim) -> None:
        """See `LimitStore`."""
        self.show(claim)

    def show(self, claim: Claim) -> None:
        """The same, at once."""
        now = self._clock.now()
        counts = [self._counts.get(limit.name) or self._new(limit) for limit, _ in claim.shares]
        for count in counts:
            count.expire(now)
        claim.standings = _standings(claim, counts, now)

    def settle(self, claim: Claim, num_tokens: int) -> None:
        """See `LimitStore`."""
        for (limit, amount), place in zip(claim.shares, claim.places, strict=False):
            if limit.kind == "concurrency":
                place.take_back(amount)
            elif limit.kind == "tokens" and num_tokens > amount:
                # Not by way of the window that it was taken from, which may be forgotten.
                count = self._counts.get(limit.name) or self._new(limit)
                count.expire(self._clock.now())
                count.add(num_tokens - amount, self._clock.now())
            elif limit.kind == "tokens":
                place.take_back(amount - num_tokens)
        claim.places.clear()

    def undo(self, claim: Claim) -> None:
        """See `LimitStore`."""
        for (_, amount), place in zip(claim.shares, claim.places, strict=False):
            place.take_back(amount)
        claim.places.clear()

    async def close(self) -> None:
        """See `LimitStore`."""

    def total(self, limit: Limit) -> int:
        """What counts against a limit now."""
        count = self._counts.get(limit.name)
        if count is None:
            return 0
        count.expire(self._clock.now())
        return count.total

    def _new(self, limit: Limit) -> SlidingWindow | Running:
        count = self._counts[limit.name] = Running() if limit.kind == "concurrency" else SlidingWindow()
        return count

    def _sweep(self, now: float) -> None:
        """Forget where nothing counts, of keys that may never come again."""
        self._swept = now
        for name, count in list(self._counts.items()):
            count.expire(now)
            if not count.total:
                del self._counts[name]


def _standings(claim: Claim, counts: Sequence[SlidingWindow | Running], now: float) -> list[Standing]:
    standings: list[Standing] = []
    for (limit, _), count in zip(claim.shares, counts, strict=True):
        remaining = limit.most - count.total
        standings.append(Standing(limit, remaining if remaining > 0 else 0, count.reset_in(now)))
    return standings


def _longer(one: Refusal | None, other: Refusal) -> Refusal:
    """The one of the limit that takes longer to allow it; one that nobody knows the end of goes before all."""
    if one is None or other.retry_after_s is None:
        return other
    if one.retry_after_s is None:
        return one
    return other if other.retry_after_s > one.retry_after_s else one
