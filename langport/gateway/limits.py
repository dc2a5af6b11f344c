"""Limits of requests, tokens and concurrency, counted exactly: in no minute is more admitted than the limit.

A request claims its share of all its limits at once, all or nothing. Tokens are claimed as estimated and settled when
the answer ends: what was not used counts no longer, what was used beyond the estimate counts from then on. Where the
counts are kept is behind `LimitStore`: `LocalLimits` here, in one process; `gateway.shared_limits`, in Redis. What a
request is, and what follows from a refusal, is `gateway.admission`'s business.

A window slides: what was admitted counts for 60 seconds. The counts of a quarter of a second are kept as one, until
the newest of them is 60 seconds old, so a window takes 240 numbers at most and never admits too much.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

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

    who: str
    """`key ID` or `model NAME`."""
    kind: Kind
    most: int


class Share(NamedTuple):
    """What one request takes of a limit."""

    limit: Limit
    amount: int


class Standing(NamedTuple):
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
    places: list[object] = field(default_factory=list)
    """The store's own, one per share: where it was counted."""


class LimitStore(Protocol):
    """Where the counts are."""

    async def take(self, claim: Claim) -> None:
        """Count all shares, or none and say why in `claim.refusal`; `standings` are set either way.

        Raises: LimitsUnavailable when the store does not answer and the settings want that refused.
        """
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

    since: float
    newest: float
    amount: int
    is_counted: bool = True


class SlidingWindow:
    """What was admitted within the last minute."""

    __slots__ = ("_entries", "total")

    def __init__(self) -> None:
        self._entries: deque[_Entry] = deque()
        """The oldest first."""
        self.total = 0

    def expire(self, now: float) -> None:
        """Forget what is a minute old."""
        entries = self._entries
        while entries and entries[0].newest + WINDOW_S <= now:
            entry = entries.popleft()
            entry.is_counted = False
            self.total -= entry.amount

    def add(self, amount: int, now: float) -> _Entry:
        """Count it from now on."""
        self.total += amount
        entries = self._entries
        if entries and now - entries[-1].since < GRAIN_S:
            entry = entries[-1]
            entry.newest = now
            entry.amount += amount
            return entry
        entry = _Entry(now, now, amount)
        entries.append(entry)
        return entry

    def take_back(self, entry: _Entry, amount: int) -> None:
        """Count so much less of what was added; harmless when it is forgotten."""
        if entry.is_counted:
            entry.amount -= amount
            self.total -= amount

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
        return self._entries[-1].newest + WINDOW_S - now if self._entries and self.total > 0 else 0.0


class LocalLimits:
    """The counts of this process; implements `LimitStore`."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._windows: dict[tuple[str, Kind], SlidingWindow] = {}
        self._running: Counter[str] = Counter()
        """Requests that are being answered, by whose limit it is."""
        self._swept = clock.now()

    async def take(self, claim: Claim) -> None:
        """See `LimitStore`."""
        now = self._clock.now()
        claim.refusal = self._refusal(claim, now)
        if claim.refusal is None:
            claim.places = [self._count(share, now) for share in claim.shares]
        claim.standings = [self._standing(share.limit, now) for share in claim.shares]
        if now - self._swept >= WINDOW_S:
            self._sweep(now)

    def settle(self, claim: Claim, num_tokens: int) -> None:
        """See `LimitStore`."""
        now = self._clock.now()
        for (limit, amount), entry in zip(claim.shares, claim.places, strict=False):
            if limit.kind == "concurrency":
                self._release(limit.who, amount)
            elif limit.kind == "tokens":
                window = self._window(limit)
                window.expire(now)
                if num_tokens < amount:
                    assert isinstance(entry, _Entry)
                    window.take_back(entry, amount - num_tokens)
                elif num_tokens > amount:
                    window.add(num_tokens - amount, now)
        claim.places.clear()

    def undo(self, claim: Claim) -> None:
        """See `LimitStore`."""
        for (limit, amount), entry in zip(claim.shares, claim.places, strict=False):
            if limit.kind == "concurrency":
                self._release(limit.who, amount)
            else:
                assert isinstance(entry, _Entry)
                self._window(limit).take_back(entry, amount)
        claim.places.clear()

    async def close(self) -> None:
        """See `LimitStore`."""

    def num_running(self, who: str) -> int:
        """Requests that count against the concurrency of `who`."""
        return self._running[who]

    def _window(self, limit: Limit) -> SlidingWindow:
        window = self._windows.get((limit.who, limit.kind))
        if window is None:
            window = self._windows[limit.who, limit.kind] = SlidingWindow()
        return window

    def _refusal(self, claim: Claim, now: float) -> Refusal | None:
        """Of the limits that do not allow it the one that takes longest to do so."""
        longest: Refusal | None = None
        for limit, amount in claim.shares:
            if limit.kind == "concurrency":
                if self._running[limit.who] + amount > limit.most:
                    return Refusal(limit, None)
                continue
            window = self._window(limit)
            window.expire(now)
            if window.total + amount > limit.most:
                retry_after_s = window.room_in(amount, limit.most, now)
                if longest is None or longest.retry_after_s is None or retry_after_s > longest.retry_after_s:
                    longest = Refusal(limit, retry_after_s)
        return longest

    def _count(self, share: Share, now: float) -> object:
        if share.limit.kind == "concurrency":
            self._running[share.limit.who] += share.amount
            return None
        return self._window(share.limit).add(share.amount, now)

    def _release(self, who: str, amount: int) -> None:
        self._running[who] -= amount
        if not self._running[who]:
            del self._running[who]

    def _standing(self, limit: Limit, now: float) -> Standing:
        if limit.kind == "concurrency":
            return Standing(limit, max(0, limit.most - self._running[limit.who]), 0.0)
        window = self._window(limit)
        return Standing(limit, max(0, limit.most - window.total), window.reset_in(now))

    def _sweep(self, now: float) -> None:
        """Forget windows in which nothing counts, of keys that may never come again."""
        self._swept = now
        for name, window in list(self._windows.items()):
            window.expire(now)
            if not window.total:
                del self._windows[name]
