"""`langport gateway`: the gateway alone, in front of remote servers. Loads nothing that belongs to local models."""

from __future__ import annotations

import asyncio
import json
import logging
import shlex
import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from langport.assembly import Parts, serve_alone
from langport.errors import ConfigError
from langport.gateway.remote_models import RemoteModels
from langport.gateway.upstream import Upstream
from langport.http_server import configure_logging, listen, run
from langport.settings.tree import Settings
from langport.stored import LazyStored, store_of

if TYPE_CHECKING:
    from langport.workers.worker import Seat

logger = logging.getLogger("langport")


def serve_gateway(settings: Settings, read_again: Callable[[], Settings]) -> int:
    """Serve until Ctrl-C or SIGTERM; the process's exit code. SIGHUP reads the settings again with `read_again`.

    Raises: LangPortError when the address cannot be listened on, ConfigError without upstreams or for their secrets.
    """
    if not settings.upstreams:
        raise ConfigError(
            "The gateway has nobody to ask: give it --upstream [NAME=]URL[#MODEL], or upstreams in the file."
        )
    configure_logging(settings.log_level)
    remote = RemoteModels(settings.upstreams)
    with listen(settings.host, settings.port) as listener:
        if settings.workers == 1:
            return run(_serve(settings, read_again, remote, listener))
        from langport.workers.supervisor import NoEngines, supervise

        models = NoModels(settings, remote)
        return supervise(settings, read_again, listener, lambda _: NoEngines(models), _worker_parts)


async def _serve(
    settings: Settings, read_again: Callable[[], Settings], remote: RemoteModels, listener: socket.socket
) -> int:
    store = store_of(settings)
    parts = Parts.alone(
        settings,
        store,
        remote=remote,
        models=NoModels(settings, remote),
        stored=LazyStored(settings, store),
        openapi=openapi_document,
    )
    return await serve_alone(parts, read_again, listener)


def _worker_parts(seat: Seat) -> Parts:
    """Of one of several processes."""
    settings = seat.settings
    remote = RemoteModels(settings.upstreams)
    stored = LazyStored(settings, store_of(settings))
    models = NoModels(settings, remote)
    return Parts(settings, remote, models, stored, seat.books, seat.admission, seat.cache, openapi_document)


class NoModels:
    """In place of the models of this machine where there are none; see `assembly.Models`."""

    def __init__(self, settings: Settings, remote: RemoteModels) -> None:
        self._settings = settings
        self._remote = remote

    def upstreams(self) -> Sequence[Upstream]:
        return ()

    async def load(self, is_stop_wanted: asyncio.Event) -> bool:
        return not is_stop_wanted.is_set()

    def announce(self, url: str) -> None:
        _announce_ready(self._settings, self._remote, url)

    async def stop(self) -> None:
        pass

    async def close(self) -> None:
        pass


def openapi_document() -> dict[str, Any]:
    """Made when it is first asked for."""
    from langport.openapi import openapi_document

    return openapi_document()


def _announce_ready(settings: Settings, remote: RemoteModels, url: str) -> None:
    for line in remote.lines():
        logger.info(line)
    for alias, name in settings.gateway.aliases.items():
        logger.info("%s: an alias of %s", alias, name)
    name = remote.upstreams[0].name if remote.upstreams else "MODEL"
    body = json.dumps({"model": name, "messages": [{"role": "user", "content": "Hello!"}]}, ensure_ascii=False)
    authorization = "-H 'Authorization: Bearer YOUR_KEY' " if settings.gateway.api_keys else ""
    logger.info(
        "Ready on %s (Ctrl-C stops). Try: curl %s/v1/chat/completions -H 'Content-Type: application/json' %s-d %s",
        url,
        url,
        authorization,
        shlex.quote(body),
    )
