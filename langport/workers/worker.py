"""A worker: a gateway that answers on the common port, and asks the supervisor for what is one for all workers."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from langport.assembly import Parts, Serving
from langport.errors import ConfigError, LangPortError
from langport.gateway.admission import Admission
from langport.gateway.bookkeeping import keep_books
from langport.gateway.cache import ResponseCache, response_cache
from langport.gateway.metrics import render
from langport.gateway.models import Served
from langport.gateway.summing import Packed, pack, unpack
from langport.http_server import Stop, run, until
from langport.settings.tree import Settings
from langport.store.base import KeyRecord
from langport.workers.books import RemoteAccounts, RemoteAnswers, RemoteLedger
from langport.workers.link import Link
from langport.workers.messages import (
    Apply,
    Collect,
    Done,
    Failure,
    Figures,
    Listening,
    Message,
    Reload,
    Reloaded,
    Report,
    StartFailed,
    TellKey,
    Told,
    Turn,
    Welcome,
    decode_to_worker,
)
from langport.workers.messages import Stop as StopMessage
from langport.workers.port import Port
from langport.workers.turnstile import RemoteTurnstile

logger = logging.getLogger("langport")

REPORT_S = 1.0
"""Between two reports of figures; a worker that is killed takes with it what it counted since the last one."""


class Seat:
    """A worker's place at its supervisor, and those parts of a gateway that go through it."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.link = Link(decode_to_worker, self._receive, self._lost)
        self.settings: Settings
        self.turnstile = RemoteTurnstile(self.link)
        self.stop = Stop(asyncio.Event(), asyncio.Event())
        self.is_orphan = False
        """The supervisor has ended, and did not say so."""
        self._more: Callable[[int, Any], None] | None = None
        self._early: list[tuple[int, Message]] = []
        """Messages for `more` that came before it."""
        self._welcome: asyncio.Future[Settings] = asyncio.get_running_loop().create_future()
        self._serving: Serving | None = None

    async def take(self) -> None:
        """Be told the settings. Raises: Unavailable when the supervisor has ended."""
        loop = asyncio.get_running_loop()
        await loop.connect_accepted_socket(lambda: self.link, self._connection)
        self.settings = await self._welcome
        self.books = keep_books(
            self.settings,
            None if self.settings.store.place == "none" else RemoteAccounts(self.link),
            RemoteLedger(self.link, self.settings.gateway.prices),
        )
        if self.books is not None:
            self.books.tell = self._tell_key
        self.admission = Admission(self.settings.overload, turnstile=self.turnstile)
        self.cache = self._cache()

    def hand_on(self, more: Callable[[int, Any], None]) -> None:
        """Give it the messages that are not known here, those too that have come already."""
        self._more = more
        for id, message in self._early:
            more(id, message)
        self._early.clear()

    @property
    def served(self) -> Served | None:
        """The table of names, once there is one."""
        return None if self._serving is None else self._serving.gateway.served

    async def serve(self, parts: Parts, port: Port) -> None:
        """Answer until the supervisor, or SIGTERM, says stop. Raises: LangPortError when it cannot begin."""
        serving = Serving(parts, [port.listen()], self.stop)
        serving.gateway.on_reload = self._reload
        serving.gateway.on_metrics = self._metrics
        self._serving = serving
        async with serving:
            while not serving.server.started and not serving.task.done():
                await asyncio.sleep(0.001)
            self.link.send(Listening())
            reporting = asyncio.create_task(self._report_often())
            await serving.start_work()
            await until(serving.task, self.stop.is_wanted)
        reporting.cancel()
        self.link.send(self._figures())

    def _cache(self) -> ResponseCache | None:
        """In the supervisor's memory, so that any worker finds what another has kept; else in Redis or Valkey."""
        gateway = self.settings.gateway
        if gateway.response_cache_bytes is None or gateway.response_cache_store is not None:
            return response_cache(gateway)
        return ResponseCache(ttl_s=gateway.response_cache_ttl_s, store=RemoteAnswers(self.link))

    def _receive(self, id: int, message: Message) -> None:
        match message:
            case Turn():
                self.turnstile.turn(message)
            case Told(record):
                if self.books is not None:
                    self.books.keys.apply(record)
                self.link.answer(id, Done())
            case Report():
                self.link.answer(id, self._figures())
            case Apply(settings):
                self.link.answer(id, self._apply(settings))
            case StopMessage(is_forced):
                self.stop.is_wanted.set()
                if is_forced:
                    self.stop.is_forced.set()
            case Welcome(settings):
                self._welcome.set_result(own_share(settings))
            case _ if self._more is not None:
                self._more(id, message)
            case _:
                self._early.append((id, message))

    def _lost(self) -> None:
        """Without a supervisor nothing can be admitted any more."""
        if not self._welcome.done():
            self._welcome.cancel()
        if not self.stop.is_wanted.is_set():
            self.is_orphan = True
            logger.error("The supervisor of this worker has ended. Stopping.")
            self.stop()

    def _figures(self) -> Figures:
        return Figures(self._packed())

    def _packed(self) -> Packed:
        return pack(self._serving.gateway.metrics.blocks()) if self._serving is not None else {}

    async def _metrics(self) -> bytes:
        assert self._serving is not None
        own = self._serving.gateway.metrics.blocks()
        found = await self.link.ask(Collect(pack(own)), Figures)
        return render(unpack(found.packed, own))

    async def _report_often(self) -> None:
        while True:
            await asyncio.sleep(REPORT_S)
            self.link.send(self._figures())

    async def _reload(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        found = await self.link.ask(Reload(), Reloaded)
        return found.changed, found.need_restart

    async def _tell_key(self, record: KeyRecord) -> None:
        await self.link.ask(TellKey(record), Done)

    def _apply(self, settings: Settings) -> Message:
        if self._serving is None:
            return Failure.of(ConfigError("This worker is starting; try again."))
        try:
            self._serving.apply(own_share(settings))
        except ConfigError as error:
            return Failure.of(error)
        return Done()


def own_share(settings: Settings) -> Settings:
    """What one worker may take of the memory and the connections that the settings give all of them."""
    overload, gateway = settings.overload, settings.gateway
    share = max(overload.max_held_bodies_bytes // settings.workers, gateway.max_body_bytes)
    overload = msgspec.structs.replace(overload, max_held_bodies_bytes=share)
    if overload.max_connections is not None:
        overload = msgspec.structs.replace(overload, max_connections=-(-overload.max_connections // settings.workers))
    if gateway.response_cache_bytes is not None:
        gateway = msgspec.structs.replace(
            gateway, response_cache_bytes=max(1, gateway.response_cache_bytes // settings.workers)
        )
    return msgspec.structs.replace(settings, overload=overload, gateway=gateway)


def work(assemble: Callable[[Seat], Parts], port: Port, folder: Path, connection: socket.socket) -> NoReturn:
    """What a new worker's process does. `assemble` makes its gateway's parts, in the running event loop.

    `folder` is the supervisor's own, removed here when that has been killed.
    """
    code = run(_work(assemble, port, folder, connection))
    sys.stderr.flush()
    os._exit(code)


async def _work(assemble: Callable[[Seat], Parts], port: Port, folder: Path, connection: socket.socket) -> int:
    seat = Seat(connection)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, seat.stop)
    code = 0
    try:
        await seat.take()
        await seat.serve(assemble(seat), port)
    except asyncio.CancelledError:
        code = 1
    except LangPortError as error:
        seat.link.send(StartFailed(Failure.of(error)))
        code = 1
    if seat.is_orphan:
        shutil.rmtree(folder, ignore_errors=True)
    seat.link.close()
    await asyncio.sleep(0)
    return code
