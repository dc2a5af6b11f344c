"""Bytes to a server and what comes back, with no client between that would put them right."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

PATIENCE_S = 60.0
KEY = "sk-client-0123456789"
ADMIN_KEY = "sk-admin-0123456789"
AUTHORIZATION = f"Authorization: Bearer {KEY}".encode()
BODY = json.dumps({"model": "far", "messages": [{"role": "user", "content": "Hello!"}]}).encode()
CHAT = "/v1/chat/completions"


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def message(self) -> str:
        """Of an error, which must be in OpenAI's form."""
        error = json.loads(self.body)["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        return str(error["message"])


class Connection:
    """One connection, read as strictly as need be."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), PATIENCE_S)
        self._rest = b""

    def send(self, data: bytes) -> None:
        """A server that has hung up meanwhile is no failure here; what it said is read."""
        with suppress(BrokenPipeError, ConnectionResetError):
            self.socket.sendall(data)

    def read(self) -> Answer:
        """The next answer, whole. Raises: EOFError when the server has hung up instead."""
        while b"\r\n\r\n" not in self._rest:
            self._more()
        head, _, self._rest = self._rest.partition(b"\r\n\r\n")
        line, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (text.partition(":") for text in lines)}
        status = int(line.split()[1])
        if status == 100:
            return self.read()
        if headers.get("transfer-encoding") == "chunked":
            return Answer(status, headers, b"".join(self._chunks()))
        length = int(headers["content-length"])
        while len(self._rest) < length:
            self._more()
        body, self._rest = self._rest[:length], self._rest[length:]
        return Answer(status, headers, body)

    def is_ended(self) -> bool:
        """Wait for the server to hang up; False when it says more first."""
        try:
            self._more()
        except EOFError:
            return not self._rest
        return False

    def _chunks(self) -> Iterator[bytes]:
        while True:
            while b"\r\n" not in self._rest:
                self._more()
            size, _, self._rest = self._rest.partition(b"\r\n")
            length = int(size, 16)
            while len(self._rest) < length + 2:
                self._more()
            chunk, self._rest = self._rest[:length], self._rest[length + 2 :]
            if not chunk:
                return
            yield chunk

    def _more(self) -> None:
        try:
            data = self.socket.recv(65536)
        except ConnectionResetError:
            data = b""
        if not data:
            raise EOFError
        self._rest += data


@contextmanager
def connected(port: int) -> Iterator[Connection]:
    connection = Connection(port)
    try:
        yield connection
    finally:
        connection.socket.close()


def request(
    method: str = "POST",
    target: bytes | str = CHAT,
    *headers: bytes,
    body: bytes = BODY,
    key: bytes = AUTHORIZATION,
    length: bytes | None = None,
    version: bytes = b"HTTP/1.1",
) -> bytes:
    """The bytes of one request; `length`: in place of the right Content-Length, empty for none."""
    target = target.encode() if isinstance(target, str) else target
    lines = [method.encode() + b" " + target + b" " + version, b"Host: test", *([key] if key else []), *headers]
    if length is None and method == "POST":
        length = b"Content-Length: %d" % len(body)
    if length:
        lines.append(length)
    return b"\r\n".join([*lines, b"", b""]) + (body if method == "POST" else b"")


def chunked(*pieces: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + end


def ask(port: int, data: bytes) -> Answer:
    """The first answer to these bytes."""
    with connected(port) as connection:
        connection.send(data)
        return connection.read()
