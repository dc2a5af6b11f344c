"""A streamed answer: server-sent events over ASGI, alive through long silences, honest about failures."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterable

from langport.api.http import Header, Send
from langport.direct import DirectSend
from langport.errors import ApiError, EngineFailed
from langport.wire.dialect import OPENAI, Dialect

logger = logging.getLogger(__name__)

SILENCE_S = 15.0
"""After so long without an event a ping is sent, well below the idle limits of proxies (30 s and more)."""


async def stream_events(
    send: Send,
    events: AsyncGenerator[bytes, None],
    headers: Iterable[Header],
    request_id: str,
    dialect: Dialect = OPENAI,
) -> None:
    """Send what the generator yields, then what ends a stream in this dialect (`[DONE]`).

    The answer begins with the first event or the first ping, so that what fails before is still a plain
    error. Raises: ApiError, when nothing was sent yet; later failures end the stream with an error event.
    """
    stream = _Stream(send, headers, dialect.ping)
    try:
        async for event in events:
            if not stream.write_now(event):
                await stream.write(event)
        await stream.write(dialect.done, is_last=True)
    except Exception as error:
        if not stream.is_started:
            raise
        await stream.write(dialect.error_event(_told(error, request_id), request_id), is_last=True)
    finally:
        stream.close()
        await events.aclose()


def _told(error: Exception, request_id: str) -> ApiError:
    """The error as the client is told of it."""
    if isinstance(error, ApiError):
        return error
    logger.error("request %s failed while it was streamed", request_id, exc_info=error)
    return EngineFailed("The server failed while it was answering; the cause is in its log.")


class _Stream:
    """The ASGI side: starts on the first write, and sends a ping when nothing was written for a while."""

    def __init__(self, send: Send, headers: Iterable[Header], ping: bytes) -> None:
        self.is_started = False
        self._ping_event = ping
        self._send = send
        self._direct = send if isinstance(send, DirectSend) else None
        self._is_slow = False
        """The client does not read; a message waits for it."""
        self._headers = headers
        self._loop = asyncio.get_running_loop()
        self._written_s = self._loop.time()
        self._timer = self._loop.call_later(SILENCE_S, self._check_silence)
        self._ping: asyncio.Task[None] | None = None

    def write_now(self, event: bytes) -> bool:
        """Send it without waiting, where the connection allows that; False: `write` it."""
        direct = self._direct
        if direct is None or not self.is_started or self._ping is not None or self._is_slow:
            return False
        self._written_s = self._loop.time()
        if not direct.write(event):
            self._is_slow = True
            direct.when_ready(self._go_on)
        return True

    def _go_on(self) -> None:
        self._is_slow = False

    async def write(self, event: bytes, *, is_last: bool = False) -> None:
        if self._ping is not None:
            await self._ping
            self._ping = None
        await self._write(event, is_last)

    def close(self) -> None:
        self._timer.cancel()
        if self._ping is not None:
            self._ping.cancel()

    async def _write(self, event: bytes, is_last: bool = False) -> None:
        if not self.is_started:
            self.is_started = True
            await self._start()
        self._written_s = self._loop.time()
        await self._send({"type": "http.response.body", "body": event, "more_body": not is_last})

    async def _start(self) -> None:
        fixed = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
        ]
        await self._send({"type": "http.response.start", "status": 200, "headers": [*fixed, *self._headers]})

    def _check_silence(self) -> None:
        wait_s = self._written_s + SILENCE_S - self._loop.time()
        if wait_s <= 0:
            if self._ping is None or self._ping.done():
                self._ping = self._loop.create_task(self._write(self._ping_event))
            wait_s = SILENCE_S
        self._timer = self._loop.call_later(wait_s, self._check_silence)
