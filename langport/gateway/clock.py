"""Time as the limits and the queue see it, so that tests can be its masters."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol


class Timer(Protocol):
    """What is still to happen."""

    def cancel(self) -> None:
        """It shall not. Harmless when it has."""
        ...


class Clock(Protocol):
    """Seconds since some moment, never backwards."""

    def now(self) -> float: ...

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        """Call back once, `delay_s` seconds from now."""
        ...


class LoopClock:
    """The time of this machine and the running event loop's timers."""

    now = staticmethod(time.monotonic)

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        return asyncio.get_running_loop().call_later(delay_s, callback)


async def sleep(clock: Clock, delay_s: float) -> None:
    """`asyncio.sleep` by another clock."""
    done = asyncio.get_running_loop().create_future()
    timer = clock.call_later(delay_s, lambda: None if done.done() else done.set_result(None))
    try:
        await done
    finally:
        timer.cancel()
