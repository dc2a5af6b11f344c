"""The ASGI that the handlers share: a body read, an answer in JSON, a client that leaves."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import msgspec

from langport.direct import watch_client
from langport.store.base import ANYONE
from langport.types import Meter, TokenUsage
from langport.wire.unknown import ignored_header, unknown_fields

ASGIMessage = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[ASGIMessage]]
Send = Callable[[ASGIMessage], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Header = tuple[bytes, bytes]

_encode = msgspec.json.Encoder().encode


def unmetered(count: Callable[[], TokenUsage], work: asyncio.Future[Any] | None = None) -> None:
    """A `types.Meter` for calls whose tokens nobody counts."""


@dataclass(frozen=True)
class Call:
    """One API call, as the handlers see it."""

    request_id: str
    """For logs; a client may have chosen it, so it need not be unique."""
    model: str
    """The public name of the model, as the answer must say it."""
    body: bytes
    send: Send
    priority: int = 0
    """Added to what the request asks for; work in the background has a higher one, and runs later."""
    owner: str = ANYONE
    """Whose the objects are that the call stores and sees."""
    is_strict: bool = False
    """Refuse fields that nobody documents, instead of listing them."""
    meter: Meter = unmetered

    def ignored(self, request: msgspec.Struct, *more: str) -> list[Header]:
        """`x-langport-ignored` with the fields of the body that the request's struct has not, and `more` of them.

        No header where there are none. Raises: InvalidRequest naming them, in strict mode.
        """
        names = [*unknown_fields(self.body, type(request)), *more]
        return ignored_header(names, is_strict=self.is_strict)

    def engine_id(self) -> str:
        """A name for the engine's work on this call: the request's id, made unique."""
        return f"{self.request_id}-{secrets.token_hex(4)}"


async def read_body(receive: Receive) -> bytes | None:
    """The whole request body, or None when the client left before it was there."""
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


async def send_json(send: Send, document: object, headers: Iterable[Header] = ()) -> None:
    """Answer 200 with the document as JSON."""
    body = _encode(document)
    fixed = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": [*fixed, *headers]})
    await send({"type": "http.response.body", "body": body, "more_body": False})


class ClientWatch:
    """Ends the work inside `async with` as soon as the client leaves.

    When the client has left the work is cancelled, whose generators abort what the engine still does, and the block
    ends without an error: there is nobody left to answer.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._has_left = False
        self._is_over = False

    async def __aenter__(self) -> ClientWatch:
        work = asyncio.current_task()
        assert work is not None
        self._work = work
        self._num_cancels = work.cancelling()
        self._watch_no_more = watch_client(self._receive, self._leave)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self._watch_no_more()
        self._is_over = True
        if not self._has_left:
            return False
        is_only_ours = self._work.uncancel() <= self._num_cancels
        return is_only_ours and kind is asyncio.CancelledError

    def _leave(self) -> None:
        if not self._is_over:
            self._has_left = True
            self._work.cancel()
