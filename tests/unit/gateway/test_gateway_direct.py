"""Streams that go from one socket to the other without a task's turn for each piece, over real sockets."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import httptools
import pytest
from raw_server import chunked, gateway_to, raw_server, says, served, until

from langport.http_connection import Cycle
from langport.settings.tree import DeploymentSettings, GatewaySettings, RouteSettings

ASK = {"model": "far", "messages": [], "stream": True}
EVENTS = [b'data: {"n":%d}\n\n' % number for number in range(40)]
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":11,"completion_tokens":40,"total_tokens":51}}\n\n'
STREAM = [*EVENTS, USAGE, b"data: [DONE]\n\n"]


class Asker:
    """A client that reads when it is told to, and knows how an answer is framed."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer
        self.parser = httptools.HttpResponseParser(self)
        self.body = b""
        self.pieces = []
        self.is_complete = False

    def on_body(self, body):
        self.pieces.append(body)
        self.body += body

    def on_message_complete(self):
        self.is_complete = True

    async def ask(self, body):
        data = json.dumps(body).encode()
        self.writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(data))
        self.writer.write(data)
        await self.writer.drain()

    async def read_some(self):
        data = await self.reader.read(1 << 20)
        if data:
            self.parser.feed_data(data)
        return bool(data)

    async def read_all(self):
        async with asyncio.timeout(30):
            while not self.is_complete and await self.read_some():
                pass
        return self.body


@asynccontextmanager
async def asking(url, body=ASK):
    reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(url).port, limit=1 << 16)
    asker = Asker(reader, writer)
    await asker.ask(body)
    try:
        yield asker
    finally:
        writer.close()


@pytest.fixture
def messages(monkeypatch):
    """Those that came to a client's connection as ASGI has it."""
    found = []
    send = Cycle.__call__

    async def count(self, message):
        found.append(message)
        await send(self, message)

    monkeypatch.setattr(Cycle, "__call__", count)
    return found


@pytest.mark.parametrize("name", ["far", "route"])
async def test_bytes_are_those_that_came_and_no_message_each(messages, name):
    routes = {"route": RouteSettings((DeploymentSettings("far"),))}
    go_on = asyncio.Event()

    async def script(peer, request):
        await peer.send(chunked(STREAM[0], is_whole=False))
        await go_on.wait()
        for event in STREAM[1:]:
            await peer.send(b"%x\r\n%b\r\n" % (len(event), event))
        await peer.send(b"0\r\n\r\n")

    async with (
        raw_server(script) as server,
        gateway_to(server.url, gateway=GatewaySettings(routes=routes)) as (gateway, _),
        served(gateway) as url,
        asking(url, {**ASK, "model": name}) as asker,
    ):
        await until(lambda: len(messages) == 2)
        go_on.set()
        assert await asker.read_all() == b"".join(STREAM)
        assert asker.is_complete
        await until(lambda: gateway.num_in_flight == 0)
        text = (await _metrics(url)).decode()
    assert [message["type"].rpartition(".")[2] for message in messages[:3]] == ["start", "body", "body"]
    labels = f'{{model="{name}",upstream="{"far" if name == "route" else ""}"}}'
    assert f"langport_prompt_tokens_total{labels} 11.0" in text
    assert f"langport_generation_tokens_total{labels} 40.0" in text
    assert f"langport_time_to_first_token_seconds_count{labels} 1.0" in text
    (gaps,) = [line for line in text.splitlines() if line.startswith("langport_inter_token_latency_seconds_count")]
    assert 1 <= float(gaps.rpartition(" ")[2]) <= len(EVENTS)  # pieces may have come at once


async def _metrics(url):
    reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(url).port)
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    text = await reader.read()
    writer.close()
    return text


async def test_a_stream_cut_anywhere_arrives_in_whole_events():
    data = chunked(*STREAM[-3:])
    head = data.index(b"\r\n\r\n") + 4
    cuts = iter(range(head + 1, len(data)))

    async def script(peer, request):
        cut = next(cuts)
        first = data[:head] + b"%x\r\n%b\r\n" % (len(EVENTS[0]), EVENTS[0])
        await peer.send(first)
        await peer.send(data[head:cut])
        await asyncio.sleep(0)
        await peer.send(data[cut:])

    async with raw_server(script) as server, gateway_to(server.url) as (gateway, _), served(gateway) as url:
        for _ in range(head + 1, len(data)):
            async with asking(url) as asker:
                assert await asker.read_all() == EVENTS[0] + b"".join(STREAM[-3:])
        assert server.num_connections == 1


async def test_a_stream_that_breaks_off_ends_with_whole_events_and_an_error():
    cut = chunked(*EVENTS[:3], b'data: {"n', is_whole=False)
    async with (
        raw_server(says(cut, cut=True)) as server,
        gateway_to(server.url) as (gateway, _),
        served(gateway) as url,
        asking(url) as asker,
    ):
        body = await asker.read_all()
    whole = b"".join(EVENTS[:3])
    assert body.startswith(whole)
    (error,) = body.removeprefix(whole).strip().split(b"\n\n")
    assert "closed the connection" in json.loads(error.removeprefix(b"data: "))["error"]["message"]
    assert asker.is_complete


async def test_a_server_that_falls_silent_in_the_middle_is_given_up():
    async def script(peer, request):
        await peer.send(chunked(EVENTS[0], is_whole=False))
        for event in EVENTS[1:4]:
            await peer.send(b"%x\r\n%b\r\n" % (len(event), event))
            await asyncio.sleep(0.02)
        await peer.wait_hang_up()

    async with (
        raw_server(script) as server,
        gateway_to(server.url, chunk_timeout_s=0.2) as (gateway, _),
        served(gateway) as url,
        asking(url) as asker,
    ):
        body = await asker.read_all()
        await until(lambda: server.num_open == 0)
    assert body.startswith(b"".join(EVENTS[:4]))
    assert b"sent nothing for 0.2 s in the middle of its answer" in body


async def test_a_client_that_leaves_in_the_middle_ends_the_servers_work():
    async def script(peer, request):
        await peer.send(chunked(*EVENTS[:2], is_whole=False))
        await peer.wait_hang_up()

    async with raw_server(script) as server, gateway_to(server.url) as (gateway, _), served(gateway) as url:
        async with asking(url) as asker:
            while len(asker.body) < len(EVENTS[0] + EVENTS[1]):
                await asker.read_some()
            assert server.num_open == 1
        await until(lambda: server.num_open == 0)
        await until(lambda: gateway.num_in_flight == 0)
        text = (await _metrics(url)).decode()
    assert 'status="200"' in text


async def test_a_client_that_does_not_read_holds_the_server_up_and_gets_every_byte_in_order():
    piece = 64 * 1024
    sent = 0

    def event(number):
        return b"data: " + b"%08d" % number + b"x" * piece + b"\n\n"

    async def script(peer, request):
        nonlocal sent
        await peer.send(chunked(event(0), is_whole=False))
        for number in range(1, 400):
            data = event(number)
            await peer.send(b"%x\r\n%b\r\n" % (len(data), data))
            sent += len(data)
        await peer.send(b"0\r\n\r\n")

    async with (
        raw_server(script) as server,
        gateway_to(server.url) as (gateway, remote),
        served(gateway) as url,
        asking(url) as asker,
    ):
        before = -1
        while sent != before or not sent:
            before = sent
            await asyncio.sleep(0.1)
        (connection,) = remote.client._live
        assert connection._num_buffered == 0
        assert sent < 300 * piece
        body = await asker.read_all()
    assert body == b"".join(event(number) for number in range(400))
