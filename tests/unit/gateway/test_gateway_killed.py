"""Deployments behind real sockets that are killed again and again, with requests on them."""

from __future__ import annotations

import asyncio
import json

from gateway_fakes import make_client
from route_fakes import upstream

CHAT = "/v1/chat/completions"
NUM_ROUNDS = 12
NUM_REQUESTS = 24
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: %s\r\nconnection: close\r\n\r\n"


class Victim:
    """A server that answers each connection once; while it `holds`, only with the head and first event of a stream."""

    def __init__(self):
        self.port = 0
        self.holds = False
        self.num_held = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    async def start(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def kill(self):
        self.holds, self.num_held = False, 0
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        while self._writers:
            await asyncio.sleep(0)
        await self._server.wait_closed()

    async def _serve(self, reader, writer):
        self._writers.add(writer)
        try:
            size = int(await reader.readexactly(8))
            is_stream = json.loads(await reader.readexactly(size)).get("stream", False)
            if is_stream:
                writer.write(HEAD % b"text/event-stream" + b"data: {}\n\n")
            if self.holds:
                self.num_held += 1
                await reader.read()
            writer.write(b"data: [DONE]\n\n" if is_stream else HEAD % b"application/json" + b'{"ok": true}')
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def relay(self, scope, receive, send):
        """The ASGI app in front of it. Raises: OSError when it cannot be reached or breaks off."""
        body = (await receive())["body"]
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(b"%8d" % len(body) + body)
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError:
                raise ConnectionResetError("closed without an answer") from None
            content_type = head.split(b"content-type: ")[1].partition(b"\r\n")[0]
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", content_type)]})
            text = b""
            while data := await reader.read(65536):
                text += data
                await send({"type": "http.response.body", "body": data, "more_body": True})
            if not text.endswith((b"[DONE]\n\n", b"}")):
                raise ConnectionResetError("broken off")
            await send({"type": "http.response.body", "body": b""})
        finally:
            writer.close()


async def test_no_request_is_lost_that_had_not_begun():
    victims = {"a": Victim(), "b": Victim()}
    for victim in victims.values():
        await victim.start()
    models = {name: upstream(name) for name in victims}
    models = {name: type(each)(name, victims[name].relay, each.card, each.is_ready) for name, each in models.items()}
    client = make_client(models, routes={"chat": {"deployments": [{"model": "a"}, {"model": "b"}]}})

    num_moved = num_cut = 0
    for number in range(NUM_ROUNDS):
        victim = victims["ab"[number % 2]]
        victim.holds = True
        plain = [asyncio.create_task(client.post(CHAT, {"model": "chat"})) for _ in range(NUM_REQUESTS)]
        streams = [asyncio.create_task(client.post(CHAT, {"model": "chat", "stream": True})) for _ in range(4)]
        while sum(task.done() for task in (*plain, *streams)) + victim.num_held < NUM_REQUESTS + 4:
            await asyncio.sleep(0.001)
        num_moved += sum(not task.done() for task in plain)
        num_cut += sum(not task.done() for task in streams)
        await victim.kill()
        for found in await asyncio.gather(*plain):
            assert (found.status, found.json) == (200, {"ok": True})
        for found in await asyncio.gather(*streams):
            assert found.body.startswith(b"data: {}\n\n")
            assert found.body.endswith(b"data: [DONE]\n\n") != (b'"error"' in found.body)
            assert found.finished
        await victim.start()
    assert num_moved > NUM_ROUNDS
    assert num_cut > NUM_ROUNDS / 2
    for victim in victims.values():
        await victim.kill()
