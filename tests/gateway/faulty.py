"""A server in a process of its own that does wrong what each request asks it to, down to the byte.

A request's `fault` is {"at": N, "how": "cut" | "reset" | "stall" | "drip"}: so many bytes of the answer come, then the
connection ends, is reset, stands still until the other side leaves, or goes on a byte at a time. {"raw": TEXT} is
answered with just that. `form` is how the answer comes: "events" in chunks, "unframed" events until the connection
ends, "plain" with a length.
"""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

EVENTS = tuple(b'data: {"choices":[{"index":0,"delta":{"content":"%b"}}]}\n\n' % word for word in (b"one", b"two"))
DONE = b"data: [DONE]\n\n"
PLAIN = b'{"id":"x","object":"chat.completion","choices":[],"usage":null}'
DRIP_S = 0.05
"""Between two bytes."""


def answer(form: str) -> bytes:
    """The whole bytes of a good answer."""
    if form == "plain":
        return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(PLAIN) + PLAIN
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
    if form == "unframed":
        return head + b"Connection: close\r\n\r\n" + b"".join(EVENTS) + DONE
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(event), event) for event in (*EVENTS, DONE))
    return head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"


class FaultyServer:
    """The process, from outside."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self._process = process
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    def num_stalled(self) -> int:
        """How many answers have stood still or dripped."""
        return self._state()[0]

    def num_left(self) -> int:
        """How many of them have ended because the other side left."""
        return self._state()[1]

    def _state(self) -> list[int]:
        with socket.create_connection(("127.0.0.1", self.port)) as connection:
            connection.sendall(b"STATE\r\n\r\n")
            return [int(number) for number in connection.makefile("rb").read().split()]


@contextmanager
def faulty_server() -> Iterator[FaultyServer]:
    """On a free port."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.gateway.faulty"],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield FaultyServer(process, int(process.stdout.readline()))
    finally:
        process.kill()
        process.communicate()


class _Connections:
    def __init__(self) -> None:
        self.num_stalled = 0
        self.num_left = 0

    def serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            rest = b""
            while True:
                while b"\r\n\r\n" not in rest:
                    data = connection.recv(65536)
                    if not data:
                        return
                    rest += data
                head, _, rest = rest.partition(b"\r\n\r\n")
                if head == b"STATE":
                    connection.sendall(b"%d %d" % (self.num_stalled, self.num_left))
                    return
                length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
                while len(rest) < length:
                    rest += connection.recv(65536)
                body, rest = json.loads(rest[:length]), rest[length:]
                if not self._answer(connection, body):
                    return

    def _answer(self, connection: socket.socket, body: dict[str, object]) -> bool:
        """Whether the connection may serve another request."""
        fault = body.get("fault")
        form = str(body.get("form", "plain"))
        data = answer(form)
        if not isinstance(fault, dict):
            connection.sendall(data)
            return form != "unframed"
        if "raw" in fault:
            connection.sendall(fault["raw"].encode("latin-1"))
            return False
        connection.sendall(data[: fault["at"]])
        if fault["how"] == "reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.num_stalled += fault["how"] in ("stall", "drip")
        if fault["how"] == "stall":
            connection.recv(1)
            self.num_left += 1
        elif fault["how"] == "drip":
            try:
                for byte in data[fault["at"] :]:
                    time.sleep(DRIP_S)
                    connection.sendall(bytes((byte,)))
            except OSError:
                self.num_left += 1
        return False


def main() -> None:
    """Serve until killed; the port is the first line."""
    connections = _Connections()
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=connections.serve, args=(connection,), daemon=True).start()


if __name__ == "__main__":
    main()
