"""Time that passes when the test says so."""

from __future__ import annotations

import asyncio
from heapq import heappop, heappush


class FakeTimer:
    def __init__(self, callback):
        self.callback = callback

    def cancel(self):
        self.callback = None


class FakeClock:
    """Implements `gateway.clock.Clock`."""

    def __init__(self, now=1000.0):
        self._now = now
        self._timers = []
        self._num_timers = 0

    def now(self):
        return self._now

    def call_later(self, delay_s, callback):
        timer = FakeTimer(callback)
        self._num_timers += 1
        heappush(self._timers, (self._now + delay_s, self._num_timers, timer))
        return timer

    @property
    def num_timers(self):
        return sum(timer.callback is not None for _, _, timer in self._timers)

    def advance(self, seconds):
        """Let time pass, calling back what falls into it, in order."""
        end = self._now + seconds
        while self._timers and self._timers[0][0] <= end:
            self._now, _, timer = heappop(self._timers)
            if timer.callback is not None:
                callback, timer.callback = timer.callback, None
                callback()
        self._now = end


async def settle(num_turns=20):
    """Let every task go on until it waits for something else than its turn."""
    for _ in range(num_turns):
        await asyncio.sleep(0)
