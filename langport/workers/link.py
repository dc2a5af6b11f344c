"""One end of the socket between the supervisor and a worker: calls and their answers, and what needs none.

What is sent in one turn of the event loop goes out together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar, cast

from langport.errors import Unavailable
from langport.frames import Frames, framed
from langport.workers.messages import Failure, Frame, Message, encode

M = TypeVar("M", bound=Message)
Receive = Callable[[int, Any], None]
"""Is given each call with its number, and with 0 what needs no answer."""


class Link(asyncio.Protocol):
    """Sends, calls and answers."""

    def __init__(self, decode: Callable[[bytes], Frame[Any]], receive: Receive, lost: Callable[[], None]) -> None:
        """`lost` is called once, when the other process has ended or `close` was called."""
        self._decode = decode
        self._receive = receive
        self._lost = lost
        self._frames = Frames()
        self._transport: asyncio.WriteTransport | None = None
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._num_calls = 0
        self._waiting: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)

    def data_received(self, data: bytes) -> None:
        for body in self._frames.feed(data):
            frame = self._decode(body)
            if frame.id >= 0:
                self._receive(frame.id, frame.body)
                continue
            answer = self._calls.pop(-frame.id, None)
            if answer is None or answer.done():
                continue  # whoever asked waits no longer
            if isinstance(frame.body, Failure):
                answer.set_exception(frame.body.error())
            else:
                answer.set_result(frame.body)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        for answer in self._calls.values():
            if not answer.done():
                answer.set_exception(_gone())
        self._calls.clear()
        self._lost()

    def send(self, message: Message) -> None:
        """Nothing is answered; what cannot be sent any more is lost."""
        self._write(0, message)

    def answer(self, id: int, message: Message) -> None:
        """The answer to a call."""
        self._write(-id, message)

    def call(self, message: Message) -> tuple[int, asyncio.Future[Any]]:
        """The call's number and its answer, an exception where that is a `Failure`."""
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._num_calls += 1
        if self._transport is None:
            answer.set_exception(_gone())
        else:
            self._calls[self._num_calls] = answer
            self._write(self._num_calls, message)
        return self._num_calls, answer

    async def ask(self, message: Message, kind: type[M]) -> M:
        """The answer, which is of this kind. Raises: what the other process says; Unavailable when it has ended."""
        _, answer = self.call(message)
        found = await answer
        assert isinstance(found, kind), f"{found} answers {message}: our bug, please report it"
        return found

    def close(self) -> None:
        """Send what waits, and hang up."""
        self._flush()
        if self._transport is not None:
            self._transport.close()

    def _write(self, id: int, message: Message) -> None:
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._flush)
        self._waiting.append(framed(encode(Frame(id, message))))

    def _flush(self) -> None:
        if self._transport is not None and self._waiting:
            self._transport.write(b"".join(self._waiting))
        self._waiting.clear()


def _gone() -> Unavailable:
    return Unavailable("The server is stopping. Send the request again, to another one if there is one.")
