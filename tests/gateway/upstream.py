"""A server in a thread that answers as a test tells it to, over real sockets."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Upstream:
    """`hold`: streams stay open after the first event until it is set."""

    def __init__(self) -> None:
        self.url = ""
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.hold = threading.Event()
        self.hold.set()
        self.began = threading.Event()
        self.flood = threading.Event()
        """Streams that are held do not wait but go on and on."""
        self.left = threading.Event()
        """A client hung up in the middle of a stream."""


EVENTS = [{"choices": [{"index": 0, "delta": {"content": word}}]} for word in ("one", "two", "three")]


@contextmanager
def upstream_server(port: int = 0) -> Iterator[Upstream]:
    """A model named `big`, which streams where it is asked to."""
    state = Upstream()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

        def do_GET(self) -> None:
            self._json({"object": "list", "data": [{"id": "big", "object": "model", "owned_by": "them"}]})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            state.requests.append((self.path, headers, body))
            request = json.loads(body)
            if request.get("stream"):
                self._stream()
            else:
                state.began.set()
                state.hold.wait(60)
                self._json({"id": "x", "model": request["model"], "choices": [], "usage": None})

        def _json(self, value: Any) -> None:
            body = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _stream(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            try:
                for text in [*map(json.dumps, EVENTS), "[DONE]"]:
                    data = f"data: {text}\n\n".encode()
                    self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
                    self.wfile.flush()
                    state.began.set()
                    while state.flood.is_set():
                        self.wfile.write(b"10000\r\n: %b\n\r\n" % bytes(65533).replace(b"\0", b"."))
                    while not state.hold.wait(0.02):
                        self.wfile.write(b"4\r\n: .\n\r\n")  # so that this end notices who hangs up
                self.wfile.write(b"0\r\n\r\n")
            except OSError:
                self.close_connection = True
                state.left.set()

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield state
    finally:
        state.hold.set()
        server.shutdown()
        thread.join()
        server.server_close()


class UpstreamProcess:
    """The same in a process of its own, on one port, which can be killed and started again."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Comes back when it can be asked."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.gateway.upstream", str(self.port)],
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"

    def kill(self) -> None:
        """Whatever it is doing."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()


def main() -> None:
    """Serve on the port that is named until killed."""
    with upstream_server(int(sys.argv[1])):
        print("ready", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
