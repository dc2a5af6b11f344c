"""Answers that are kept: what of them, and whether one is whole."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from langport.gateway.asgi import Header, Message, Send

MAX_ANSWER_BYTES = 8 * 1024 * 1024
"""Of a body; longer ones are not kept."""

_KEPT_HEADERS = frozenset((b"content-type", b"content-length", b"x-langport-ignored"))
"""The others are about one answering, such as its cost, or of an encoding that other clients may not read."""
_LAST_EVENTS = {
    "/v1/chat/completions": rb"data: ?\[DONE\]\Z",
    "/v1/completions": rb"data: ?\[DONE\]\Z",
    "/v1/responses": rb"event: ?response\.(?:completed|incomplete)[\r\n]",
    "/v1/messages": rb"event: ?message_stop[\r\n]",
}
"""By path, how the last event of a whole stream begins."""
_LAST = {path: re.compile(pattern) for path, pattern in _LAST_EVENTS.items()}
_ERROR = re.compile(
    rb'^(?:data: ?\{\s*(?:"error"\s*:|"object"\s*:\s*"error")|event: ?(?:error|response\.failed)\b)', re.MULTILINE
)
"""An event of a stream that failed. In JSON the quotation marks within a text have backslashes, so none looks so."""


class KeptAnswer(msgspec.Struct, frozen=True, array_like=True):
    """One whole answer with status 200."""

    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    """A stream's events one after the other."""
    kept_at_s: float
    """Since 1970."""


class _Whole(msgspec.Struct):
    error: Any = None
    status: Any = None


_decode = msgspec.json.Decoder(_Whole).decode


def is_whole(path: str, body: bytes, *, is_stream: bool) -> bool:
    """Whether it is an answer from its beginning to its end, and not one that says what went wrong."""
    if is_stream:
        last = _LAST.get(path)
        event = body.rstrip().rpartition(b"\n\n")[2].rpartition(b"\r\n\r\n")[2]
        return last is not None and last.match(event) is not None and _ERROR.search(body) is None
    try:
        found = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return found.error is None and (path != "/v1/responses" or found.status in ("completed", "incomplete"))


class Recording:
    """A `send` that remembers an answer on its way, and hands it over before its last piece goes to the client."""

    __slots__ = ("_headers", "_is_stream", "_keep", "_max_bytes", "_num_bytes", "_path", "_pieces", "_send")

    def __init__(
        self,
        path: str,
        send: Send,
        keep: Callable[[tuple[Header, ...], bytes], None],
        max_bytes: int = MAX_ANSWER_BYTES,
    ) -> None:
        """`path`: of the route; `keep` is called at most once, with a whole answer of `max_bytes` at most."""
        self._max_bytes = max_bytes
        self._path = path
        self._send = send
        self._keep = keep
        self._headers: tuple[Header, ...] = ()
        self._is_stream = False
        self._pieces: list[bytes] | None = None
        """None: it is no answer to be kept."""
        self._num_bytes = 0

    async def __call__(self, message: Message) -> None:
        """ASGI `send`."""
        if message["type"] == "http.response.start":
            self._begin(message["status"], message.get("headers", ()))
        elif self._pieces is not None:
            self._take(self._pieces, message.get("body", b""), is_last=not message.get("more_body", False))
        await self._send(message)

    def _begin(self, status: int, headers: Iterable[Header]) -> None:
        headers = tuple(headers)
        self._headers = tuple((bytes(name), bytes(value)) for name, value in headers if name in _KEPT_HEADERS)
        content_type = next((value for name, value in headers if name == b"content-type"), b"")
        self._is_stream = content_type.startswith(b"text/event-stream")
        is_plain = content_type.startswith(b"application/json")
        is_encoded = any(name == b"content-encoding" for name, _ in headers)
        if status == 200 and (self._is_stream or is_plain) and not is_encoded:
            self._pieces = []

    def _take(self, pieces: list[bytes], piece: bytes, *, is_last: bool) -> None:
        pieces.append(piece)
        self._num_bytes += len(piece)
        if self._num_bytes > self._max_bytes:
            self._pieces = None
        elif is_last:
            self._pieces = None
            body = b"".join(pieces)
            if is_whole(self._path, body, is_stream=self._is_stream):
                self._keep(self._headers, body)
