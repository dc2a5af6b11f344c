"""HTTP/1.1 to one server, for relaying: kept connections, back-pressure, timeouts, TLS, a proxy on the way.

Knows nothing of models. What the server does wrong becomes an UpstreamFailed or UpstreamTimeout that names it by
scheme, host and port. Redirects are never followed.
Source: RFC 9112; answers that two readers could understand differently (section 6.3) are refused.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import ssl
import time
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import unquote, urlsplit

import httptools

from langport.errors import ConfigError, InvalidRequest, UpstreamFailed, UpstreamTimeout
from langport.gateway.asgi import ClientGone, Header
from langport.known_head import KnownHead
from langport.settings.upstreams import UpstreamSettings

MAX_HEAD_BYTES = 64 * 1024
"""Of an answer's status line and headers; also of what is around a body's pieces."""
HIGH_WATER = 256 * 1024
"""Bytes of an answer that wait for a slow client before the server is not read any further."""
JOIN_BYTES = 64 * 1024
"""Bodies up to this size are sent in one piece with the head."""
MAX_SWEEP_S = 1.0
"""Between two looks at the clock, by which timeouts are late at most."""

_OK = b"HTTP/1.1 200 "

Clock = Callable[[], float]


@dataclass(frozen=True)
class Address:
    """Where a URL leads."""

    scheme: str
    host: str
    port: int
    path: str
    """Without a slash at the end; empty at the root."""
    credentials: bytes | None
    """The value of an Authorization header, of what the URL says before its @."""

    @classmethod
    def of(cls, url: str) -> Address:
        """Of a URL that the settings have checked."""
        parts = urlsplit(url)
        credentials = None
        if parts.username is not None or parts.password is not None:
            pair = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
            credentials = b"Basic " + b64encode(pair.encode())
        port = parts.port or (443 if parts.scheme == "https" else 80)
        return cls(parts.scheme, parts.hostname or "", port, parts.path.rstrip("/"), credentials)

    @property
    def authority(self) -> str:
        """As the Host header has it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.scheme == "https" else 80) else f"{host}:{self.port}"

    @property
    def origin(self) -> str:
        """How messages name the server."""
        return f"{self.scheme}://{self.authority}"


class Stale(Exception):
    """A kept connection was closed before a byte of the answer came."""


class Leaver:
    """The client of a request, who may leave at any time; who works for it is told here."""

    __slots__ = ("_callback", "has_left")

    def __init__(self) -> None:
        self.has_left = False
        self._callback: Callable[[], object] | None = None

    def leave(self) -> None:
        """It has left."""
        self.has_left = True
        if self._callback is not None:
            self._callback()

    def watch(self, callback: Callable[[], object] | None) -> None:
        """Call back when it leaves, at once if it has, instead of whom was called until now."""
        self._callback = callback
        if self.has_left and callback is not None:
            callback()

    async def wait_for(self, work: asyncio.Future[Any]) -> None:
        """Wait until the work is done. Raises: ClientGone if it leaves before that; the work goes on."""
        left: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.watch(lambda: None if left.done() else left.set_result(None))
        try:
            either: set[asyncio.Future[Any]] = {work, left}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.watch(None)
        if not work.done():
            raise ClientGone


class Connection(asyncio.Protocol):
    """One connection and the answer that comes over it."""

    def __init__(self, client: HttpClient) -> None:
        self._client = client
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._is_paused = False
        self._is_used_again = False
        self.is_closed = False
        self.deadline: float | None = None
        """When what is being waited for is late."""
        self.has_come = False
        """Something, after which the deadline begins anew with the next look at the clock."""
        self.total_deadline: float | None = None
        self.idle_until = 0.0
        self._leaver: Leaver | None = None
        self._take: Callable[[bytes], bool] | None = None
        """Gets the pieces of the body where they are found."""
        self._begin()

    def _begin(self) -> None:
        self.status = 0
        self.headers: list[Header] = []
        self._chunks: list[bytes] = []
        self._num_buffered = 0
        self._num_around = 0
        """Bytes that have come since the last one of a body."""
        self._head_bytes = 0
        self._has_any = False
        self._has_head = False
        self._has_length = False
        self._has_coding = False
        self.ends_with_connection = False
        """The answer says nothing of its length: it is over when the connection is, for whatever reason."""
        self.is_complete = False
        self._may_be_kept = False
        self._failure: Exception | None = None

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's have no base class

    def data_received(self, data: bytes) -> None:
        if self.is_complete:
            self.close()  # nobody asked for more
            return
        is_first = not self._has_any
        known = self._client.known
        if is_first and known is not None and (message := known.read(data)) is not None:
            self._take_known(*message)
            return
        self._has_any = True
        self._num_around += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._refuse(f"it is not HTTP ({error})")
        except httptools.HttpParserUpgrade:
            self._refuse("it changes the protocol")
        if self._num_around > MAX_HEAD_BYTES and not self.is_complete:
            self._refuse(f"more than {MAX_HEAD_BYTES} bytes of headers")
        if is_first and self._may_be_kept and not self._failure:
            self._client.known = KnownHead.of(data, self.headers) if data.startswith(_OK) else None
        if self._take is not None:
            self.has_come = True
            self._pour(self._take)
        elif self._waiter is not None and (self._chunks or self._has_head or self._failure):
            self._wake()
        if self._num_buffered > HIGH_WATER and not self._is_paused and not self.is_closed and self._transport:
            self._is_paused = True
            self._transport.pause_reading()

    def _take_known(self, headers: list[Header], body: bytes) -> None:
        """A whole answer, with the head of one that was good and let the connection be kept."""
        self._has_any = self._has_head = self.is_complete = self._may_be_kept = True
        self.status = 200
        self.headers = headers
        if body:
            self._chunks.append(body)
        self._wake()

    def eof_received(self) -> None:
        return None  # nothing more can be asked here: close

    def connection_lost(self, error: Exception | None) -> None:
        self.is_closed = True
        self._client.forget(self)
        if self.is_complete or self._failure:
            pass
        elif self._has_head and self.ends_with_connection and error is None:
            self.is_complete = True
        elif self._is_used_again and not self._has_any:
            self._failure = Stale()
        else:
            when = "while it answered" if self._has_any else "without an answer"
            self._failure = self._client.failed(f"closed the connection {when}")
        self._wake()

    # What the parser calls.

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(f"more than {MAX_HEAD_BYTES} bytes of headers")
        if self._has_head:
            return  # a trailer
        name = name.lower()
        if name == b"content-length":
            if self._has_length or not value.isdigit():
                self._refuse("it has several lengths, or one that is no number")
            self._has_length = True
        elif name == b"transfer-encoding":
            if self._has_coding or value.strip().lower() != b"chunked":
                self._refuse("it has a transfer coding other than chunked")
            self._has_coding = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if self.is_complete or status < 200:
            return
        if self._has_length and self._has_coding:
            self._refuse("it has a length and a transfer coding")
        self.status = status
        self.ends_with_connection = not (self._has_length or self._has_coding or status in (204, 304))
        self._has_head = True

    def on_body(self, data: bytes) -> None:
        if not self.is_complete:
            self._num_around = 0
            self._chunks.append(data)
            self._num_buffered += len(data)

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status == 101:
            self._refuse("it changes the protocol")
        elif status < 200:  # "go on", and the answer follows
            self.headers.clear()
            self._has_length = self._has_coding = False
        elif self.is_complete:
            self.close()  # nobody asked for a second answer
        else:
            self.is_complete = True
            self._may_be_kept = self._parser.should_keep_alive()  # afterwards the parser has forgotten

    def _refuse(self, what: str) -> None:
        """The answer cannot be understood, or only in more than one way."""
        if self.is_complete:
            self.close()
        elif self._failure is None:
            self._failure = self._client.failed(f"sent an answer that cannot be used: {what}")
            self._chunks.clear()
            self.close()

    # What the relay calls.

    def ask(self, head: bytes, body: bytes) -> None:
        """Send a request; `read_head` tells when the server has hung up before it could be."""
        assert self._transport is not None
        if self.is_closed or self._transport.is_closing():
            return
        if len(body) <= JOIN_BYTES:
            self._transport.write(head + body)
        else:
            self._transport.write(head)
            self._transport.write(body)

    async def read_head(self, deadline: float) -> None:
        """Wait for `status` and `headers`.

        Raises: UpstreamFailed, UpstreamTimeout, ClientGone, Stale.
        """
        while not self._has_head or self._failure:
            if self._failure:
                raise self._failure
            await self._wait(deadline)

    def take_whole(self) -> bytes | None:
        """The body, if all of it is here; None: `read` it."""
        if not self.is_complete or self._failure:
            return None
        chunks = self._chunks
        body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        chunks.clear()
        return body

    async def read(self) -> bytes:
        """The next piece of the body, as soon as there is any; empty at its end.

        Raises: UpstreamFailed, UpstreamTimeout, ClientGone; what came before has then been read.
        """
        chunks = self._chunks
        while not chunks:
            if self._failure:
                raise self._failure
            if self.is_complete:
                return b""
            await self._wait(self._client.chunk_deadline())
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        chunks.clear()
        self._num_buffered = 0
        if self._is_paused and self._transport is not None:
            self._is_paused = False
            if not self.is_closed:
                self._transport.resume_reading()
        return data

    async def pour(self, take: Callable[[bytes], bool]) -> None:
        """Give the rest of the body to `take`, piece by piece and at once, as `read` would; returns at its end.

        `take` says whether it can have more. If it cannot, the server is not read until `go_on`. Raises: as `read`.
        """
        self._take = take
        self.deadline = self._client.chunk_deadline()
        self._pour(take)
        try:
            while not (self._failure or self.is_complete):
                self._waiter = self._loop.create_future()
                await self._waiter
        finally:
            self._take = self._waiter = self.deadline = None
        if self._failure:
            raise self._failure

    def _pour(self, take: Callable[[bytes], bool]) -> None:
        wants_more = True
        chunks = self._chunks
        if chunks:
            data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
            chunks.clear()
            self._num_buffered = 0
            wants_more = take(data)
        if self.is_complete or self._failure:
            self._wake()
        elif not wants_more and self._transport is not None and not self._is_paused:
            self.deadline = None
            self._is_paused = True
            self._transport.pause_reading()

    def go_on(self) -> None:
        """Whoever gets the pieces can have more."""
        if self._is_paused and self._take is not None and not self.is_closed and self._transport is not None:
            self._is_paused = False
            self.deadline = self._client.chunk_deadline()
            self._transport.resume_reading()

    async def _wait(self, deadline: float) -> None:
        self._waiter = self._loop.create_future()
        self.deadline = deadline
        try:
            await self._waiter
        finally:
            self._waiter = self.deadline = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def expire(self) -> None:
        """Waited too long."""
        if self._failure is None and not self.is_complete:
            self._failure = self._client.too_slow(has_begun=self._has_head)
        self.close()
        self._wake()

    def watch(self, leaver: Leaver) -> None:
        """Until the connection is released, end its request as soon as the client leaves."""
        self._leaver = leaver
        leaver.watch(self._leave)

    def _leave(self) -> None:
        """The client has left: end the server's work, and whoever waits here."""
        self._failure = ClientGone()
        self._chunks.clear()
        self.close()
        self._wake()

    def close(self) -> None:
        """Close at once."""
        self.is_closed = True
        if self._transport is not None:
            self._transport.abort()

    def release(self) -> None:
        """The request has ended: keep the connection where that is safe, else close it."""
        if self._leaver is not None:
            self._leaver.watch(None)
            self._leaver = None
        transport = self._transport
        if (
            transport is None
            or self.is_closed
            or self._failure
            or not self.is_complete
            or self._chunks
            or transport.is_closing()
            or transport.get_write_buffer_size()  # answered before all was read: the rest would be the next request
            or not self._may_be_kept
        ):
            self.close()
            return
        if self._is_paused:
            self._is_paused = False
            transport.resume_reading()
        self._client.keep(self)

    def use_again(self) -> bool:
        """Take it from the kept ones; False when it is of no use any more."""
        if self.is_closed or self._transport is None or self._transport.is_closing():
            return False
        self._begin()
        self._is_used_again = True
        return True


class _Tunnel(asyncio.Protocol):
    """Asks a proxy for a way to the server."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._answer = b""
        self.answered: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        """The status line; empty when the proxy hung up or talked nonsense."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).write(self._request)

    def data_received(self, data: bytes) -> None:
        self._answer += data
        head, end, rest = self._answer.partition(b"\r\n\r\n")
        if (end or len(self._answer) > MAX_HEAD_BYTES) and not self.answered.done():
            self.answered.set_result(head.partition(b"\r\n")[0] if end and not rest else b"")

    def connection_lost(self, error: Exception | None) -> None:
        if not self.answered.done():
            self.answered.set_result(b"")


class HttpClient:
    """Asks one server."""

    def __init__(
        self,
        settings: UpstreamSettings,
        environment: Mapping[str, str],
        *,
        clock: Clock = time.monotonic,
    ) -> None:
        """`environment` says which proxy is used where the settings do not. Contacts nobody."""
        self._settings = settings
        self.address = Address.of(settings.url)
        self._proxy = _proxy(settings, self.address, environment)
        self._clock = clock
        self._idle: list[Connection] = []
        self._live: set[Connection] = set()
        self._tls: ssl.SSLContext | None = None
        self._sweeping: asyncio.TimerHandle | None = None
        self.known: KnownHead | None = None
        """Of the latest answer with status 200 that came in one piece and left its connection open."""
        shortest_s = min(
            settings.first_byte_timeout_s,
            settings.chunk_timeout_s,
            settings.idle_timeout_s,
            settings.total_timeout_s or MAX_SWEEP_S,
        )
        self._sweep_s = min(MAX_SWEEP_S, shortest_s / 4)
        self._target = ""
        self._preamble = f"host: {self.address.authority}\r\n".encode()
        if self._proxy is not None and self.address.scheme == "http":
            self._target = self.address.origin
            if self._proxy.credentials is not None:
                self._preamble += b"proxy-authorization: " + self._proxy.credentials + b"\r\n"

    def load_tls(self) -> None:
        """Read certificates now instead of with the first connection. Raises: ConfigError naming the setting."""
        if self.address.scheme == "https" and self._tls is None:
            self._tls = _tls_context(self._settings, self.address.origin)

    async def request(
        self,
        method: str,
        path: str,
        lines: bytes,
        body: bytes,
        *,
        leaver: Leaver | None = None,
    ) -> Connection:
        """Ask, and wait for the head of the answer; the caller reads its body, and releases or closes the connection.

        The `leaver` ends the request at any time, the connection included. `lines`: headers as `header_lines` writes
        them, without those about the connection or the body. A kept connection that turns out closed before any byte
        came is replaced once. Raises: UpstreamFailed, UpstreamTimeout, ClientGone.
        """
        length = b"content-length: %d\r\n" % len(body) if body or method == "POST" else b""
        head = b"%b%b%b%b\r\n" % (f"{method} {self._target}{path} HTTP/1.1\r\n".encode(), self._preamble, lines, length)
        now = self._clock()
        first_byte_by = now + self._settings.first_byte_timeout_s
        total_s = self._settings.total_timeout_s
        may_be_kept = True
        while True:
            connection = self._kept() if may_be_kept else None
            if connection is None:
                connection = await self._connect(leaver)
            connection.total_deadline = None if total_s is None else now + total_s
            if leaver is not None:
                connection.watch(leaver)
            try:
                connection.ask(head, body)
                await connection.read_head(first_byte_by)
                return connection
            except Stale:
                connection.release()
                may_be_kept = False
            except BaseException:
                connection.close()
                raise

    # Connections.

    def _kept(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()  # the one used last, so that the others can grow old
            if connection.idle_until > self._clock() and connection.use_again():
                return connection
            connection.close()
        return None

    def keep(self, connection: Connection) -> None:
        """For the next request."""
        connection.total_deadline = None
        connection.idle_until = self._clock() + self._settings.idle_timeout_s
        if len(self._idle) < self._settings.max_idle_connections:
            self._idle.append(connection)
        else:
            connection.close()

    def forget(self, connection: Connection) -> None:
        """It is closed."""
        self._live.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    async def _connect(self, leaver: Leaver | None) -> Connection:
        opening = asyncio.ensure_future(self._open_in_time())
        try:
            await (leaver or Leaver()).wait_for(opening)
        except BaseException:
            opening.cancel()
            opening.add_done_callback(_close_unused)
            raise
        connection = opening.result()
        if not connection.is_closed:  # by a server that hangs up at once
            self._live.add(connection)
            self._sweep_later()
        return connection

    async def _open_in_time(self) -> Connection:
        limit_s = self._settings.connect_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                return await self._open()
        except TimeoutError:
            message = f"The upstream {self.address.origin} could not be reached within {limit_s:g} s."
            raise UpstreamTimeout(message) from None
        except ssl.SSLCertVerificationError as error:
            raise self.failed(f"has a certificate that is not trusted: {error.verify_message}") from None
        except OSError as error:  # ssl.SSLError is one
            why = getattr(error, "reason", None) or _reason(error)
            via = f" through the proxy {self._proxy.origin}" if self._proxy else ""
            raise UpstreamFailed(f"The upstream {self.address.origin} cannot be reached{via}: {why}.") from None

    async def _open(self) -> Connection:
        loop = asyncio.get_running_loop()
        self.load_tls()
        if self._proxy is not None and self._tls is not None:
            return await self._open_tunnel(self._proxy, self._tls)
        to = self._proxy or self.address
        name = self.address.host if self._tls else None
        _, connection = await loop.create_connection(
            lambda: Connection(self), to.host, to.port, ssl=self._tls, server_hostname=name
        )
        return connection

    async def _open_tunnel(self, proxy: Address, tls: ssl.SSLContext) -> Connection:
        """Source: RFC 9110, 9.3.6."""
        loop = asyncio.get_running_loop()
        place = f"{self.address.authority.removesuffix(f':{self.address.port}')}:{self.address.port}"
        lines = [f"CONNECT {place} HTTP/1.1\r\nhost: {place}\r\n".encode()]
        if proxy.credentials is not None:
            lines.append(b"proxy-authorization: " + proxy.credentials + b"\r\n")
        request = b"".join((*lines, b"\r\n"))
        transport, tunnel = await loop.create_connection(lambda: _Tunnel(request), proxy.host, proxy.port)
        try:
            answer = (await tunnel.answered).split(b" ", 2)
            if len(answer) < 2 or not answer[0].startswith(b"HTTP/1.") or not answer[1].startswith(b"2"):
                said = answer[1].decode("ascii", "replace")[:20] if len(answer) > 1 else "nothing that is HTTP"
                raise UpstreamFailed(
                    f"The proxy {proxy.origin} on the way to {self.address.origin} refused; it answered {said}."
                )
            connection = Connection(self)
            secured = await loop.start_tls(transport, connection, tls, server_hostname=self.address.host)
            assert secured is not None
            connection.connection_made(secured)
            return connection
        except BaseException:
            transport.abort()
            raise

    def close(self) -> None:
        """Close all connections, those in use as well."""
        for connection in list(self._live):
            connection.close()
        self._idle.clear()
        if self._sweeping is not None:
            self._sweeping.cancel()

    # Time.

    def chunk_deadline(self) -> float:
        """When a piece that is being waited for is late."""
        return self._clock() + self._settings.chunk_timeout_s

    def expire(self) -> None:
        """Close what is late or has not been used for long."""
        now = self._clock()
        for connection in [idle for idle in self._idle if idle.idle_until <= now]:
            self._idle.remove(connection)
            connection.close()
        for connection in list(self._live):
            if connection.has_come:
                connection.has_come = False
                if connection.deadline is not None:
                    connection.deadline = self.chunk_deadline()
            deadlines = (connection.deadline, connection.total_deadline)
            if any(deadline is not None and deadline <= now for deadline in deadlines):
                connection.expire()

    def _sweep_later(self) -> None:
        """One timer for all connections costs nothing per request, unlike one each."""
        if self._sweeping is None and self._live:
            self._sweeping = asyncio.get_running_loop().call_later(self._sweep_s, self._sweep)

    def _sweep(self) -> None:
        self._sweeping = None
        self.expire()
        self._sweep_later()

    # Errors.

    def failed(self, what: str) -> UpstreamFailed:
        """What went wrong, as clients may read it."""
        return UpstreamFailed(f"The upstream {self.address.origin} {what}.")

    def too_slow(self, *, has_begun: bool) -> UpstreamTimeout:
        """Which limit was passed."""
        settings = self._settings
        what = (
            f"sent nothing for {settings.chunk_timeout_s:g} s in the middle of its answer"
            if has_begun
            else f"did not begin to answer within {settings.first_byte_timeout_s:g} s"
        )
        if settings.total_timeout_s is not None:
            what += f", or did not end within {settings.total_timeout_s:g} s"
        return UpstreamTimeout(f"The upstream {self.address.origin} {what}.")


def header_lines(headers: Iterable[Header]) -> bytes:
    """Headers as they are sent. Raises: InvalidRequest where one of them has a line break in it."""
    lines = [b"%b: %b\r\n" % header for header in headers]
    joined = b"".join(lines)
    if joined.count(b"\n") != len(lines) or joined.count(b"\r") != len(lines) or b"\0" in joined:
        raise InvalidRequest("A header of the request has a line break in it, which no header may have.")
    return joined


def _reason(error: OSError) -> str:
    """Without addresses; names that do not resolve have numbers of their own."""
    number = error.errno or 0
    return os.strerror(number) if number > 0 else error.strerror or str(error)


def _close_unused(opening: asyncio.Future[Connection]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()


def _tls_context(settings: UpstreamSettings, origin: str) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=settings.ca_file)
        if settings.client_certificate is not None:
            # A password would be asked for on the terminal; ours is that there is none.
            context.load_cert_chain(settings.client_certificate, settings.client_certificate_key, password="")
    except (OSError, ValueError) as error:
        files = ", ".join(
            file for file in (settings.ca_file, settings.client_certificate, settings.client_certificate_key) if file
        )
        why = getattr(error, "strerror", None) or type(error).__name__
        raise ConfigError(f"The upstream {origin}: its certificates ({files}) cannot be used: {why}.") from None
    if not settings.verify_tls:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["http/1.1"])
    return context


def _proxy(settings: UpstreamSettings, address: Address, environment: Mapping[str, str]) -> Address | None:
    """The settings' proxy, else the environment's. HTTP_PROXY in capitals is not read: a CGI's clients can set it."""
    if settings.proxy == "none":
        return None
    if settings.proxy is not None:
        return Address.of(settings.proxy)
    names = ("https_proxy", "HTTPS_PROXY") if address.scheme == "https" else ("http_proxy",)
    url = next((environment[name] for name in names if environment.get(name)), "")
    if not url or _is_local(address.host):
        return None
    exceptions = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    for exception in (part.strip().lower().lstrip("*").lstrip(".") for part in exceptions.split(",")):
        if exception in (address.host, address.authority) or (exception and address.host.endswith("." + exception)):
            return None
    if "*" in [part.strip() for part in exceptions.split(",")]:
        return None
    found = Address.of(url if "://" in url else f"http://{url}")
    if found.scheme != "http" or not found.host:
        raise ConfigError(f"The proxy in the environment must begin with http:// and a host; it is {found.origin}.")
    return found


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
