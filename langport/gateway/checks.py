"""Looks now and then whether deployments live, so that a lost one is not found by requests, and is soon asked again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from langport.errors import ApiError
from langport.gateway.clock import Clock, sleep
from langport.gateway.health import Health
from langport.gateway.upstream import Upstream

logger = logging.getLogger("langport.gateway")

TIMEOUT_S = 5.0
"""A deployment that takes longer to say that it lives does not."""


@dataclass(frozen=True)
class Watch:
    """How often to look at a deployment, and who wants to know."""

    interval_s: float
    healths: Sequence[Health]


class Checks:
    """One task for each deployment that can be asked; so it is never asked twice at once."""

    def __init__(self, find: Callable[[str], Upstream | None], clock: Clock) -> None:
        """`find` gives what is served under a name."""
        self._find = find
        self._clock = clock
        self._watches: Mapping[str, Watch] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._is_running = False

    def start(self) -> None:
        """Look from now on, in the running event loop."""
        self._is_running = True
        self.watch(self._watches)

    def watch(self, watches: Mapping[str, Watch]) -> None:
        """Look at these, by their names, and at no others."""
        self._watches = watches
        if self._is_running:
            for name in self._tasks.keys() - watches.keys():
                self._tasks.pop(name).cancel()
            for name in watches.keys() - self._tasks.keys():
                self._tasks[name] = asyncio.create_task(self._look(name))

    async def close(self) -> None:
        """Look no longer."""
        self._is_running = False
        tasks = list(self._tasks.values())
        self._tasks.clear()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _look(self, name: str) -> None:
        while True:
            await sleep(self._clock, self._watches[name].interval_s)
            upstream = self._find(name)
            if upstream is None or upstream.check is None:
                continue
            lives = await self._lives(name, upstream.check)
            if name in self._watches:
                for health in self._watches[name].healths:
                    health.checked(lives=lives)

    async def _lives(self, name: str, check: Callable[[], Awaitable[None]]) -> bool:
        looking = asyncio.ensure_future(check())
        timer = asyncio.ensure_future(sleep(self._clock, TIMEOUT_S))
        try:
            await asyncio.wait([looking, timer], return_when=asyncio.FIRST_COMPLETED)
            if not looking.done():
                return False
            looking.result()
            return True
        except (ApiError, OSError) as error:
            logger.debug("%s does not live: %s", name, error)
            return False
        except Exception:
            logger.exception("looking at %s failed", name)
            return False
        finally:
            looking.cancel()
            timer.cancel()
            await asyncio.gather(looking, timer, return_exceptions=True)
