"""The process around an ASGI app: its address, its signals, its log and its end. Knows neither models nor keys."""

from __future__ import annotations

import asyncio
import errno
import gc
import ipaddress
import logging
import os
import signal
import socket
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import uvicorn

from langport.errors import ConfigError, LangPortError, StoreUnavailable
from langport.gateway.app import Gateway
from langport.gateway.bookkeeping import Bookkeeping
from langport.gateway.limits import LimitStore
from langport.http_protocol import Guard
from langport.reload import Reloader
from langport.settings.tree import OverloadSettings, Settings

logger = logging.getLogger("langport")

DRAIN_S = 30
"""How long requests may go on after Ctrl-C or SIGTERM."""
KEEP_ALIVE_S = 75
"""Longer than the pools of common clients and proxies keep a connection, so that they close it and not we."""
BACKLOG = 2048
TICK_S = 1.0
"""Between two looks at the clock for the Date header."""
GC_ALLOCATIONS = 20_000
"""Objects made and not freed before the youngest are looked through."""


def configure_logging(level: str) -> None:
    """LangPort's own lines from `level` on and other libraries' warnings, to stderr."""
    logging.basicConfig(format="%(asctime)s %(levelname)-7s %(message)s", level=logging.WARNING, force=True)
    logger.setLevel(level.upper())


def listen(host: str, port: int) -> socket.socket:
    """A socket that already listens, so that a second server cannot take the address meanwhile.

    Raises: LangPortError saying what stands in the way.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise LangPortError(f"--host {host} is no address of this machine ({error.strerror}).") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise LangPortError(_why_not_listening(error, host, port)) from None
    return listener


def _why_not_listening(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"Port {port} on {host} is in use, perhaps by another LangPort. Choose another with --port."
    if error.errno == errno.EACCES:
        return f"Port {port} needs more rights than this user has. Choose one above 1023 with --port."
    if error.errno == errno.EADDRNOTAVAIL:
        return f"--host {host} is no address of this machine. Use 127.0.0.1, or 0.0.0.0 for all networks."
    return f"Cannot listen on {host} port {port}: {error.strerror}. Choose others with --host and --port."


def run(main: Coroutine[Any, Any, int]) -> int:
    """Its result, on the fastest event loop there is.

    Requests leave no cycles behind, so looking for some after every few of them is lost time.
    """
    gc.set_threshold(GC_ALLOCATIONS, 20, 50)
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    exit_code: int = uvloop.run(main)
    return exit_code


class Server(uvicorn.Server):
    """uvicorn without its signal handlers, which end the process before the engines are closed.

    It wakes up for the Date header once a second, and not ten times to see whether it should stop.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._is_stopping = asyncio.Event()

    def stop(self) -> None:
        """Accept no new connections, and end when those that are there have ended."""
        self.should_exit = True
        self._is_stopping.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def main_loop(self) -> None:
        while not await self.on_tick(0):  # in a tick of this number the header is made anew
            with suppress(TimeoutError):
                await asyncio.wait_for(self._is_stopping.wait(), TICK_S)


@dataclass(frozen=True)
class Stop:
    """What Ctrl-C and SIGTERM do: the first one drains, a second one ends at once."""

    is_wanted: asyncio.Event
    is_forced: asyncio.Event

    def __call__(self) -> None:
        if self.is_wanted.is_set():
            self.is_forced.set()
        self.is_wanted.set()


def stop_on_signals() -> Stop:
    """Begin to listen to them."""
    stop = Stop(asyncio.Event(), asyncio.Event())
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop)
    return stop


class Hangup:
    """What SIGHUP does: the settings are read again. When it comes because the terminal has gone, the server stops."""

    def __init__(self, reloader: Reloader, stop: Callable[[], None]) -> None:
        self._reloader = reloader
        self._stop = stop
        self._had_terminal = _has_terminal()
        self._reloading: set[asyncio.Task[None]] = set()

    def __call__(self) -> None:
        if self._had_terminal and not _has_terminal():
            self._stop()
            return
        task = asyncio.create_task(self._reload())
        self._reloading.add(task)
        task.add_done_callback(self._reloading.discard)

    async def _reload(self) -> None:
        with suppress(ConfigError):  # whose problems the log tells
            await self._reloader.reload()


def _has_terminal() -> bool:
    """Whether somebody at a terminal started this process and is still there."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True


def reload_on_signal(reloader: Reloader, stop: Callable[[], None]) -> None:
    """Begin to read the settings again with each SIGHUP."""
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, Hangup(reloader, stop))


def uvicorn_config(app: Gateway, settings: OverloadSettings) -> uvicorn.Config:
    """HTTP/1.1 and nothing that the gateway does itself."""
    guard = Guard(
        client_timeout_s=settings.client_timeout_s,
        keep_alive_s=KEEP_ALIVE_S,
        max_connections=settings.max_connections,
    )
    return uvicorn.Config(
        app,
        http=guard,  # type: ignore[arg-type]  # uvicorn only calls it
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=DRAIN_S,
    )


async def until(task: asyncio.Future[Any], event: asyncio.Event) -> None:
    """Wait until `task` is done or `event` is set; the task goes on, and its error stays in it."""
    waiting = asyncio.ensure_future(event.wait())
    await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()


def local_url(host: str, port: int) -> str:
    """Where to reach the server from this machine."""
    if host in ("0.0.0.0", "::"):
        host = "localhost"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def announce_access(settings: Settings, books: Bookkeeping | None, url: str) -> None:
    """Log who may use the server."""
    try:
        if books is not None:
            await books.keys.refresh()
    except StoreUnavailable:
        return  # said already, and until it is mended no request goes on
    if settings.gateway.api_keys:
        logger.info("%s needs an API key; %d may be used", url, len(settings.gateway.api_keys))
    elif books is not None and books.keys.has_any:
        logger.info("%s needs an API key; `langport keys list` shows them", url)
    elif _is_loopback(settings.host):
        logger.info("%s is open to everyone on this machine: no --api-key", url)
    else:
        logger.warning(
            "THE SERVER IS OPEN: everyone who can reach %s port %s may use it. Set --api-key to close it.",
            settings.host,
            url.rpartition(":")[2],
        )
    if settings.gateway.allow_adapter_updates:
        who = "every client that has a key" if settings.gateway.api_keys else "EVERY CLIENT"
        logger.warning("--allow-adapter-updates: %s may add and remove LoRA adapters", who)


def limit_store(settings: OverloadSettings) -> LimitStore | None:
    """Where several servers count together; None: each process counts for itself.

    Raises: ConfigError for a wrong address, or without the library.
    """
    if settings.limits_store is None:
        return None
    try:
        from langport.gateway.shared_limits import SharedLimits
    except ImportError:
        raise ConfigError("--limits-store needs the redis package: pip install 'langport[redis]'") from None
    return SharedLimits(settings.limits_store, on_failure=settings.limits_on_failure)
