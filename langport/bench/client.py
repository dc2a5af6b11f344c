"""Requests over HTTP/1.1 whose answers are timed piece by piece, at little cost to the machine that is measured.

A connection carries one request at a time and is kept for the next. Bytes are parsed where the event loop hands them
over, so that a piece's time is that of its arrival. Times are seconds of the client's clock. No proxies, no redirects.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httptools
import msgspec

Clock = Callable[[], float]


class RequestFailed(Exception):
    """A request has no good answer. `kind` is a word or two, by which failures are counted."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Details | None = None

    @property
    def cached_tokens(self) -> int:
        details = self.prompt_tokens_details
        return (details.cached_tokens or 0) if details else 0


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None

    @property
    def has_text(self) -> bool:
        delta = self.delta
        return bool(self.text or (delta and (delta.content or delta.reasoning or delta.reasoning_content)))


class _Body(msgspec.Struct):
    """What is read of a chunk, and of the answer of /embeddings."""

    choices: list[_Choice] = []
    data: list[msgspec.Raw] = []
    usage: Usage | None = None
    error: Any = None


_DECODER = msgspec.json.Decoder(_Body)


@dataclass
class Answer:
    """An answer while it comes."""

    pieces_s: list[float] = field(default_factory=list)
    """When each event came that brought text."""
    usage: Usage | None = None
    num_items: int = 0
    """Of an embeddings answer's `data`."""
    failure: RequestFailed | None = None
    """Why the answer is none: the first reason."""
    _status: int = 0
    _is_stream: bool = False
    _rest: bytes = b""

    def begin(self, status: int, content_type: bytes) -> None:
        self._status = status
        self._is_stream = status == 200 and content_type.startswith(b"text/event-stream")

    def receive(self, data: bytes, now: float) -> None:
        """A part of the body that came at `now`."""
        self._rest += data
        if self._is_stream:
            *lines, self._rest = self._rest.split(b"\n")
            for line in lines:
                self._read_line(line, now)

    def end(self) -> None:
        """The body is complete."""
        if self._status != 200:
            self._fail(f"status {self._status}", _message(self._rest) or "no body")
        elif self._is_stream:
            self._read_line(self._rest, 0.0)
        else:
            self._read(self._rest, None)

    def _read_line(self, line: bytes, now: float) -> None:
        if line.startswith(b"data:"):
            data = line[5:].strip()
            if data != b"[DONE]":
                self._read(data, now)

    def _read(self, data: bytes, now: float | None) -> None:
        try:
            body = _DECODER.decode(data)
        except msgspec.DecodeError as error:
            self._fail("not understood", f"{error}: {_start(data)}")
            return
        if body.error is not None:
            self._fail("error in the stream", _message(data))
        if body.usage is not None:
            self.usage = body.usage
        self.num_items += len(body.data)
        if now is not None and any(choice.has_text for choice in body.choices):
            self.pieces_s.append(now)

    def _fail(self, kind: str, message: str) -> None:
        self.failure = self.failure or RequestFailed(kind, message)


class Connection(asyncio.Protocol):
    """One connection. `ask` once its answer is over may be called again while `is_open`."""

    def __init__(self, clock: Clock) -> None:
        self.is_open = False
        self.is_reused = False
        self.has_begun = False
        """Something of the current answer has come."""
        self._clock = clock
        self._now = 0.0
        self._answer = Answer()
        self._transport: asyncio.Transport | None = None
        self._done: asyncio.Future[None] | None = None
        self._content_type = b""
        self._is_framed = False
        self._has_headers = False

    def ask(self, request: bytes, answer: Answer) -> asyncio.Future[None]:
        """Send it; the future is done when the answer is complete, and raises RequestFailed when none will be."""
        assert self._transport is not None, "ask comes after connection_made"
        self._parser = httptools.HttpResponseParser(self)
        self._answer, self._content_type = answer, b""
        self._is_framed = self._has_headers = self.has_begun = False
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._done

    def close(self) -> None:
        self.is_open = False
        if self._transport is not None:
            self._transport.abort()

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport, self.is_open = transport, True

    def data_received(self, data: bytes) -> None:
        if self._done is None:
            self.close()  # what nobody asked for
            return
        self._now, self.has_begun = self._clock(), True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._finish(RequestFailed("not understood", f"no HTTP/1.1: {error}"))
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        if exc is None and self._has_headers and not self._is_framed:
            self._answer.end()  # a body without a length ends with its connection
            self._finish(None)
        when = "within its answer" if self.has_begun else "before its answer"
        self._finish(RequestFailed("connection lost", f"the server closed the connection {when}"))

    # What the parser calls.

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name == b"content-type":
            self._content_type = value.lower()
        self._is_framed |= name in (b"content-length", b"transfer-encoding")

    def on_headers_complete(self) -> None:
        self._has_headers = True
        self._answer.begin(self._parser.get_status_code(), self._content_type)

    def on_body(self, body: bytes) -> None:
        self._answer.receive(body, self._now)

    def on_message_complete(self) -> None:
        self._answer.end()
        if not self._parser.should_keep_alive():
            self.is_open = False
        self._finish(None)

    def _finish(self, failure: RequestFailed | None) -> None:
        done, self._done = self._done, None
        if done is None or done.done():
            return
        if failure is None:
            done.set_result(None)
        else:
            done.set_exception(failure)


class Client:
    """A server's clients: as many connections as requests are open at once."""

    def __init__(self, url: str, api_key: str | None, timeout_s: float, clock: Clock = time.perf_counter) -> None:
        """`url` is the base URL, /v1 included, as `check.server.base_url` makes it."""
        parts = urlsplit(url)
        self.clock = clock
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._base = parts.path.rstrip("/")
        self._timeout_s = timeout_s
        self._free: list[Connection] = []
        key = f"Authorization: Bearer {api_key}\r\n" if api_key else ""
        self._head = f"Host: {parts.netloc}\r\n{key}Accept: */*\r\nContent-Type: application/json\r\n"

    async def post(self, path: str, body: bytes) -> Answer:
        """The whole answer. Raises: RequestFailed when there is none, whatever the reason."""
        head = f"POST {self._base}{path} HTTP/1.1\r\n{self._head}Content-Length: {len(body)}\r\n\r\n"
        answer = Answer()
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._ask(head.encode("latin-1") + body, answer)
        except TimeoutError:
            raise RequestFailed("timeout", f"no whole answer within {self._timeout_s:g} s") from None
        except OSError as error:
            raise RequestFailed("no connection", f"{self._host}:{self._port}: {error.strerror or error}") from None
        if answer.failure is not None:
            raise answer.failure
        return answer

    def close(self) -> None:
        for connection in self._free:
            connection.close()
        self._free.clear()

    async def _ask(self, request: bytes, answer: Answer) -> None:
        while True:
            connection = await self._connection()
            try:
                await connection.ask(request, answer)
            except RequestFailed:
                # The server may have closed a kept connection just as the request went out; nothing was answered.
                if connection.is_reused and not connection.has_begun:
                    continue
                raise
            except BaseException:
                connection.close()
                raise
            connection.is_reused = True
            if connection.is_open:
                self._free.append(connection)
            else:
                connection.close()
            return

    async def _connection(self) -> Connection:
        while self._free:
            connection = self._free.pop()
            if connection.is_open:
                return connection
            connection.close()
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            lambda: Connection(self.clock), self._host, self._port, ssl=self._tls
        )
        return connection


def _message(body: bytes) -> str:
    """The message of an error's body, in whichever form it has one."""
    try:
        error = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return _start(body)
    for name in ("error", "message"):
        if isinstance(error, dict) and name in error:
            error = error[name]
    return error if isinstance(error, str) else _start(body)


def _start(body: bytes) -> str:
    text = " ".join(body.decode("utf-8", "replace").split())
    return text if len(text) <= 200 else text[:197] + "..."
