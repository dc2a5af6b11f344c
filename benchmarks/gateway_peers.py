"""What stands in front of one pretended server: LangPort, nginx, LiteLLM, and the least that Python can do.

    python benchmarks/gateway_peers.py server PORT [CHUNKS_PER_S]        # the pretended server
    python benchmarks/gateway_peers.py relay PORT SERVER_PORT            # two coupled sockets, and nothing else

The server answers a chat completion at once, or streams `max_tokens` chunks, those of all streams together in one tick
as an engine's steps bring them.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, cast

import httptools

KEY = "sk-benchmark"
MODEL = "mock"
USAGE = {"prompt_tokens": 180, "completion_tokens": 160, "total_tokens": 340}
CHOICE = {"index": 0, "message": {"role": "assistant", "content": "Rain, then sun. " * 45}, "finish_reason": "stop"}
ANSWER = {"id": "chatcmpl-0", "object": "chat.completion", "created": 1700000000, "model": MODEL}
CHUNK = {"id": "chatcmpl-0", "object": "chat.completion.chunk", "created": 1700000000, "model": MODEL}
FULL = [
    *("--api-key", KEY, "--key-requests-per-minute", "100000000", "--key-tokens-per-minute", "2000000000"),
    *("--key-max-concurrency", "100000", "--model-requests-per-minute", "100000000"),
    *("--model-tokens-per-minute", "2000000000"),
]
"""Keys and all limits; the metrics and the log are on by themselves."""


def _event(value: object) -> bytes:
    data = value if isinstance(value, bytes) else json.dumps(value, separators=(",", ":")).encode()
    event = b"data: " + data + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(event), event)


def _delta(delta: dict[str, str], reason: str | None = None) -> bytes:
    return _event({**CHUNK, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]})


PLAIN = json.dumps({**ANSWER, "choices": [CHOICE], "usage": USAGE}, separators=(",", ":")).encode()
PLAIN = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(PLAIN), PLAIN)
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
FIRST, PIECE = STREAM + _delta({"role": "assistant", "content": ""}), _delta({"content": " weather"})
LAST = _delta({}, "stop") + _event({**CHUNK, "choices": [], "usage": USAGE}) + _event(b"[DONE]") + b"0\r\n\r\n"


class Server(asyncio.Protocol):
    """One connection of the pretended server."""

    streams: ClassVar[set[Server]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's have no base class
        self.parser = httptools.HttpRequestParser(self)
        self.body = b""
        self.left = 0

    def connection_lost(self, error: Exception | None) -> None:
        self.streams.discard(self)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        body, self.body = self.body, b""
        request = json.loads(body or b"{}")
        if request.get("stream"):
            self.left = request.get("max_tokens") or request.get("max_completion_tokens") or 16
            self.transport.write(FIRST)
            self.streams.add(self)
        else:
            self.transport.write(PLAIN)

    def step(self) -> None:
        self.left -= 1
        self.transport.write(PIECE if self.left else PIECE + LAST)
        if not self.left:
            self.streams.discard(self)


async def serve(port: int, rate: float) -> None:
    server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", port, backlog=4096)
    async with server:
        due = time.monotonic()
        while True:
            due = max(due + 1 / rate, time.monotonic())
            await asyncio.sleep(due - time.monotonic())
            for stream in tuple(Server.streams):
                stream.step()


class Back(asyncio.Protocol):
    """The relay's connection to the server; what comes is written on where it is found."""

    idle: ClassVar[list[Back]] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.parser = httptools.HttpResponseParser(self)

    def ask(self, client: asyncio.Transport, request: bytes) -> None:
        self.client, self.pieces, self.is_chunked, self.is_over = client, [], False, False
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)
        self.client.write(b"".join(self.pieces))
        self.pieces.clear()
        if self.is_over:
            self.idle.append(self)

    def on_header(self, name: bytes, value: bytes) -> None:
        self.is_chunked = self.is_chunked or name.lower() == b"transfer-encoding"
        self.pieces.append(b"%b: %b\r\n" % (name, value))

    def on_headers_complete(self) -> None:
        self.pieces.insert(0, b"HTTP/1.1 %d OK\r\n" % self.parser.get_status_code())
        self.pieces.append(b"\r\n")

    def on_body(self, data: bytes) -> None:
        self.pieces.append(b"%x\r\n%b\r\n" % (len(data), data) if self.is_chunked else data)

    def on_message_complete(self) -> None:
        self.is_over = True
        if self.is_chunked:
            self.pieces.append(b"0\r\n\r\n")


class Front(asyncio.Protocol):
    """The relay's connection to a client."""

    server_port = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.parser = httptools.HttpRequestParser(self)
        self.body = b""

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(self.body)
        request, self.body = head + self.body, b""
        if Back.idle:
            Back.idle.pop().ask(self.transport, request)
        else:
            self.opening = asyncio.get_running_loop().create_task(self.open(request))

    async def open(self, request: bytes) -> None:
        _, back = await asyncio.get_running_loop().create_connection(Back, "127.0.0.1", self.server_port)
        back.ask(self.transport, request)


async def relay(port: int, server_port: int) -> None:
    Front.server_port = server_port
    server = await asyncio.get_running_loop().create_server(Front, "127.0.0.1", port, backlog=4096)
    async with server:
        await server.serve_forever()


@dataclass
class Peer:
    """One process that answers."""

    port: int
    pid: int
    started_s: float
    """From its command to the first answer."""


NGINX = """worker_processes 1; daemon off; pid nginx.pid; error_log stderr;
events {{ worker_connections 4096; }}
http {{ access_log off; keepalive_requests 1000000; client_body_buffer_size 64k;
  client_body_temp_path t; proxy_temp_path t; fastcgi_temp_path t; uwsgi_temp_path t; scgi_temp_path t;
  upstream server {{ server 127.0.0.1:{server}; keepalive 1024; keepalive_requests 1000000; }}
  server {{ listen 127.0.0.1:{port} backlog=4096; proxy_http_version 1.1; proxy_set_header Connection "";
    proxy_buffering off; location / {{ proxy_pass http://server; }} }} }}
"""
LITELLM = """model_list:
  - model_name: {model}
    litellm_params: {{model: openai/{model}, api_base: "http://127.0.0.1:{server}/v1", api_key: unused}}
general_settings: {{master_key: {key}}}
"""


class Peers:
    """Starts the processes, and ends them with the block."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))

    def server(self, rate: float) -> int:
        """The pretended server's port."""
        return self._start([sys.executable, __file__, "server", "{port}", str(rate)], 30).port

    def relay(self, server: int) -> Peer:
        """What Python allows."""
        return self._start([sys.executable, __file__, "relay", "{port}", str(server)], 30)

    def langport(self, server: int, options: list[str], *, store: str = "none") -> Peer:
        """`options` beside the address; its log of requests is written to a file."""
        place = str(self._folder / "store.db") if store == "sqlite" else store
        command = [sys.executable, "-m", "langport", "gateway", "--port", "{port}", "--log-level", "warning"]
        command += ["--upstream", f"{MODEL}=http://127.0.0.1:{server}/v1", "--store", place]
        return self._start([*command, "--access-log-file", str(self._folder / "access.log"), *options], 60)

    def nginx(self, command: str, server: int) -> Peer:
        port = _free_port()
        folder = self._folder / f"nginx-{port}"
        folder.mkdir()
        (folder / "nginx.conf").write_text(NGINX.format(port=port, server=server))
        return self._start([command, "-p", str(folder), "-c", str(folder / "nginx.conf")], 30, port=port)

    def litellm(self, command: str, server: int) -> Peer:
        file = self._folder / "litellm.yaml"
        file.write_text(LITELLM.format(model=MODEL, server=server, key=KEY))
        return self._start([command, "--config", str(file), "--port", "{port}", "--host", "127.0.0.1"], 180)

    def _start(self, command: list[str], patience_s: float, *, port: int | None = None) -> Peer:
        port = port or _free_port()
        log = self._folder / f"log-{port}"
        began_s = time.perf_counter()
        process = self._stack.enter_context(_process([part.replace("{port}", str(port)) for part in command], log))
        while not _answers(port):
            if process.poll() is not None or time.perf_counter() - began_s > patience_s:
                raise SystemExit(f"{command[0]} does not answer. It wrote:\n{log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.005)
        return Peer(port, process.pid, time.perf_counter() - began_s)


@contextmanager
def _process(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    environment = {**os.environ, "NO_PROXY": "*", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


def _answers(port: int) -> bool:
    """Whether a whole request is answered."""
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "Hello"}]}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    try:
        with socket.create_connection(("127.0.0.1", port), 5) as connection:
            connection.settimeout(5)
            connection.sendall(head.encode() + body)
            return connection.recv(4096).startswith(b"HTTP/1.1 200")
    except OSError:
        return False


if __name__ == "__main__":
    import uvloop

    kind, own, *rest = sys.argv[1:]
    uvloop.run(serve(int(own), float(rest[0]) if rest else 50.0) if kind == "server" else relay(int(own), int(rest[0])))
