"""A streamed answer: server-sent events over ASGI, alive through long silences, honest about failures."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterable

from langport.api.http import Header, Send
from langport.errors import ApiError, EngineFailed
from langport.wire import sse
from langport.wire.error import encode_error

logger = logging.getLogger(__name__)

SILENCE_S = 15.0
"""After so long without an event a comment is sent, well below the idle limits of proxies (30 s and more)."""


async def stream_events(
    send: Send,
    events: AsyncGenerator[bytes, None],
    headers: Iterable[Header],
    request_id: str,
    *,
    end: bytes = sse.DONE,
) -> None:
    """Send what the generator yields, then `end`.

    The answer begins with the first event or the first comment, so that what fails before is still a plain
    error. Raises: ApiError, when nothing was sent yet; later failures end the stream with an error event.
    """
    stream = _Stream(send, headers)
    try:
        async for event in events:
            await stream.write(event)
        await stream.write(end, is_last=True)
    except Exception as error:
        if not stream.is_started:
            raise
        await stream.write(_failure(error, request_id), is_last=True)
    finally:
        stream.close()
        await events.aclose()


def _failure(error: Exception, request_id: str) -> bytes:
    """The event that ends a stream which cannot go on."""
    if not isinstance(error, ApiError):
        logger.error("request %s failed while it was streamed", request_id, exc_info=error)
        error = EngineFailed("The server failed while it was answering; the cause is in its log.")
    return sse.event(encode_error(error))


class _Stream:
    """The ASGI side: starts on the first write, and sends a comment when nothing was written for a while."""

    def __init__(self, send: Send, headers: Iterable[Header]) -> None:
        self.is_started = False
        self._send = send
        self._headers = headers
        self._loop = asyncio.get_running_loop()
        self._written_s = self._loop.time()
        self._timer = self._loop.call_later(SILENCE_S, self._check_silence)
        self._ping: asyncio.Task[None] | None = None

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
                self._ping = self._loop.create_task(self._write(sse.PING))
            wait_s = SILENCE_S
        self._timer = self._loop.call_later(wait_s, self._check_silence)
