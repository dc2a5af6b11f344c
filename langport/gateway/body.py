"""Reading a request body, with a limit."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from langport.direct import DirectReceive
from langport.errors import InvalidRequest, PayloadTooLarge
from langport.gateway.asgi import ClientGone, Receive

_MAX_LENGTH_DIGITS = 18
"""Python refuses to read numbers of thousands of digits; no body is that long."""


def _hold_nothing(num_bytes: int) -> None:
    """Nobody counts."""


async def read_body(
    receive: Receive, headers: Mapping[bytes, bytes], max_bytes: int, hold: Callable[[int], None] = _hold_nothing
) -> bytes:
    """The whole body.

    `hold` is told of every piece's bytes before it is kept, and may raise. Raises: PayloadTooLarge as soon as the
    length is known to exceed `max_bytes`, ClientGone.
    """
    _check_length(headers, max_bytes)
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > max_bytes:
            raise _too_large(max_bytes)
        hold(len(chunk))
        chunks.append(chunk)
        if not message.get("more_body", False):
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def take_body(
    receive: Receive, headers: Mapping[bytes, bytes], max_bytes: int, hold: Callable[[int], None] = _hold_nothing
) -> bytes | None:
    """The same without waiting; None where `read_body` has to. Raises: as that does."""
    if not isinstance(receive, DirectReceive):
        return None
    _check_length(headers, max_bytes)
    body = receive.take_whole()
    if body is not None:
        if len(body) > max_bytes:
            raise _too_large(max_bytes)
        hold(len(body))
    return body


def _check_length(headers: Mapping[bytes, bytes], max_bytes: int) -> None:
    """Raises: InvalidRequest, PayloadTooLarge."""
    declared = headers.get(b"content-length")
    if declared is not None:
        if not declared.isdigit():
            raise InvalidRequest("The Content-Length header is not a number of bytes.")
        if len(declared) > _MAX_LENGTH_DIGITS or int(declared) > max_bytes:
            raise _too_large(max_bytes)


def _too_large(max_bytes: int) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"The request body is larger than the {max_bytes} bytes that this server accepts. "
        "Send less at once, or start the server with a larger --max-body-size."
    )
