"""What stands between a listening socket and those who answer, put together and taken down in one order.

Both commands serve through this. What they differ in is given to it: the models of this machine, if there are any, and
what answers for stored objects, loaded at once or when it is asked for.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from langport.gateway.admission import Admission
from langport.gateway.app import Gateway
from langport.gateway.asgi import ASGIApp, Receive, Scope, Send
from langport.gateway.bookkeeping import Bookkeeping, keep_books
from langport.gateway.cache import ResponseCache, response_cache
from langport.gateway.remote_models import RemoteModels
from langport.gateway.service import Recorder
from langport.gateway.upstream import Upstream
from langport.http_server import (
    DRAIN_S,
    Server,
    Stop,
    announce_access,
    limit_store,
    local_url,
    reload_on_signal,
    stop_on_signals,
    until,
    uvicorn_config,
)
from langport.reload import Reloader, apply_settings
from langport.settings.tree import Settings
from langport.store.threaded import ThreadedStore
from langport.stored import service_of

logger = logging.getLogger("langport")


class Models(Protocol):
    """The models of this machine."""

    def upstreams(self) -> Sequence[Upstream]: ...

    async def load(self, is_stop_wanted: asyncio.Event) -> bool:
        """Load those that are to be loaded with the server; False when the stop came first. Raises: CheckpointError."""
        ...

    def announce(self, url: str) -> None:
        """Log what is served, and how to try it."""
        ...

    async def stop(self) -> None:
        """Let nobody wait for what never comes; requests that run go on."""
        ...

    async def close(self) -> None:
        """End the engines, and what still runs in them."""
        ...


class Stored(Protocol):
    """What answers for stored objects, and works on batches."""

    @property
    def recorders(self) -> Mapping[str, Recorder]: ...

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None: ...

    async def start(self, app: ASGIApp, num_in_flight: Callable[[], int]) -> None:
        """Begin the work in the background. `app` answers the lines of batches, `num_in_flight` counts what it does."""
        ...

    async def stop_work(self) -> None:
        """End it; requests are still answered."""
        ...

    async def drain(self, timeout_s: float) -> None:
        """Give what clients have left behind so long to end."""
        ...

    async def close(self) -> None: ...


@dataclass(frozen=True)
class Parts:
    """What a server is made of."""

    settings: Settings
    remote: RemoteModels
    models: Models
    stored: Stored
    books: Bookkeeping | None
    admission: Admission
    cache: ResponseCache | None
    openapi: Callable[[], dict[str, Any]]

    @classmethod
    def alone(
        cls,
        settings: Settings,
        store: ThreadedStore | None,
        *,
        remote: RemoteModels,
        models: Models,
        stored: Stored,
        openapi: Callable[[], dict[str, Any]],
    ) -> Parts:
        """Of a process that counts and keeps books for itself. Raises: ConfigError."""
        books = keep_books(settings, store)
        admission = Admission(settings.overload, store=limit_store(settings.overload))
        cache = response_cache(settings.gateway)
        return cls(settings, remote, models, stored, books, admission, cache, openapi)


class Serving:
    """A gateway that answers on its sockets while the block runs; what was put together is taken down after it."""

    def __init__(self, parts: Parts, listeners: Sequence[socket.socket], stop: Stop) -> None:
        """Raises: ConfigError."""
        self._parts = parts
        self._listeners = list(listeners)
        self._stop = stop
        self.gateway = Gateway(
            [*parts.models.upstreams(), *parts.remote.upstreams],
            parts.settings.gateway,
            telemetry=parts.settings.telemetry,
            service=service_of(parts.stored, parts.stored.recorders),
            admission=parts.admission,
            books=parts.books,
            may_grow=parts.remote.may_grow,
            cache=parts.cache,
            openapi=parts.openapi,
        )
        self.server = Server(uvicorn_config(self.gateway, parts.settings.overload))
        self.task: asyncio.Task[None]
        """Ends when the server does."""

    def apply(self, settings: Settings) -> None:
        """Put settings into effect that need no restart. Raises: ConfigError; nothing has changed then."""
        apply_settings(self.gateway, self._parts.admission, self._parts.remote, settings)

    async def start_work(self) -> None:
        """Begin the work in the background, once everything answers."""
        await self._parts.stored.start(self.gateway, lambda: self.gateway.num_in_flight)

    async def __aenter__(self) -> Serving:
        self.gateway.checks.start()
        self.task = asyncio.create_task(self.server.serve(sockets=self._listeners))
        self._parts.remote.start(self.gateway.served)
        return self

    async def __aexit__(self, *_: object) -> None:
        parts = self._parts
        self.server.stop()
        self.gateway.drain()
        await parts.stored.stop_work()
        await parts.models.stop()
        draining = asyncio.create_task(parts.stored.drain(DRAIN_S))
        await until(asyncio.ensure_future(asyncio.wait([self.task, draining])), self._stop.is_forced)
        self.task.cancel()
        draining.cancel()
        await asyncio.wait([self.task, draining])
        await self.gateway.checks.close()
        await parts.admission.close()
        if parts.cache is not None:
            await parts.cache.close()
        await parts.remote.close()
        await parts.models.close()
        if parts.books is not None:
            await parts.books.close()
        await parts.stored.close()
        await asyncio.to_thread(self.gateway.close)


async def serve_alone(parts: Parts, read_again: Callable[[], Settings], listener: socket.socket) -> int:
    """Serve from this process until Ctrl-C or SIGTERM; the exit code. SIGHUP reads the settings with `read_again`.

    Raises: ConfigError, CheckpointError as soon as a model fails that is loaded at start.
    """
    settings, stop = parts.settings, stop_on_signals()
    url = local_url(settings.host, listener.getsockname()[1])
    async with Serving(parts, [listener], stop) as serving:
        reloader = Reloader(settings, read_again, serving.apply)
        serving.gateway.on_reload = reloader.reload_names
        reload_on_signal(reloader, stop)
        await announce_access(settings, parts.books, url)
        if await parts.models.load(stop.is_wanted):
            parts.models.announce(url)
            await serving.start_work()
            await until(serving.task, stop.is_wanted)
            logger.info("Stopping. Open requests may take up to %d s; Ctrl-C ends them.", DRAIN_S)
    return 0
