"""The same head again and again, from a client and from a server: what is asked every time all the same."""

from __future__ import annotations

import asyncio
import json
from urllib.parse import urlsplit

import pytest
from msgspec.structs import replace
from raw_server import gateway_to, plain, raw_server, says, served, until

from langport.errors import AuthenticationFailed
from langport.http_protocol import GuardedProtocol
from langport.settings.tree import GatewaySettings

ANSWER = plain(b'{"usage":{"prompt_tokens":1,"completion_tokens":2}}', "200 OK", b"X-Model: a")


class Asker:
    """A client on one connection, which sends each request in one piece."""

    def __init__(self, reader, writer):
        self._reader, self._writer = reader, writer

    @classmethod
    async def to(cls, url):
        return cls(*await asyncio.open_connection("127.0.0.1", urlsplit(url).port))

    async def ask(self, key="sk-a", **fields):
        """Status and body."""
        body = json.dumps({"model": "far", **fields}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nUser-Agent: test\r\n"
        self._writer.write(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode().lower()
        (length,) = [line.partition(":")[2] for line in head.splitlines() if line.startswith("content-length:")]
        return int(head.split()[1]), await self._reader.readexactly(int(length))

    async def close(self):
        self._writer.close()
        await self._writer.wait_closed()


@pytest.fixture
def known(monkeypatch):
    """Requests whose heads were not parsed."""
    found = []
    take = GuardedProtocol._take_known

    def count(self, headers, body):
        found.append(body)
        take(self, headers, body)

    monkeypatch.setattr(GuardedProtocol, "_take_known", count)
    return found


async def test_a_key_that_is_good_no_more_is_refused_with_the_same_head(known):
    settings = GatewaySettings(api_keys=("sk-a", "sk-b"))
    async with (
        raw_server(says(ANSWER)) as server,
        gateway_to(server.url, gateway=settings) as (gateway, _),
        served(gateway) as url,
    ):
        asker = await Asker.to(url)
        assert [(await asker.ask())[0] for _ in range(3)] == [200] * 3
        gateway.reload(replace(settings, api_keys=("sk-b",)))
        assert [(await asker.ask())[0] for _ in range(2)] == [401] * 2
        gateway.reload(settings)
        assert (await asker.ask())[0] == 200
        await asker.close()
        await until(lambda: gateway.num_in_flight == 0)
    assert len(known) == 5
    assert len(server.requests) == 4


async def test_a_stored_key_is_looked_up_every_time(known, monkeypatch):
    async with (
        raw_server(says(ANSWER)) as server,
        gateway_to(server.url, gateway=GatewaySettings(api_keys=("sk-b",))) as (gateway, _),
        served(gateway) as url,
    ):

        async def find(given):
            given_keys.append(given)
            if len(given_keys) > 2:
                raise AuthenticationFailed("This API key has been revoked.")
            return gateway._keys.find_static(b"sk-b")

        given_keys = []
        monkeypatch.setattr(gateway._keys, "find", find)
        asker = await Asker.to(url)
        assert [(await asker.ask())[0] for _ in range(3)] == [200, 200, 401]
        await asker.close()
    assert given_keys == [b"sk-a"] * 3
    assert len(known) == 2


async def test_each_request_has_its_own_id_length_and_body(known):
    async with (
        raw_server(says(ANSWER)) as server,
        gateway_to(server.url, model="its-own") as (gateway, _),
        served(gateway) as url,
    ):
        asker = await Asker.to(url)
        for number in range(4):
            assert await asker.ask(n=number, user="x" * 10 * number) == (200, ANSWER.partition(b"\r\n\r\n")[2])
        await asker.close()
        await until(lambda: gateway.num_in_flight == 0)
    assert len(known) == 3
    assert [request.json for request in server.requests] == [
        {"model": "its-own", "n": number, "user": "x" * 10 * number} for number in range(4)
    ]
    assert len({request.named["x-request-id"] for request in server.requests}) == 4
    assert [request.named["user-agent"] for request in server.requests] == ["test"] * 4
    assert server.num_connections == 1


@pytest.mark.parametrize("more", [b"HTTP", b"\r\n", ANSWER])
async def test_what_a_server_sends_unasked_ends_its_connection(more):
    async def script(peer, request):
        await peer.send(ANSWER)
        if len(server.requests) == 2:
            await asyncio.sleep(0.05)
            await peer.send(more)

    async with (
        raw_server(script) as server,
        gateway_to(server.url) as (gateway, _),
        served(gateway) as url,
    ):
        asker = await Asker.to(url)
        for _ in range(2):
            assert (await asker.ask())[0] == 200
        await until(lambda: server.num_open == 0)
        for _ in range(2):
            assert (await asker.ask())[0] == 200
        await asker.close()
        await until(lambda: gateway.num_in_flight == 0)
    assert server.num_connections == 2


async def test_answers_with_the_same_head_are_those_that_came():
    bodies = [b'{"n":1}', b'{"n":22}', b"", b'{"n":333}']

    async def script(peer, request):
        await peer.send(plain(bodies[len(server.requests) - 1], "200 OK", b"Set-Cookie: secret"))

    async with raw_server(script) as server, gateway_to(server.url) as (gateway, _), served(gateway) as url:
        asker = await Asker.to(url)
        assert [await asker.ask() for _ in bodies] == [(200, body) for body in bodies]
        await asker.close()
