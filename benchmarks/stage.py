"""The processes of load runs: a server whose events are numbered and dated, and a gateway in front of some of them.

    python benchmarks/stage.py PORT        # the server, until killed; 0 chooses a port, which is the first line

A request says `num_events` and `interval_s`. With `stream` the events come one by one, each with its number and the
moment at which it was sent (CLOCK_MONOTONIC, microseconds, the same for all processes of a machine); without, one
answer after the same time.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import httptools

READY = re.compile(r"Ready on (http://\S+)")


def microseconds() -> int:
    return time.monotonic_ns() // 1000


class Upstream(asyncio.Protocol):
    """One connection of the server."""

    def __init__(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._body = b""
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's have no base class

    def connection_lost(self, error: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, data: bytes) -> None:
        self._body += data

    def on_message_complete(self) -> None:
        body, self._body = self._body, b""
        if not body:  # whether it lives
            self._write_plain(b'{"object":"list","data":[]}')
            return
        request = json.loads(body)
        num_events, interval_s = request["num_events"], request["interval_s"]
        if not request.get("stream"):
            answer = b'{"object":"chat.completion","choices":[],"num_events":%d}' % num_events
            self._timer = asyncio.get_running_loop().call_later(num_events * interval_s, self._write_plain, answer)
            return
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        self._transport.write(head)
        self._write_event(0, num_events, interval_s)

    def _write_plain(self, body: bytes) -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
        self._transport.write(head + body)

    def _write_event(self, number: int, num_events: int, interval_s: float) -> None:
        if number == num_events:
            self._transport.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
            return
        event = b'data: {"n":%d,"t":%d,"choices":[{"index":0,"delta":{"content":"word"}}]}\n\n'
        event %= number, microseconds()
        self._transport.write(b"%x\r\n%b\r\n" % (len(event), event))
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(interval_s, self._write_event, number + 1, num_events, interval_s)


class UpstreamProcess:
    """One that can be killed and started again on its port."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Comes back when it can be asked."""
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(self.port)], stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert self._process.stdout is not None
        self._process.stdout.readline()

    def kill(self) -> None:
        """Whatever it does."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()


@contextmanager
def upstreams(number: int) -> Iterator[list[UpstreamProcess]]:
    """So many servers."""
    found = [UpstreamProcess() for _ in range(number)]
    try:
        for upstream in found:
            upstream.start()
        yield found
    finally:
        for upstream in found:
            upstream.kill()


@contextmanager
def gateway(settings: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """`langport gateway` with these settings: its URL and its process."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "langport.yaml"
        file.write_text(json.dumps({"store": "none", "log_level": "warning", **settings}))
        log_path = Path(folder) / "log"
        command = [sys.executable, "-m", "langport", "gateway", "--port", "0", "--config", str(file)]
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                [*command, "--log-level", "info"], stderr=log, env={**os.environ, "NO_PROXY": "*"}
            )
        try:
            while not (found := READY.search(log_path.read_text())):
                assert process.poll() is None, log_path.read_text()
                time.sleep(0.05)
            yield found[1], process.pid
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


def cpu_s(pid: int) -> float:
    """User and system time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", port, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    import uvloop

    uvloop.run(serve(int(sys.argv[1])))
