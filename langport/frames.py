"""How processes of one server cut a byte stream: four bytes of length, little endian, then the message."""

from __future__ import annotations

import struct

HEADER = struct.Struct("<I")


def framed(body: bytes) -> bytes:
    """A message as it is sent."""
    return HEADER.pack(len(body)) + body


class Frames:
    """Cuts a byte stream into messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The bodies that are complete now."""
        self._buffer += data
        bodies: list[bytes] = []
        begin = 0
        while len(self._buffer) - begin >= HEADER.size:
            (length,) = HEADER.unpack_from(self._buffer, begin)
            end = begin + HEADER.size + length
            if len(self._buffer) < end:
                break
            bodies.append(bytes(self._buffer[begin + HEADER.size : end]))
            begin = end
        del self._buffer[:begin]
        return bodies
