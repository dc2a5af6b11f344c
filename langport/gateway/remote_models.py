"""The models of all remote servers: those that the settings name, and those that a server lists, which come and go."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from langport.errors import ApiError
from langport.gateway.models import Served
from langport.gateway.remote import RemoteServer
from langport.gateway.upstream import Upstream
from langport.settings.upstreams import UpstreamSettings

logger = logging.getLogger("langport.gateway")

FIRST_RETRY_S = 1.0
"""Before a server that could not be asked for its models is asked again; doubled each time, up to its `refresh_s`."""


@dataclass(frozen=True)
class Plan:
    """Servers that are not asked yet."""

    servers: list[RemoteServer]
    upstreams: list[Upstream]
    """Those that the settings name."""
    catalogs: list[Catalog]

    @property
    def may_grow(self) -> bool:
        """Whether a server lists its models, so that more are served later."""
        return bool(self.catalogs)

    def models(self, taken: Container[str]) -> list[Upstream]:
        """What is served: named ones, and what is known to be listed under names that nobody else has taken."""
        names = {upstream.name for upstream in self.upstreams}
        found = list(self.upstreams)
        for upstream in (upstream for catalog in self.catalogs for upstream in catalog.upstreams):
            if upstream.name not in names and upstream.name not in taken:
                names.add(upstream.name)
                found.append(upstream)
        return found


class RemoteModels:
    """Upstreams of every remote server. Contacts nobody before `start`, and then only for lists of models."""

    def __init__(self, settings: Iterable[UpstreamSettings], environment: Mapping[str, str] = os.environ) -> None:
        """Raises: ConfigError for a secret or a certificate that cannot be read."""
        self._environment = environment
        self._servers: list[RemoteServer] = []
        self._retired: list[RemoteServer] = []
        """Whose last requests may still run; unused connections end by themselves."""
        self.upstreams: list[Upstream] = []
        """Those that the settings name."""
        self._catalogs: list[Catalog] = []
        self._tasks: dict[Catalog, asyncio.Task[None]] = {}
        self._served: Served | None = None
        self.adopt(self.plan(settings))

    @property
    def may_grow(self) -> bool:
        """Whether a server lists its models, so that more are served later."""
        return bool(self._catalogs)

    def plan(self, settings: Iterable[UpstreamSettings]) -> Plan:
        """What these settings ask for; servers that are asked as before keep their connections and their models.

        Raises: ConfigError for a secret or a certificate that cannot be read; nothing has changed then.
        """
        servers: list[RemoteServer] = []
        for wanted in [RemoteServer(each, self._environment) for each in settings]:
            same = [each for each in self._servers if each.is_same(wanted) and each not in servers]
            servers.append(same[0] if same else wanted)
        upstreams = [
            server.upstream(server.settings.name, server.settings.model)
            for server in servers
            if server.settings.name is not None
        ]
        known = {catalog.server: catalog for catalog in self._catalogs}
        catalogs = [known.get(server) or Catalog(server) for server in servers if server.settings.name is None]
        return Plan(servers, upstreams, catalogs)

    def adopt(self, plan: Plan) -> None:
        """Go on with these; requests of other servers end as they began."""
        self._retired += [server for server in self._servers if server not in plan.servers]
        self._servers, self.upstreams, self._catalogs = plan.servers, plan.upstreams, plan.catalogs
        if self._served is not None:
            self.start(self._served)

    def has(self, upstream: Upstream) -> bool:
        """Whether it is one of these."""
        listed = (each for catalog in self._catalogs for each in catalog.upstreams)
        return any(each is upstream for each in (*self.upstreams, *listed))

    def start(self, served: Served) -> None:
        """Ask for lists in the background, and keep `served` as they are."""
        self._served = served
        for catalog in self._tasks.keys() - set(self._catalogs):
            self._tasks.pop(catalog).cancel()
        for catalog in self._catalogs:
            catalog.drop_unserved(served)
            if catalog not in self._tasks:
                self._tasks[catalog] = asyncio.create_task(catalog.watch(served))

    async def close(self) -> None:
        """End all requests, close all connections."""
        for task in self._tasks.values():
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks.values())
        for server in (*self._servers, *self._retired):
            server.close()

    def lines(self) -> Iterator[str]:
        """What a person reads at start: each server, and what about it is not safe."""
        for server in self._servers:
            settings, who = server.settings, server.settings.name or server.origin
            what = f"{settings.model or settings.name} at {server.origin}" if settings.name else "every model it lists"
            yield f"{who}: {what}"
            if not settings.verify_tls:
                yield f"{who}: verify_tls is off: ITS CERTIFICATE IS NOT CHECKED"
            if settings.forward_key:
                yield f"{who}: forward_key is on: clients' keys are sent to it"


class Catalog:
    """The models of one server, as it lists them."""

    def __init__(self, server: RemoteServer) -> None:
        self.server = server
        self._mine: dict[str, Upstream] = {}
        self._cards: dict[str, dict[str, Any]] = {}
        self._taken: set[str] = set()

    @property
    def upstreams(self) -> list[Upstream]:
        """Those that are known, in the order in which they were listed."""
        return list(self._mine.values())

    def drop_unserved(self, served: Served) -> None:
        """Forget those whose names others have taken."""
        self._mine = {name: each for name, each in self._mine.items() if served.model(name) is each}

    async def watch(self, served: Served) -> None:
        """Look again and again. A server that does not answer keeps the models that it had."""
        refresh_s = self.server.settings.refresh_s
        retry_s = FIRST_RETRY_S
        while True:
            try:
                self.update(served, await self.server.list_models())
                pause_s, retry_s = refresh_s, FIRST_RETRY_S
            except ApiError as error:
                if retry_s == FIRST_RETRY_S:
                    logger.warning("%s Its models are asked for again and again.", error)
                pause_s, retry_s = min(retry_s, refresh_s), min(retry_s * 2, refresh_s)
            await asyncio.sleep(pause_s)

    def update(self, served: Served, listed: Mapping[str, dict[str, Any]]) -> None:
        """Serve what is listed and nobody else has the name of; what is listed no more is not served any more."""
        for name in self._mine.keys() - listed.keys():
            if served.model(name) is self._mine.pop(name):
                served.remove(name)
            logger.info("%s: %s does not list it any more", name, self.server.origin)
        for name, card in listed.items():
            if name in self._mine and self._cards.get(name) == card:
                continue
            current = served.model(name)
            if served.is_alias(name) or (current is not None and current is not self._mine.get(name)):
                self._say_taken(name)
                continue
            if name not in self._mine:
                logger.info("%s: of %s", name, self.server.origin)
            self._cards[name] = card
            self._mine[name] = self.server.upstream(name, card=card)
            served.put(self._mine[name])

    def _say_taken(self, name: str) -> None:
        if name not in self._taken:
            self._taken.add(name)
            logger.warning(
                "%s: %s lists it too, but the name is taken; serve it as NAME=URL#%s.", name, self.server.origin, name
            )
