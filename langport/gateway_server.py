"""`langport gateway`: the gateway alone, in front of remote servers. Loads nothing that belongs to local models."""

from __future__ import annotations

import asyncio
import json
import logging
import shlex
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

from langport.config import Settings
from langport.errors import ConfigError
from langport.gateway.admission import Admission
from langport.gateway.app import Gateway
from langport.gateway.bookkeeping import keep_books
from langport.gateway.cache import response_cache
from langport.gateway.remote_models import RemoteModels
from langport.http_server import (
    DRAIN_S,
    Server,
    announce_access,
    configure_logging,
    limit_store,
    listen,
    local_url,
    reload_on_signal,
    run,
    stop_on_signals,
    until,
    uvicorn_config,
)
from langport.reload import Reloader, apply_settings
from langport.stored import LazyStored, service_of, store_of

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
        return run(_serve(settings, read_again, remote, listener))


async def _serve(
    settings: Settings, read_again: Callable[[], Settings], remote: RemoteModels, listener: socket.socket
) -> int:
    store = store_of(settings)
    stored = LazyStored(settings, store)
    books = keep_books(settings, store)
    admission = Admission(settings.overload, store=limit_store(settings.overload))
    cache = response_cache(settings.gateway)
    gateway = Gateway(
        remote.upstreams,
        settings.gateway,
        telemetry=settings.telemetry,
        service=service_of(stored, stored.recorders),
        admission=admission,
        books=books,
        cache=cache,
        may_grow=remote.may_grow,
        openapi=_openapi_document,
    )
    server = Server(uvicorn_config(gateway))
    stop = stop_on_signals()
    reloader = Reloader(settings, read_again, partial(apply_settings, gateway, admission, remote))
    gateway.on_reload = reloader.reload_names
    reload_on_signal(reloader, stop)
    gateway.checks.start()
    url = local_url(settings.host, listener.getsockname()[1])
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    await announce_access(settings, books, url)
    try:
        remote.start(gateway.served)
        stored.start(gateway, lambda: gateway.num_in_flight)
        _announce_ready(settings, remote, url)
        await until(serving, stop.is_wanted)
        logger.info("Stopping. Open requests may take up to %d s; Ctrl-C ends them.", DRAIN_S)
    finally:
        server.should_exit = True
        gateway.drain()
        await stored.stop_work()
        await until(serving, stop.is_forced)
        serving.cancel()
        await asyncio.wait([serving])
        await gateway.checks.close()
        await admission.close()
        if cache is not None:
            await cache.close()
        await remote.close()
        if books is not None:
            await books.close()
        await stored.close()
        await asyncio.to_thread(gateway.close)
    return 0


def _openapi_document() -> dict[str, Any]:
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
