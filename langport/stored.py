"""What answers for stored objects, files and batches: beside the models at once, in a gateway when it is asked for.

Importing this loads neither the store nor the endpoints.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from langport.api.stored_endpoints import CHATS, ENDPOINTS, STREAMED_BODIES
from langport.gateway.asgi import ASGIApp, Receive, Scope, Send
from langport.gateway.service import Endpoint, Recorder, Service
from langport.settings.tree import Settings
from langport.store.threaded import ThreadedStore, default_store, open_store

if TYPE_CHECKING:
    from langport.api.stored import NothingStored, StoredApi


def stored_api(settings: Settings, store: ThreadedStore | None) -> StoredApi | NothingStored:
    """What answers for stored objects, files and batches."""
    from langport.api.stored import NothingStored, StoredApi

    if store is None:
        return NothingStored()
    max_line_bytes = settings.gateway.max_body_bytes
    return StoredApi(settings.store, default_store(), max_line_bytes=max_line_bytes, store=store)


def store_of(settings: Settings) -> ThreadedStore | None:
    """The store of the settings, which nothing opens before the first call; None where nothing is stored."""
    return None if settings.store.place == "none" else open_store(settings.store.place, default_store())


def service_of(app: ASGIApp, recorders: Mapping[str, Recorder]) -> Service:
    """An app that answers for stored objects, as the gateway takes it."""
    endpoints = [Endpoint(*endpoint, streams_body=endpoint in STREAMED_BODIES) for endpoint in ENDPOINTS]
    return Service(app, endpoints, recorders)


class LazyStored:
    """The same, imported and opened with the first call, or at the start when there is a store whose batches go on."""

    def __init__(self, settings: Settings, store: ThreadedStore | None) -> None:
        self._settings = settings
        self._store = store
        self._api: asyncio.Task[StoredApi | NothingStored] | None = None
        self._gateway: ASGIApp | None = None
        self._num_in_flight: Callable[[], int] = lambda: 0
        self._is_started = asyncio.Event()
        self.recorders: Mapping[str, Recorder] = {CHATS: self._record}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI 3."""
        api = await self._opened()
        await api(scope, receive, send)

    async def _record(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        api = await self._opened()
        await api.recorders[CHATS](app, scope, receive, send)

    async def start(self, app: ASGIApp, num_in_flight: Callable[[], int]) -> None:
        """Say what answers the lines of batches, and counts what it is answering."""
        self._gateway = app
        self._num_in_flight = num_in_flight
        self._is_started.set()
        place = self._settings.store.place
        is_server = place is not None and "://" in place
        if is_server or (place not in ("none", "memory") and Path(place or default_store()).expanduser().exists()):
            self._begin()

    def _begin(self) -> asyncio.Task[StoredApi | NothingStored]:
        if self._api is None:
            self._api = asyncio.create_task(self._open())
        return self._api

    async def _opened(self) -> StoredApi | NothingStored:
        return await asyncio.shield(self._begin())  # one client that leaves does not stop it for the others

    async def _open(self) -> StoredApi | NothingStored:
        await self._is_started.wait()
        assert self._gateway is not None
        await asyncio.to_thread(__import__, "langport.api.stored")  # takes a while, and other requests go on
        api = stored_api(self._settings, self._store)
        await api.start(self._gateway, self._num_in_flight)
        return api

    async def stop_work(self) -> None:
        """End the work in the background; requests are still answered."""
        if self._api is not None and self._is_started.is_set():
            await (await self._opened()).stop_work()

    async def drain(self, timeout_s: float) -> None:
        """Give the responses in the background so long to end by themselves, then end them."""
        if self._api is not None and self._is_started.is_set():
            await (await self._opened()).drain(timeout_s)

    async def close(self) -> None:
        """End the work, finish what is being written, close the store."""
        if self._api is not None and self._is_started.is_set():
            await (await self._opened()).close()
        elif self._store is not None:
            await self._store.close()
