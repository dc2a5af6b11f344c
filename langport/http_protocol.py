"""HTTP/1.1 with clients, over uvicorn's: what never ends, or what two readers understand differently, is refused.

httptools reads messages strictly; here is what they leave open: how long a head may be and how long it may
take, bodies and answers that do not go on, fields behind a body, changes of the protocol, and how many connections
there are. Nothing of it costs a timer or a task per connection: one look around a second sees them all.
Source: RFC 9112 (sections 2.2, 6 and 7.1), RFC 9110 (6.5 trailers, 7.8 Upgrade).
"""

from __future__ import annotations

import asyncio
import logging
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any

import httptools
from uvicorn.config import Config
from uvicorn.server import ServerState

from langport.errors import InvalidRequest, PayloadTooLarge
from langport.gateway.asgi import Header
from langport.http_connection import Cycle, HttpConnection
from langport.known_head import KnownHead
from langport.wire.error import encode_error

logger = logging.getLogger("langport.http")

MAX_HEAD_BYTES = 64 * 1024
"""Of a request line and its headers; also of what is around the pieces of a body."""
MAX_HEADERS = 256
LINGER_S = 10.0
"""How long a client that was answered may go on to send the body that nobody reads."""
MIN_BYTES_PER_S = 512
"""A body that comes more slowly than this over all, but for the time that any client has, is given up."""
LOOK_S = 1.0
"""Between two looks at all connections, by which times are exceeded at most."""
TELL_S = 60.0
"""Between two lines of the log about connections that were cut off."""
SPARE_FILES = 256
"""Files, sockets to a store and the like that this process opens beside its connections."""
SHARE_ENDED = 0.05
"""Of the connections there may be, how many are ended at once when there are too many, so that it is done seldom."""

_NOT_HTTP = "The request is not valid HTTP/1.1, so nothing that follows on this connection can be told apart."
_TOO_LONG = f"The head of the request is longer than {MAX_HEAD_BYTES} bytes or {MAX_HEADERS} headers."
_TOO_SLOW = "The request did not arrive in time."
_PHRASES = {400: b"Bad Request", 408: b"Request Timeout", 431: b"Request Header Fields Too Large"}


class State(Enum):
    """What a connection waits for, by which it is told how long it may."""

    HEAD = "head"
    """The rest of a request's head."""
    IDLE = "idle"
    """A request: the first one, or another."""
    UNREAD = "unread body"
    """Its request was answered before its body had come, which goes on to come."""
    BODY = "body"
    """The rest of a request's body."""
    STUCK = "answer"
    """The client to read what it was sent."""
    WORKING = "working"
    """This server; or the client reads as it should."""


class Guard:
    """Makes the connections of one server, and looks after them."""

    def __init__(
        self,
        *,
        client_timeout_s: float,
        keep_alive_s: float,
        max_connections: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`client_timeout_s`: longest time for a head, and that a body or the reading of an answer may stand still.

        `max_connections`: as many as this process may have files, if not given.
        """
        self.max_connections = max_connections or connections_there_may_be()
        self._client_timeout_s = client_timeout_s
        self._clock = clock
        self._limits_s = {
            State.HEAD: client_timeout_s,
            State.IDLE: keep_alive_s,
            State.UNREAD: LINGER_S,
            State.STUCK: client_timeout_s,
        }
        self._connections: set[GuardedProtocol] = set()
        self._looking: asyncio.TimerHandle | None = None
        self._looked_s = 0.0
        self._untold: Counter[str] = Counter()
        self._told_s = float("-inf")

    def __call__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> GuardedProtocol:
        """What uvicorn calls for a new connection."""
        return GuardedProtocol(config, server_state, app_state, _loop, guard=self)

    def add(self, connection: GuardedProtocol) -> None:
        """It is there; others that wait for their clients may have to go for it."""
        self._connections.add(connection)
        connection.since_s = self._clock()
        if len(self._connections) > self.max_connections:
            self._make_room(connection)
        if self._looking is None:
            self._looked_s = connection.since_s
            self._looking = connection.loop.call_later(LOOK_S, self._look_again, connection.loop)

    def discard(self, connection: GuardedProtocol) -> None:
        """It is gone."""
        self._connections.discard(connection)

    def count(self, why: str) -> None:
        """A connection was ended; the log says so in sums, or whoever can connect could fill it."""
        self._untold[why] += 1

    def look(self) -> None:
        """End what has waited too long for its client."""
        now = self._clock()
        passed_s, self._looked_s = now - self._looked_s, now
        for connection in list(self._connections):
            state, mark = connection.state()
            if (state, mark) != connection.seen:
                connection.seen, connection.since_s = (state, mark), now
            elif state is State.BODY:
                if connection.is_reading_paused:
                    connection.since_s += passed_s  # it is this server that does not read
                elif now - connection.since_s > self._client_timeout_s + connection.num_body_bytes / MIN_BYTES_PER_S:
                    self._end(connection, state)
            elif now - connection.since_s > self._limits_s.get(state, float("inf")):
                self._end(connection, state)
        self._tell(now)

    def _look_again(self, loop: asyncio.AbstractEventLoop) -> None:
        self._looking = None
        self.look()
        if self._connections:
            self._looking = loop.call_later(LOOK_S, self._look_again, loop)

    def _end(self, connection: GuardedProtocol, state: State) -> None:
        if state in (State.HEAD, State.BODY):
            connection.refuse(408, _TOO_SLOW, "too slow")
        elif state is State.STUCK:
            self.count("does not read its answer")
            connection.transport.abort()
        else:
            connection.transport.close()

    def _make_room(self, newest: GuardedProtocol) -> None:
        """End some that wait for their clients, the ones without a request first; else the newest itself."""
        ended = 0
        for connection in self._expendable(newest):
            self.count("too many connections")
            self._connections.discard(connection)
            connection.transport.abort()
            ended += 1
            if ended >= max(1, SHARE_ENDED * self.max_connections):
                return
        if not ended:
            self.count("too many connections")
            self._connections.discard(newest)
            newest.transport.abort()

    def _expendable(self, newest: GuardedProtocol) -> Iterator[GuardedProtocol]:
        """Oldest first of each kind. Never one whose request has come and whose answer has not."""
        kinds: dict[State, list[GuardedProtocol]] = {State.HEAD: [], State.UNREAD: [], State.IDLE: [], State.BODY: []}
        for connection in self._connections:
            state, _ = connection.state()
            if connection is not newest and state in kinds:
                kinds[state].append(connection)
        for found in kinds.values():
            yield from sorted(found, key=lambda connection: connection.since_s)

    def _tell(self, now: float) -> None:
        if self._untold and now - self._told_s >= TELL_S:
            kinds = ", ".join(f"{number} {why}" for why, number in self._untold.most_common())
            logger.warning("Connections of clients that were ended: %s.", kinds)
            self._untold.clear()
            self._told_s = now


class GuardedProtocol(HttpConnection):
    """One connection."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        guard: Guard,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._guard = guard
        self._num_around = 0
        """Bytes since the last one of a body, or since the last request."""
        self.num_body_bytes = 0
        """Of the current request's body."""
        self.seen: tuple[State, object] = (State.IDLE, None)
        """At the last look, and `since_s` when."""
        self.since_s = 0.0
        self._is_between = True
        """The parser has read whole messages, and may read more."""
        self._known: KnownHead | None = None
        """Of the latest request, if it came in one piece."""
        self._known_scope: dict[str, Any] = {}

    def state(self) -> tuple[State, object]:
        """And something that changes when the connection gets further."""
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            if self.scope is not None and "path" not in self.scope:
                return State.HEAD, id(self.scope)
            return (State.UNREAD if cycle is not None and cycle.more_body else State.IDLE), cycle
        if cycle.more_body:
            return State.BODY, cycle
        if self.is_writing_paused:
            return State.STUCK, self.transport.get_write_buffer_size()
        return State.WORKING, None

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._guard.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._guard.discard(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        was_between = self._is_between
        if was_between and self._known is not None and (message := self._known.read(data)) is not None:
            self._take_known(*message)
            return
        self._num_around += len(data)
        self._feed(data)
        if self._num_around > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.refuse(431, _TOO_LONG, "too long a head")
        elif was_between and self._is_between:
            self._get_to_know(data)

    def _get_to_know(self, data: bytes) -> None:
        """Remember the head of the newest request, if that is all that came."""
        if self.scope is not None:
            self._known = KnownHead.of(data, self.scope["headers"])
            self._known_scope = self.scope

    def _take_known(self, headers: list[Header], body: bytes) -> None:
        """A whole request, with the head of the one before it."""
        scope = self.scope = {**self._known_scope, "headers": headers}
        self._num_around = 0
        self.num_body_bytes = len(body)
        cycle = Cycle(self, scope, keeps_alive=True, is_old=False)
        self.take_turn(cycle)
        cycle.add(body)
        cycle.end()

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._go_on_without_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self.refuse(400, _NOT_HTTP, "not HTTP")

    # What the parser calls.

    def on_message_begin(self) -> None:
        self._is_between = False
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            return  # the parser stops here, and `_feed` goes on
        self.num_body_bytes = 0
        if len(self.headers) > MAX_HEADERS or self._is_too_long():
            self.refuse(431, _TOO_LONG, "too long a head")
            raise httptools.HttpParserError  # so that nothing that follows is read
        super().on_headers_complete()
        self.headers = []  # what comes behind the body is no header (RFC 9110, 6.5.1)

    def _is_too_long(self) -> bool:
        """Of what came in one piece with its body, or the next request."""
        if self._num_around <= MAX_HEAD_BYTES:
            return False
        return len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > MAX_HEAD_BYTES

    def on_body(self, body: bytes) -> None:
        self._num_around = 0
        self.num_body_bytes += len(body)
        self.newest.add(body)

    def on_message_complete(self) -> None:
        if self.scope is None or "path" not in self.scope:
            return  # of a head with an Upgrade; the message is read anew
        self._num_around = 0
        newest = self.newest
        self._is_between = newest.keeps_alive and not newest.expects_continue and not self._app_state
        newest.end()

    def _go_on_without_upgrade(self, rest: bytes) -> None:
        """A client that offers another protocol (h2c, as some do with every first request) is answered in this one."""
        method = self.parser.get_method()
        if method == b"CONNECT":
            self.refuse(400, "This server is no proxy: CONNECT is not possible.", "not HTTP")
            return
        lines = [b"%b %b HTTP/%b\r\n" % (method, self.url, self.parser.get_http_version().encode())]
        lines += [b"%b: %b\r\n" % (name, value) for name, value in self.headers if name != b"upgrade"]
        self.parser = self.new_parser()
        self._feed(b"".join((*lines, b"\r\n", rest)))

    # The end.

    def refuse(self, status: int, message: str, why: str) -> None:
        """End the connection, with an error where no other answer is under way."""
        if self.transport.is_closing():
            return
        self._guard.count(why)
        if self.cycle is not None and not self.cycle.response_complete and self.cycle.response_started:
            self.transport.close()  # bytes of an error would be taken for its answer's
            return
        kind = PayloadTooLarge if status == 431 else InvalidRequest
        body = encode_error(kind(message))
        head = b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
        self.transport.write(head % (status, _PHRASES[status], len(body)) + body)
        self.transport.close()


def connections_there_may_be() -> int:
    """By the files that this process may open, as many as it can be allowed; half are for upstreams."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    most = 1 << 20 if hard == resource.RLIM_INFINITY else hard
    return max(16, (most - SPARE_FILES) // 2)
