"""A server on a real socket that answers exactly the bytes that a test gives it, and notices who hangs up."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from langport.gateway.app import Gateway
from langport.gateway.remote import RemoteServer
from langport.http_server import Server, uvicorn_config
from langport.settings.tree import GatewaySettings, OverloadSettings
from langport.settings.upstreams import UpstreamSettings


@dataclass
class Request:
    line: str
    headers: list[tuple[str, str]]
    body: bytes

    @property
    def named(self) -> dict[str, str]:
        names = [name for name, _ in self.headers]
        assert len(set(names)) == len(names), f"a header repeats: {names}"
        return dict(self.headers)

    @property
    def json(self):
        return json.loads(self.body)


@dataclass
class Peer:
    """One connection, from the server's side."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    number: int

    async def read_request(self) -> Request | None:
        """None when the other side has hung up instead."""
        try:
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        line, *rest = head.rstrip("\r\n").split("\r\n")
        headers = [(name.lower(), value.strip()) for name, _, value in (text.partition(":") for text in rest)]
        length = int(dict(headers).get("content-length", 0))
        return Request(line, headers, await self.reader.readexactly(length))

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def wait_hang_up(self) -> None:
        """Until the other side has closed."""
        try:
            while await self.reader.read(65536):
                pass
        except ConnectionError:
            pass

    def cut(self) -> None:
        """Close, with nothing further."""
        self.writer.close()


Script = Callable[[Peer, Request], Awaitable[None]]


@dataclass
class RawServer:
    """`script` is called for every request; a connection goes on until the script cuts it or the other side leaves."""

    script: Script
    port: int = 0
    requests: list[Request] = field(default_factory=list)
    num_connections: int = 0
    num_open: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        self.num_open += 1
        peer = Peer(reader, writer, self.num_connections)
        try:
            while (request := await peer.read_request()) is not None:
                self.requests.append(request)
                await self.script(peer, request)
                if writer.is_closing():
                    return
        except ConnectionError:
            pass
        finally:
            self.num_open -= 1
            writer.close()


@asynccontextmanager
async def raw_server(script: Script, **options):
    """A server on a free port."""
    raw = RawServer(script)
    server = await asyncio.start_server(raw.serve, "127.0.0.1", 0, **options)
    raw.port = server.sockets[0].getsockname()[1]
    try:
        yield raw
    finally:
        server.close()


def says(*pieces: bytes, cut: bool = False) -> Script:
    """Sends the same bytes to every request."""

    async def script(peer: Peer, request: Request) -> None:
        for piece in pieces:
            await peer.send(piece)
        if cut:
            peer.cut()

    return script


def plain(body: bytes, status: str = "200 OK", *headers: bytes, content_type: bytes = b"application/json") -> bytes:
    """A whole answer with a length."""
    lines = [b"HTTP/1.1 " + status.encode(), b"Content-Type: " + content_type, b"Content-Length: %d" % len(body)]
    return b"\r\n".join([*lines, *headers, b"", body])


def chunked(*pieces: bytes, content_type: bytes = b"text/event-stream", is_whole: bool = True) -> bytes:
    """A streamed answer."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: " + content_type + b"\r\nTransfer-Encoding: chunked\r\n\r\n"
    body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    return head + body + (b"0\r\n\r\n" if is_whole else b"")


@asynccontextmanager
async def gateway_to(
    url: str, *, name: str = "far", gateway: GatewaySettings | None = None, environment=None, **fields
):
    """A gateway in front of one remote model, and the server as it sees it."""
    settings = UpstreamSettings(url=url, name=name, **fields)
    remote = RemoteServer(settings, environment or {})
    try:
        yield Gateway([remote.upstream(name, settings.model)], gateway or GatewaySettings()), remote
    finally:
        remote.close()


@asynccontextmanager
async def served(app: Gateway):
    """The app behind our own HTTP server on a real socket; its URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = Server(uvicorn_config(app, OverloadSettings()))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    await until(lambda: server.started)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.force_exit = True
        server.stop()
        await serving


async def until(condition: Callable[[], object]) -> None:
    """Let the loop turn until it is so."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)
