"""An engine whose process somebody else owns, as a worker of the server asks it: over a connection of its own.

What the engine is, and whether it is ready, its owner tells (`EngineNews`); requests and answers go between the worker
and the engine's process alone.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
from typing import cast

from langport.engine.calls import EngineCalls
from langport.engine.guests import guest_id
from langport.engine.messages import Join, decode_from_engine
from langport.errors import Unavailable
from langport.frames import Frames
from langport.types import EngineHealth, EngineNews, EngineTotals, ModelInfo

logger = logging.getLogger("langport.engine")

REJOIN_S = 0.2
_numbers = itertools.count()


class _Link(asyncio.Protocol):
    """The socket to the engine's process."""

    def __init__(self, engine: EngineGuest) -> None:
        self._engine = engine
        self._frames = Frames()
        self.transport: asyncio.WriteTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.WriteTransport", transport)

    def data_received(self, data: bytes) -> None:
        for body in self._frames.feed(data):
            self._engine._take_answer(decode_from_engine(body))

    def connection_lost(self, error: Exception | None) -> None:
        self._engine._lost(self)


class EngineGuest(EngineCalls):
    """Asks an engine; implements `types.Engine`."""

    def __init__(self, name: str) -> None:
        self._guest = f"{os.getpid()}-{next(_numbers)}"
        super().__init__(name, guest_id(self._guest, ""))
        self._news = EngineNews(False, "its process has not been started", None, "", 0, 0, 0.0, EngineTotals(), [], {})
        self._door = ""
        """Where it is connected, or is about to be."""
        self._link: _Link | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._connected = asyncio.Event()

    def hear(self, news: EngineNews) -> None:
        """The owner tells how it stands."""
        self._news = news
        self.info = news.info or self.info
        if news.is_ready and news.door and news.door != self._door:
            self._door = news.door
            self._connected.clear()
            self._connecting = asyncio.get_running_loop().create_task(self._connect(news.door))

    async def wait_ready(self) -> ModelInfo:
        """See `types.Engine`."""
        await self._connected.wait()
        if self.info is None:
            raise Unavailable(f"the engine of {self.name} is not available: {self._reason()}")
        return self.info

    def health(self) -> EngineHealth:
        """See `types.Engine`."""
        news = self._news
        return EngineHealth(
            is_ready=self._is_ready() and self._transport is not None,
            reason=self._reason(),
            num_running=news.num_running,
            num_waiting=news.num_waiting,
            kv_cache_usage=news.kv_cache_usage,
            totals=news.totals,
        )

    def adapter_problem(self, number: int) -> str:
        """See `EngineCalls`."""
        return self._news.adapter_problems.get(number, "")

    async def close(self) -> None:
        """Leave the engine; what it does for others goes on."""
        if self._connecting is not None:
            self._connecting.cancel()
        self._news = EngineNews(False, "stopped", None, "", 0, 0, 0.0, EngineTotals(), [], {})
        if self._link is not None:
            self._link.transport.close()

    async def _connect(self, door: str) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, link = await loop.create_unix_connection(lambda: _Link(self), door)
        except OSError as error:  # it has died since; its owner will say so
            logger.warning("the engine of %s cannot be reached: %s", self.name, error)
            if self._door == door:
                self._door = ""
            return
        if self._door != door:
            link.transport.close()
            return
        if self._link is not None:
            self._fail_all("was started again; the request was not completed")
            self._link.transport.close()
        self._link, self._transport = link, link.transport
        self._send(Join(self._guest))
        self._connected.set()

    def _lost(self, link: _Link) -> None:
        if self._link is link:
            self._link = None
            self._door = ""
            self._connected.clear()
            self._fail_all("stopped unexpectedly; the request was not completed")
            asyncio.get_running_loop().call_later(REJOIN_S, self._rejoin)

    def _rejoin(self) -> None:
        """The connection was lost, and the engine perhaps not."""
        if not self._door:
            self.hear(self._news)

    def _is_ready(self) -> bool:
        return self._news.is_ready

    def _has_adapter(self, number: int) -> bool:
        return number in self._news.adapters

    def _reason(self) -> str:
        if self._news.is_ready and self._transport is None:
            return "this worker is connecting to its engine"
        return self._news.reason
