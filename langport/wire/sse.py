"""Server-sent events: the framing of a streamed answer."""

from __future__ import annotations

import msgspec

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"
"""A comment: clients skip it, proxies see that the connection lives."""

_encode = msgspec.json.Encoder().encode


def event(data: bytes) -> bytes:
    """One event that carries a JSON document."""
    return b"data: " + data + b"\n\n"


def document(value: object) -> bytes:
    """The value as JSON that no client takes for several lines.

    Some clients split events with `str.splitlines`, which also ends lines at U+0085, U+2028 and U+2029.
    """
    data = _encode(value)
    if data.isascii():
        return data
    return (
        data.replace(b"\xc2\x85", rb"\u0085").replace(b"\xe2\x80\xa8", rb"\u2028").replace(b"\xe2\x80\xa9", rb"\u2029")
    )
