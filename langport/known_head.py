"""A head that came before on its connection, byte for byte but for the number of its Content-Length.

Clients and servers that keep a connection send the same head with nearly every message. A parser between two messages
remembers nothing of the one before, so bytes that were one whole message to it are so again, whatever the number is and
so many bytes follow; they need not be parsed, and what was found out about the head need not be found out again.
"""

from __future__ import annotations

import re
from typing import Any

Header = tuple[bytes, bytes]

_END = b"\r\n\r\n"
_LENGTH = b"content-length"
_MAX_DIGITS = 18
_LENGTH_LINE = re.compile(rb"\r\n%b:[ \t]*([0-9]{1,%d})\r\n" % (_LENGTH, _MAX_DIGITS), re.IGNORECASE)


class KnownHeaders(list[Header]):
    """The headers of a message whose head is known.

    What follows from them, their Content-Length excepted, may be kept in `notes`; all of one head have the same.
    """

    __slots__ = ("notes",)
    notes: dict[Any, Any]


class KnownHead:
    """One head, of a message with a Content-Length."""

    __slots__ = ("_before", "_behind", "_headers", "_notes", "_place")

    def __init__(self, before: bytes, behind: bytes, headers: list[Header]) -> None:
        """`before` and `behind`: the head's bytes around the number."""
        self._before = before
        self._behind = behind
        self._headers = headers
        self._place = [name for name, _ in headers].index(_LENGTH)
        self._notes: dict[Any, Any] = {}

    @classmethod
    def of(cls, data: bytes, headers: list[Header]) -> KnownHead | None:
        """The head of `data`, in which a parser that was between two messages has found these headers, and is so again.

        `headers`: with their names in small letters. None where the data are not one message with one Content-Length.
        """
        end = data.find(_END) + len(_END)
        found = _LENGTH_LINE.search(data, 0, end)
        if found is None or end + int(found[1]) != len(data):
            return None
        if [name for name, _ in headers].count(_LENGTH) != 1:
            return None
        return cls(data[: found.start(1)], data[found.end(1) : end], headers)

    def read(self, data: bytes) -> tuple[KnownHeaders, bytes] | None:
        """Headers and body, where `data` are exactly one message with this head; else None."""
        before, behind = self._before, self._behind
        if not data.startswith(before):
            return None
        start = len(before)
        end = data.find(b"\r", start, start + _MAX_DIGITS + 1)
        digits = data[start:end]
        if not digits.isdigit() or not data.startswith(behind, end):
            return None
        body = data[end + len(behind) :]
        if len(body) != int(digits):
            return None
        headers = KnownHeaders(self._headers)
        headers[self._place] = (_LENGTH, digits)
        headers.notes = self._notes
        return headers, body
