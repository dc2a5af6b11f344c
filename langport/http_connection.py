"""One client's connection: HTTP/1.1 in, ASGI out, at as little cost per request and per piece of an answer as can be.

Runs under uvicorn's server in place of uvicorn's own protocol, and makes no events, copies or second writes: the head
of an answer goes out with the beginning of its body. Beyond ASGI, its `send` and `receive` are a `DirectSend` and a
`DirectReceive`: a piece of an answer is written where it is found, and a client's leaving is told without a task.
Source: RFC 9112; ASGI's HTTP specification, version 2.3.
"""

from __future__ import annotations

import asyncio
import http
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import lru_cache
from typing import Any, cast
from urllib.parse import unquote

import httptools
from uvicorn.config import Config
from uvicorn.protocols.utils import get_local_addr, get_remote_addr, is_ssl
from uvicorn.server import ServerState

from langport.direct import DirectReceive, DirectSend
from langport.gateway.asgi import ASGIApp, Header, Message, Scope

logger = logging.getLogger("langport.http")

HIGH_WATER = 64 * 1024
"""Bytes of a request's body that wait for the app before the client is not read any further."""

MAX_CACHED_URL = 256
"""Longer ones are not likely to come again, and would take memory."""

_STATUS_LINES = {int(status): f"HTTP/1.1 {int(status)} {status.phrase}\r\n".encode() for status in http.HTTPStatus}
_ASGI = {"version": "3.0", "spec_version": "2.3"}
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_LAST_CHUNK = b"0\r\n\r\n"
_GONE: Message = {"type": "http.disconnect"}
_FAILED = b"Internal Server Error"


class HttpConnection(asyncio.Protocol):
    """One connection, whose requests are answered one after the other.

    Subclasses feed the parser, hand bodies to `newest`, and refuse what cannot be read.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        """What uvicorn gives its protocols."""
        if not config.loaded:
            config.load()
        self.app = cast(ASGIApp, config.loaded_app)
        self.loop = _loop or asyncio.get_running_loop()
        self.parser = self.new_parser()
        self.server_state = server_state
        self.transport: asyncio.Transport
        self.is_reading_paused = False
        self.is_writing_paused = False
        self.cycle: Cycle | None = None
        """Of the request that is being answered, or was last."""
        self.url = b""
        self.headers: list[Header] = []
        self.scope: dict[str, Any] | None = None
        """Of the request whose head is being read, or was last; it has a path once the head is complete."""
        self._root_path = config.root_path
        self._app_state = app_state
        self._peer: dict[str, Any] = {}
        self._expects_continue = False
        self.newest: Cycle
        """Of the request whose body is being read."""
        self._pipeline: deque[Cycle] = deque()
        """Requests that came before the answer to the one before them."""

    def new_parser(self) -> httptools.HttpRequestParser:
        parser = httptools.HttpRequestParser(self)
        parser.set_dangerous_leniencies(lenient_data_after_close=True)  # which is dropped
        return parser

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's have no base class
        self.server_state.connections.add(cast(Any, self))
        self._peer = {
            "type": "http",
            "asgi": _ASGI,
            "http_version": "1.1",
            "server": get_local_addr(self.transport),
            "client": get_remote_addr(self.transport),
            "scheme": "https" if is_ssl(self.transport) else "http",
            "root_path": self._root_path,
        }

    def connection_lost(self, exc: Exception | None) -> None:
        self.server_state.connections.discard(cast(Any, self))
        self.is_writing_paused = False
        if self.cycle is not None:
            self.cycle.lose()
        for cycle in self._pipeline:
            cycle.lose()
        self._pipeline.clear()
        if exc is None:
            self.transport.close()

    def eof_received(self) -> None:
        return None  # close; a client that only has nothing more to say is not told apart from one that has left

    def pause_writing(self) -> None:
        self.is_writing_paused = True

    def resume_writing(self) -> None:
        self.is_writing_paused = False
        if self.cycle is not None:
            self.cycle.go_on()

    # What the parser calls.

    def on_message_begin(self) -> None:
        self.url = b""
        self._expects_continue = False
        self.headers = []
        self.scope = self._peer.copy()

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        self.headers.append((name, value))
        if name == b"expect" and value.lower() == b"100-continue":
            self._expects_continue = True

    def on_headers_complete(self) -> None:
        scope = self.scope
        assert scope is not None, "a message began before its head ended"
        parser = self.parser
        is_old = parser.get_http_version() == "1.0"
        if is_old:
            scope["http_version"] = "1.0"
        path, raw_path, scope["query_string"] = _split(self.url) if len(self.url) > MAX_CACHED_URL else _known(self.url)
        if self._root_path:
            path, raw_path = self._root_path + path, self._root_path.encode() + raw_path
        scope["method"] = parser.get_method().decode("ascii")
        scope["headers"] = self.headers
        scope["path"] = path
        scope["raw_path"] = raw_path
        if self._app_state:
            scope["state"] = self._app_state.copy()
        cycle = Cycle(self, scope, keeps_alive=not is_old and parser.should_keep_alive(), is_old=is_old)
        cycle.expects_continue = self._expects_continue
        self.take_turn(cycle)

    def take_turn(self, cycle: Cycle) -> None:
        """Let a request be answered, when those before it have been."""
        self.newest = cycle
        if self.cycle is None or self.cycle.response_complete:
            self._start(cycle)
        else:
            self.pause_reading()
            self._pipeline.append(cycle)

    def _start(self, cycle: Cycle) -> None:
        self.cycle = cycle
        task = cycle.task = self.loop.create_task(cycle.run(self.app))
        self.server_state.tasks.add(task)

    # What its cycles call.

    def response_done(self, *, keeps_alive: bool) -> None:
        """The answer of the current cycle is complete."""
        self.server_state.total_requests += 1
        if not keeps_alive:
            self.transport.close()
        elif not self.transport.is_closing():
            if self._pipeline:
                self._start(self._pipeline.popleft())
            self.read_on()

    def pause_reading(self) -> None:
        if not self.is_reading_paused:
            self.is_reading_paused = True
            self.transport.pause_reading()

    def read_on(self) -> None:
        """There is room again."""
        if self.is_reading_paused and not self._pipeline and not self.transport.is_closing():
            self.is_reading_paused = False
            self.transport.resume_reading()

    # What uvicorn's server calls.

    def shutdown(self) -> None:
        """End when the current answer is complete."""
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()
        else:
            self.cycle.keeps_alive = False


def _split(url: bytes) -> tuple[str, bytes, bytes]:
    """A request's path, decoded and as it was sent, and its query."""
    parts = httptools.parse_url(url)
    raw_path: bytes = parts.path
    path = raw_path.decode("ascii")
    return unquote(path) if "%" in path else path, raw_path, parts.query or b""


_known = lru_cache(1024)(_split)
"""The same; few paths are asked for again and again."""


class Cycle(DirectSend):
    """One request and its answer, of which it is the `send`."""

    task: asyncio.Task[None] | None = None
    expects_continue = False
    disconnected = False
    more_body = True
    """Of the request."""
    response_started = False
    response_complete = False
    _num_waiting = 0
    """Bytes of its body that the app has not taken."""
    _is_body_news = False
    _is_taken = False
    """Some of it, by the app."""
    _head: bytes | None = None
    """Of the answer, until something of its body is known."""
    _is_chunked = False
    _waiters: Sequence[asyncio.Future[None]] = ()
    _on_gone: Sequence[Callable[[], None]] = ()
    _on_ready: Sequence[Callable[[], None]] = ()
    _left = 0
    """Bytes of a body of known length that are still to come; below 0 where the length is not known."""

    def __init__(self, connection: HttpConnection, scope: Scope, *, keeps_alive: bool, is_old: bool) -> None:
        """`is_old`: the client speaks HTTP/1.0, which knows no chunks."""
        self._connection = connection
        self._transport = connection.transport
        self._loop = connection.loop
        self._scope = scope
        self._is_old = is_old
        self._is_head_only = scope["method"] == "HEAD"
        self.keeps_alive = keeps_alive
        self._pieces: list[bytes] = []

    async def run(self, app: ASGIApp) -> None:
        """Let the app answer; whatever it does, the client gets an answer or the end of the connection."""
        try:
            await app(self._scope, _Receive(self), self)
        except asyncio.CancelledError:
            pass  # the server stops and waits no longer
        except Exception:
            logger.exception("a request failed outside of the gateway")
        finally:
            self._connection.server_state.tasks.discard(cast(Any, self.task))
            self.task = None
            self._on_gone = ()
            if not self.response_complete and not self.disconnected:
                self._give_up()

    def _give_up(self) -> None:
        if self.response_started and self._head is None:
            self._transport.close()  # an incomplete answer cannot look like a complete one
            return
        self.response_started, self._head, self.keeps_alive, self._is_chunked = False, None, False, False
        length = b"%d" % len(_FAILED)
        self._begin(500, [(b"content-type", b"text/plain"), (b"content-length", length)])
        self._finish(_FAILED)

    # What the connection calls.

    def add(self, body: bytes) -> None:
        """A piece of the request's body has come."""
        if self.response_complete:
            return
        self._pieces.append(body)
        self._num_waiting += len(body)
        if self._num_waiting > HIGH_WATER:
            self._connection.pause_reading()
        self._is_body_news = True
        if self._waiters:
            self._wake()

    def end(self) -> None:
        """The request is complete."""
        self.more_body = False
        self._is_body_news = True
        if self._waiters:
            self._wake()

    def lose(self) -> None:
        """The connection is gone."""
        if self.response_complete or self.disconnected:
            return
        self.disconnected = True
        self._wake()
        callbacks, self._on_gone = self._on_gone, ()
        for callback in callbacks:
            callback()
        self.go_on()

    def go_on(self) -> None:
        """The client reads again, or is gone."""
        callbacks, self._on_ready = self._on_ready, ()
        for callback in callbacks:
            callback()

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, ()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    # What the app calls.

    def take_whole(self) -> bytes | None:
        """See `DirectReceive`."""
        if self.more_body or self._is_taken or self.disconnected or self.response_complete:
            return None
        self._is_taken, self._is_body_news = True, False
        return self._take()

    async def receive(self) -> Message:
        """ASGI's."""
        if self.expects_continue and not self.response_started and not self._transport.is_closing():
            self._transport.write(_CONTINUE)
        self.expects_continue = False
        while not (self.disconnected or self.response_complete or self._is_body_news):
            waiter = self._loop.create_future()
            self._waiters = (*self._waiters, waiter)
            await waiter
        if self.disconnected or self.response_complete:
            return _GONE
        self._is_taken, self._is_body_news = True, False
        return {"type": "http.request", "body": self._take(), "more_body": self.more_body}

    def _take(self) -> bytes:
        pieces = self._pieces
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self._pieces = []
        self._num_waiting = 0
        self._connection.read_on()
        return body

    async def __call__(self, message: Message) -> None:
        """ASGI's. Waits while the client does not read."""
        while self._connection.is_writing_paused and not self.disconnected:
            await self._wait_ready()
        if self.disconnected:
            return
        if message["type"] == "http.response.start":
            self._begin(message["status"], list(message.get("headers", ())))
            self._loop.call_soon(self._flush)
        elif message.get("more_body", False):
            self.write(message.get("body", b""))
        else:
            self._finish(message.get("body", b""))

    async def _wait_ready(self) -> None:
        waiter = self._loop.create_future()
        self.when_ready(lambda: None if waiter.done() else waiter.set_result(None))
        await waiter

    def can_finish(self) -> bool:
        """See `DirectSend`."""
        return not (self.response_started or self.disconnected or self._connection.is_writing_paused)

    def finish(self, status: int, headers: list[Header], body: bytes) -> None:
        """See `DirectSend`."""
        self._begin(status, headers)
        self._finish(body)

    def _begin(self, status: int, given: list[Header]) -> None:
        if self.response_started:
            raise RuntimeError("An answer was started twice.")
        self.response_started = True
        self.expects_continue = False
        headers = self._connection.server_state.default_headers + given
        by_name = dict(given)
        lines = [_STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status]
        lines += [b"%b: %b\r\n" % header for header in headers]
        length = by_name.get(b"content-length")
        self._is_head_only = self._is_head_only or status in (204, 304)
        if length is not None:
            self._left = int(length)
        elif self._is_old:
            self.keeps_alive = False  # the answer ends with the connection
            self._is_chunked = False
            self._left = -1
        elif not self._is_head_only:
            self._is_chunked = True
            lines.append(b"transfer-encoding: chunked\r\n")
        if b"connection" in by_name:
            self.keeps_alive = self.keeps_alive and b"close" not in by_name[b"connection"].lower()
        elif not self.keeps_alive:
            lines.append(b"connection: close\r\n")
        head = b"".join(lines)
        if head.count(b"\n") != len(lines) or head.count(b"\r") != len(lines) or b"\0" in head:
            self.response_started = False
            raise RuntimeError("A header of the answer has a line break in it.")
        self._head = head + b"\r\n"

    def _flush(self) -> None:
        """Send the head alone: the body takes its time."""
        if self._head is not None and not self.disconnected:
            head, self._head = self._head, None
            self._transport.write(head)

    def write(self, piece: bytes) -> bool:
        """See `DirectSend`."""
        if self.disconnected or not piece:
            return True
        if not self.response_started or self.response_complete:
            raise RuntimeError("A piece of an answer came before its start or after its end.")
        if self._is_chunked:
            data = b"%x\r\n%b\r\n" % (len(piece), piece)
        elif self._is_head_only:
            data = b""
        else:
            self._count(piece)
            data = piece
        if self._head is not None:
            data = self._head + data
            self._head = None
        if data:
            self._transport.write(data)
        return not self._connection.is_writing_paused

    def _finish(self, piece: bytes) -> None:
        if not self.response_started or self.response_complete:
            raise RuntimeError("The end of an answer came before its start or after its end.")
        if self._is_chunked:
            data = b"%x\r\n%b\r\n0\r\n\r\n" % (len(piece), piece) if piece else _LAST_CHUNK
        elif self._is_head_only:
            data = b""
        else:
            self._count(piece)
            if self._left > 0:
                raise RuntimeError("An answer is shorter than its Content-Length.")
            data = piece
        if self._head is not None:
            data = self._head + data
            self._head = None
        if data:
            self._transport.write(data)
        self.response_complete = True
        if self._waiters:
            self._wake()
        self._connection.response_done(keeps_alive=self.keeps_alive)

    def _count(self, piece: bytes) -> None:
        if self._left >= 0:
            self._left -= len(piece)
            if self._left < 0:
                raise RuntimeError("An answer is longer than its Content-Length.")

    def when_ready(self, callback: Callable[[], None]) -> None:
        """See `DirectSend`."""
        if self.disconnected or not self._connection.is_writing_paused:
            callback()
        else:
            self._on_ready = (*self._on_ready, callback)

    def when_gone(self, callback: Callable[[], None]) -> None:
        """Call back once, when the client leaves before its answer is complete."""
        if self.disconnected:
            callback()
        else:
            self._on_gone = (*self._on_gone, callback)


class _Receive(DirectReceive):
    __slots__ = ("_cycle",)

    def __init__(self, cycle: Cycle) -> None:
        self._cycle = cycle

    def __call__(self) -> Awaitable[Message]:
        return self._cycle.receive()

    def take_whole(self) -> bytes | None:
        return self._cycle.take_whole()

    def when_gone(self, callback: Callable[[], None]) -> bool:
        self._cycle.when_gone(callback)
        return True
