"""What our own HTTP server offers beyond ASGI: an answer's pieces and a client's leaving without a task for either."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Header = tuple[bytes, bytes]


class DirectSend:
    """A `send` to which pieces of an answer's body can be given where they are found, without a task that awaits it.

    Servers of this project have one. Whoever wraps a `send` in a plain function thereby takes this away, and gets every
    piece as a message.
    """

    __slots__ = ()

    def __call__(self, message: Message) -> Awaitable[None]:
        """ASGI's."""
        raise NotImplementedError

    def write(self, piece: bytes) -> bool:
        """Send a piece of the body, once a message with the first one was sent.

        False: the client does not read, so wait until `when_ready` calls.
        """
        raise NotImplementedError

    def when_ready(self, callback: Callable[[], None]) -> None:
        """Call back once, when the client can take more or is gone; at once if that is so already."""
        raise NotImplementedError

    def can_finish(self) -> bool:
        """Whether `finish` may be called now."""
        return False

    def finish(self, status: int, headers: list[Header], body: bytes) -> None:
        """Send a whole answer, in place of its two messages."""
        raise NotImplementedError


class DirectReceive:
    """A `receive` that tells of the client's leaving without a task that awaits it."""

    __slots__ = ()

    def __call__(self) -> Awaitable[Message]:
        """ASGI's."""
        raise NotImplementedError

    def take_whole(self) -> bytes | None:
        """The whole body, if all of it has come and nothing was taken yet; None: receive it."""
        return None

    def when_gone(self, callback: Callable[[], None]) -> bool:
        """Call back once, when the client leaves before its answer is complete; at once if it has.

        False: nobody will, as what is behind this one is a plain `receive`; so await that.
        """
        raise NotImplementedError


def watch_client(receive: Receive, callback: Callable[[], None]) -> Callable[[], object]:
    """Call back when the client leaves, the body having been read; call what is returned when that matters no more."""
    if isinstance(receive, DirectReceive) and receive.when_gone(callback):
        return _nothing

    async def wait() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        callback()

    waiting = asyncio.ensure_future(wait())
    return waiting.cancel


def _nothing() -> None:
    """Nobody waits."""
