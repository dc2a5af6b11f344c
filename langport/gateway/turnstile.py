"""Who may go on, decided in one place: by the places of an upstream and by the limits of keys and models.

A request enters, waits where it must, and is settled or undone. `LocalTurnstile` decides in this process; the processes
of `--workers` ask the one that their supervisor has (`workers.turnstile`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from langport.errors import Unavailable
from langport.gateway.clock import Clock, sleep
from langport.gateway.limits import Claim, LimitStore, LocalLimits, Refusal
from langport.gateway.queue import Lane, Places, Waiter
from langport.settings.tree import OverloadSettings

MIN_RETRY_S = 0.05
"""Between two tries of work in the background."""


@dataclass(slots=True)
class Entry:
    """What one request needs to go on, and what it got."""

    claim: Claim
    waiter: Waiter
    places: Places | None
    """Of its upstream; None where it takes none."""
    max_wait_s: float
    ticket: int = 0
    """The turnstile's own."""
    lane: Lane | None = None
    """The turnstile's own."""


class Turnstile(Protocol):
    """Where requests enter."""

    @property
    def lanes(self) -> Sequence[Lane]:
        """Those of this process that have been asked for."""
        ...

    async def enter(self, entry: Entry) -> bool:
        """Whether it runs now. If not, `claim.refusal` says why it may not, or `waiter.start` will tell.

        `claim.standings` are set in any case. Work in the background is not refused for its limits: it comes back when
        they allow it. Raises: Overloaded, Unavailable; nothing is claimed then, nor after a cancelled call.
        """
        ...

    async def look(self, claim: Claim) -> None:
        """Set `claim.standings` and count nothing. Raises: LimitsUnavailable."""
        ...

    def undo(self, entry: Entry) -> None:
        """It does not wait any longer, or is not served after all. Raises nothing."""
        ...

    def settle(self, entry: Entry, num_tokens: int) -> None:
        """It has ended, and took so many tokens. Raises nothing."""
        ...

    def update(self, settings: OverloadSettings) -> None:
        """Decide by these from now on."""
        ...

    def drain(self) -> None:
        """Refuse what waits; what runs goes on."""
        ...

    async def close(self) -> None:
        """Settle what is left."""
        ...


class LocalTurnstile:
    """Decides in this process; see `Turnstile`."""

    def __init__(self, settings: OverloadSettings, store: LimitStore | None, clock: Clock) -> None:
        """Without a `store` the limits are counted here."""
        self._max_queued_tokens = settings.max_queued_tokens
        self._clock = clock
        self._local = LocalLimits(clock) if store is None else None
        self._store = store or self._local or LocalLimits(clock)
        self._lanes: dict[str, Lane] = {}
        self._is_draining = False

    @property
    def lanes(self) -> Sequence[Lane]:
        return tuple(self._lanes.values())

    async def enter(self, entry: Entry) -> bool:
        if self.may_answer_at_once(entry):
            return self.enter_now(entry)
        claim = entry.claim
        try:
            self._check(entry)
        except Unavailable:
            await self._store.look(claim)
            raise
        if not claim.shares:
            return self._start(entry)
        if refusal := _never(claim):
            await self._store.look(claim)
            claim.refusal = refusal
            return False
        await self._store.take(claim)
        while entry.waiter.is_background and claim.refusal is not None:
            await sleep(self._clock, max(MIN_RETRY_S, claim.refusal.retry_after_s or 0.0))
            await self._store.take(claim)
        return claim.refusal is None and self._start(entry)

    def may_answer_at_once(self, entry: Entry) -> bool:
        """Whether nothing has to be waited for to know, so that `enter_now` will do."""
        return self._local is not None and not (entry.waiter.is_background and entry.claim.shares)

    def enter_now(self, entry: Entry) -> bool:
        """As `enter` does."""
        claim, local = entry.claim, self._local
        assert local is not None
        try:
            self._check(entry)
        except Unavailable:
            local.show(claim)
            raise
        if claim.shares:
            if refusal := _never(claim):
                local.show(claim)
                claim.refusal = refusal
            else:
                local.count(claim)
            if claim.refusal is not None:
                return False
        return self._start(entry)

    async def look(self, claim: Claim) -> None:
        await self._store.look(claim)

    def undo(self, entry: Entry) -> None:
        if entry.lane is not None:
            entry.lane.leave(entry.waiter)
        self._store.undo(entry.claim)

    def settle(self, entry: Entry, num_tokens: int) -> None:
        self._store.settle(entry.claim, num_tokens)
        if entry.lane is not None:
            entry.lane.leave(entry.waiter)

    def update(self, settings: OverloadSettings) -> None:
        self._max_queued_tokens = settings.max_queued_tokens
        for lane in self._lanes.values():
            lane.max_queued_tokens = settings.max_queued_tokens

    def drain(self) -> None:
        self._is_draining = True
        for lane in self._lanes.values():
            lane.drain()

    async def close(self) -> None:
        await self._store.close()

    def _check(self, entry: Entry) -> None:
        """Raises: Overloaded, Unavailable."""
        if entry.places is not None:
            entry.lane = self._lane(entry.places)
            entry.lane.check(entry.waiter, entry.max_wait_s)

    def _start(self, entry: Entry) -> bool:
        """Raises: Unavailable; then nothing is claimed any more."""
        if entry.lane is None:
            return True
        try:
            return entry.lane.enter(entry.waiter, entry.max_wait_s)
        except Unavailable:
            self._store.undo(entry.claim)
            raise

    def _lane(self, places: Places) -> Lane:
        lane = self._lanes.get(places.name)
        if lane is None:
            lane = self._lanes[places.name] = Lane(places, self._max_queued_tokens, self._clock)
            if self._is_draining:
                lane.drain()
        elif lane.num_places != places.num_places:
            lane.resize(places.num_places)
        return lane


def _never(claim: Claim) -> Refusal | None:
    """The limit that is smaller than what is claimed of it."""
    for limit, amount in claim.shares:
        if amount > limit.most:
            return Refusal(limit, None)
    return None
