"""Places at an engine or a server, and the queue of those who wait for one.

The queue is measured in tokens, since requests differ a thousandfold. Keys take turns by the tokens that they had so
far (start-time fair queueing, Goyal et al. 1996, with the tags at the keys): a key that floods the queue waits behind
itself, and another one's single request passes it. Nobody waits longer than its deadline: a request that could not
start by then, by the speed at which the queue has been moving, is refused at once, and one that was hoped too much
for, at the deadline. Work in the background waits behind all others, without a deadline.

Whose the requests are, and what they ask, is not known here.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush

from langport.errors import ApiError, Overloaded, Unavailable
from langport.gateway.clock import Clock, Timer

MEMORY_S = 60.0
"""The speed of the queue is that of about so many seconds."""
NUM_COUNTED = 16
"""Requests that must have left the queue before its speed is believed."""
MAX_RETRY_AFTER_S = 60.0
"""openai's clients follow a Retry-After of at most a minute."""


@dataclass(frozen=True, slots=True)
class Places:
    """How much an upstream works on at once."""

    name: str
    """Upstreams with the same name share these."""
    num_places: int
    """Sequences, or calls of a server that does not say what it does with them."""


@dataclass(slots=True, eq=False)
class Waiter:
    """One request at a lane."""

    who: str
    """Whose fair share it takes."""
    num_tokens: int
    """What it will take, as estimated, 1 or more."""
    num_places: int = 1
    is_background: bool = False
    start: asyncio.Future[None] | None = field(default=None, repr=False)
    """Set while it waits: its turn, or why it is refused."""
    timer: Timer | None = field(default=None, repr=False)
    num_taken: int = 0
    """Places it has; 0 while it does not run."""


@dataclass(slots=True, eq=False)
class _Line:
    """The waiting requests of one key, first come first served."""

    waiters: OrderedDict[Waiter, None] = field(default_factory=OrderedDict)
    num_tokens: int = 0
    tag: float = 0.0
    """The virtual time at which its first one may start."""
    is_in_heap: bool = False


class FairQueue:
    """Who is next, of many keys' waiters."""

    def __init__(self) -> None:
        self._lines: dict[str, _Line] = {}
        self._heap: list[tuple[float, int, _Line]] = []
        """Lines by tag; those that are empty meanwhile are dropped when they come up."""
        self._num_pushed = 0
        self._virtual_time = 0.0
        """The tag of who was served last."""
        self.num_tokens = 0
        self.num_waiters = 0

    def push(self, waiter: Waiter) -> None:
        """Put it at the end of its key's line."""
        line = self._lines.get(waiter.who)
        if line is None:
            self._forget_idle_lines()
            line = self._lines[waiter.who] = _Line()
        if not line.waiters:
            line.tag = max(line.tag, self._virtual_time)
        line.waiters[waiter] = None
        line.num_tokens += waiter.num_tokens
        self.num_tokens += waiter.num_tokens
        self.num_waiters += 1
        self._enheap(line)

    def first(self) -> Waiter | None:
        """Whose turn it is."""
        while self._heap:
            tag, _, line = self._heap[0]
            if line.waiters and tag == line.tag:
                return next(iter(line.waiters))
            heappop(self._heap)
            line.is_in_heap = False
            if line.waiters:
                self._enheap(line)
        return None

    def discard(self, waiter: Waiter) -> None:
        """Take it out, whether or not it was its turn, at no cost to its key."""
        line = self._lines[waiter.who]
        del line.waiters[waiter]
        line.num_tokens -= waiter.num_tokens
        self.num_tokens -= waiter.num_tokens
        self.num_waiters -= 1
        if not self.num_waiters:
            self._lines.clear()
            self._heap.clear()
            self._virtual_time = 0.0

    def serve(self, waiter: Waiter) -> None:
        """Take out the first one, on its key's account."""
        line = self._lines[waiter.who]
        self._virtual_time = line.tag
        line.tag += waiter.num_tokens
        self.discard(waiter)

    def tokens_before(self, who: str) -> int:
        """Tokens of those who would start before a new waiter of that key."""
        line = self._lines.get(who, _EMPTY)
        tag = max(line.tag, self._virtual_time) + line.num_tokens
        others = (
            min(other.num_tokens, max(0, math.ceil(tag - other.tag)))
            for other in self._lines.values()
            if other is not line and other.waiters
        )
        return line.num_tokens + sum(others)

    def __iter__(self) -> Iterator[Waiter]:
        for line in self._lines.values():
            yield from line.waiters

    def _forget_idle_lines(self) -> None:
        """Those of keys that nothing waits for and that have no more than their share."""
        if len(self._lines) > 2 * self.num_waiters + 16:
            lines = self._lines.items()
            self._lines = {who: line for who, line in lines if line.waiters or line.tag > self._virtual_time}

    def _enheap(self, line: _Line) -> None:
        if not line.is_in_heap:
            line.is_in_heap = True
            self._num_pushed += 1
            heappush(self._heap, (line.tag, self._num_pushed, line))


_EMPTY = _Line()


class Speed:
    """Tokens that leave the queue per second of the time in which there is one."""

    def __init__(self) -> None:
        self._tokens = 0.0
        self._seconds = 0.0
        self._num_counted = 0
        self._seen: float | None = None
        """Until when the time is counted; None: nobody waits."""

    def tokens_per_s(self, now: float) -> float:
        """0 before enough has left the queue to tell."""
        self._advance(now)
        return self._tokens / self._seconds if self._num_counted >= NUM_COUNTED and self._seconds > 0 else 0.0

    def start(self, now: float) -> None:
        """Somebody waits."""
        if self._seen is None:
            self._seen = now

    def stop(self, now: float) -> None:
        """Nobody waits any more."""
        self._advance(now)
        self._seen = None

    def count(self, num_tokens: int, now: float) -> None:
        """They have left the queue for a place."""
        self._advance(now)
        self._tokens += num_tokens
        self._num_counted += 1

    def _advance(self, now: float) -> None:
        if self._seen is None:
            return
        seconds, self._seen = now - self._seen, now
        fading = math.exp(-seconds / MEMORY_S)
        self._tokens *= fading
        self._seconds = self._seconds * fading + seconds


class Lane:
    """The places of one upstream, or of several that share an engine."""

    def __init__(self, places: Places, max_queued_tokens: int, clock: Clock) -> None:
        self.name = places.name
        self.num_places = places.num_places
        self.num_taken = 0
        self.max_queued_tokens = max_queued_tokens
        self._clock = clock
        self._queue = FairQueue()
        self._background = FairQueue()
        self._speed = Speed()
        self._is_draining = False

    @property
    def num_waiting(self) -> int:
        """Requests."""
        return self._queue.num_waiters + self._background.num_waiters

    @property
    def num_waiting_tokens(self) -> int:
        """As estimated."""
        return self._queue.num_tokens + self._background.num_tokens

    def check(self, waiter: Waiter, max_wait_s: float) -> None:
        """Raises: Overloaded when it cannot start within that time or finds no room in the queue, Unavailable."""
        if self._can_start(waiter):
            return
        if self._is_draining:
            raise _stopping()
        if waiter.is_background:
            return
        queue = self._queue
        if max_wait_s <= 0:
            raise self._overloaded(queue.num_tokens, "and the request was not to wait")
        if queue.num_waiters and queue.num_tokens + waiter.num_tokens > self.max_queued_tokens:
            raise self._overloaded(queue.num_tokens, "and the queue is full")
        before = queue.tokens_before(waiter.who)
        speed = self._speed.tokens_per_s(self._clock.now())
        if speed and before > speed * max_wait_s:
            raise self._overloaded(before, f"and the request would wait longer than {max_wait_s:g} s")

    def enter(self, waiter: Waiter, max_wait_s: float) -> bool:
        """Take places, or queue up: True when it runs, False when `waiter.start` will tell.

        Raises: Unavailable when the server is stopping.
        """
        if self._can_start(waiter):
            self._run(waiter)
            return True
        if self._is_draining:
            raise _stopping()
        waiter.start = asyncio.get_running_loop().create_future()
        if waiter.is_background:
            self._background.push(waiter)
            return False
        self._queue.push(waiter)
        self._speed.start(self._clock.now())
        waiter.timer = self._clock.call_later(max_wait_s, lambda: self._expire(waiter, max_wait_s))
        return False

    def leave(self, waiter: Waiter) -> None:
        """It has ended, or its client is gone, at whatever stage. Harmless when called twice."""
        if waiter.num_taken:
            self.num_taken -= waiter.num_taken
            waiter.num_taken = 0
        elif waiter.start is not None and not waiter.start.done():
            self._take_out(waiter)
            waiter.start.cancel()
        elif waiter.start is not None and not waiter.start.cancelled():
            waiter.start.exception()  # nobody may have waited for it any more
        self._fill()

    def resize(self, num_places: int) -> None:
        """From now on; more than that may still be taken by those that run."""
        self.num_places = num_places
        self._fill()

    def drain(self) -> None:
        """Refuse all that wait, and from now on all that would have to."""
        self._is_draining = True
        for waiter in [*self._queue, *self._background]:
            self._refuse(waiter, _stopping())

    def _needs(self, waiter: Waiter) -> int:
        return min(waiter.num_places, self.num_places)

    def _can_start(self, waiter: Waiter) -> bool:
        is_first = not self._queue.num_waiters and not (waiter.is_background and self._background.num_waiters)
        return is_first and self.num_taken + self._needs(waiter) <= self.num_places

    def _run(self, waiter: Waiter) -> None:
        waiter.num_taken = self._needs(waiter)
        self.num_taken += waiter.num_taken

    def _fill(self) -> None:
        """Give free places to those whose turn it is. Nobody passes one who needs more places than are free."""
        if not self._queue.num_waiters and not self._background.num_waiters:
            return
        for queue in (self._queue, self._background):
            while (waiter := queue.first()) is not None:
                if self.num_taken + self._needs(waiter) > self.num_places:
                    return
                now = self._clock.now()
                queue.serve(waiter)
                if queue is self._queue:
                    self._speed.count(waiter.num_tokens, now)
                    if not queue.num_waiters:
                        self._speed.stop(now)
                self._run(waiter)
                self._tell(waiter, None)

    def _expire(self, waiter: Waiter, max_wait_s: float) -> None:
        if waiter.start is not None and not waiter.start.done():
            before = self._queue.num_tokens
            self._refuse(waiter, self._overloaded(before, f"and the request has waited {max_wait_s:g} s in vain"))
            self._fill()

    def _refuse(self, waiter: Waiter, error: ApiError) -> None:
        self._take_out(waiter)
        self._tell(waiter, error)

    def _take_out(self, waiter: Waiter) -> None:
        if waiter.timer is not None:
            waiter.timer.cancel()
        queue = self._background if waiter.is_background else self._queue
        queue.discard(waiter)
        if not self._queue.num_waiters:
            self._speed.stop(self._clock.now())

    def _tell(self, waiter: Waiter, error: ApiError | None) -> None:
        if waiter.timer is not None:
            waiter.timer.cancel()
        assert waiter.start is not None
        if error is None:
            waiter.start.set_result(None)
        else:
            waiter.start.set_exception(error)

    def _overloaded(self, num_tokens: int, why: str) -> Overloaded:
        """With the time in which so many tokens leave the queue."""
        speed = self._speed.tokens_per_s(self._clock.now())
        retry_after_s = min(MAX_RETRY_AFTER_S, num_tokens / speed) if speed else None
        return Overloaded(
            f"All places of {self.name} are taken, {self._queue.num_waiters} requests with about "
            f"{self._queue.num_tokens:,} tokens are waiting, {why}. Try again later.",
            retry_after_s=retry_after_s,
        )


def _stopping() -> Unavailable:
    return Unavailable("The server is stopping. Send the request again, to another one if there is one.")
