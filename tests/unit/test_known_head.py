"""A connection that knows a head understands what follows as one that parses everything."""

from __future__ import annotations

import asyncio

import pytest
import uvicorn
from uvicorn.server import ServerState

from langport.http_protocol import Guard
from langport.known_head import KnownHead

HEAD = b"POST /v1/a?b=c HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\nAuthorization: Bearer k\r\n\r\n"
HEADERS = [(b"host", b"x"), (b"content-length", b"3"), (b"authorization", b"Bearer k")]


def request(body, head=HEAD):
    return head % len(body) + body


class Transport(asyncio.Transport):
    def __init__(self):
        super().__init__()
        self.written = b""
        self.is_over = False

    def get_extra_info(self, name, default=None):
        return {"peername": ("1.2.3.4", 5), "sockname": ("127.0.0.1", 80)}.get(name, default)

    def write(self, data):
        self.written += data

    def get_write_buffer_size(self):
        return 0

    def is_closing(self):
        return self.is_over

    def close(self):
        self.is_over = True

    abort = close

    def pause_reading(self):
        pass

    resume_reading = pause_reading


async def seen(pieces, *, knows=True):
    """What an app is asked and what the client is sent, when these pieces come; and how many heads were not parsed."""
    found = []

    async def app(scope, receive, send):
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message["body"]
            if not message["more_body"]:
                break
        found.append((scope["method"], scope["raw_path"], scope["query_string"], list(scope["headers"]), body))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    guard = Guard(client_timeout_s=30, keep_alive_s=75)
    connection = guard(uvicorn.Config(app, http=guard, interface="asgi3", log_config=None), ServerState(), {})
    transport = Transport()
    connection.connection_made(transport)
    num_parsed = 0
    parse = connection._feed

    def count(data):
        nonlocal num_parsed
        num_parsed += 1
        parse(data)

    connection._feed = count
    if not knows:
        connection._get_to_know = lambda data: None
    for piece in pieces:
        if not transport.is_over:
            connection.data_received(piece)
        for _ in range(6):
            await asyncio.sleep(0)
    connection.connection_lost(None)
    return found, transport.written, num_parsed


@pytest.mark.parametrize(
    ("pieces", "num_parsed"),
    [
        ([request(b"abc")] * 3, 1),
        ([request(b"abc"), request(b"x" * 1000), request(b"")], 1),
        ([request(b"abc"), request(b"abc").lower()], 2),
        ([request(b"abc"), request(b"abc") * 2, request(b"abc")], 3),
        ([request(b"abc"), request(b"abc")[:-1], b"c", request(b"abc")], 3),
        ([request(b"abc"), HEAD % 3, b"abc", request(b"abc")], 3),
        ([request(b"abc"), HEAD % 3 + b"abcd"], 2),
        ([request(b"abc"), (HEAD % 3).replace(b": 3", b": +3") + b"abc", request(b"abc")], 2),
        ([request(b"abc"), (HEAD % 3).replace(b": 3", b": 003") + b"abc", request(b"abc")], 1),
        ([request(b"abc"), (HEAD % 3).replace(b": 3", b": " + b"0" * 30 + b"3") + b"abc", request(b"abc")], 3),
        ([request(b"abc"), b"\r\n", request(b"abc")], 3),
        ([request(b"abc"), b"PO", request(b"abc")[2:], request(b"abc")], 3),
        ([request(b"abc"), b"PO", request(b"abc")], 3),
        ([request(b"abc") + b"\r\n", request(b"abc")], 2),
        ([request(b"\r\nbc") + b"\r\n", HEAD % 4 + b"\r\nabcd"], 2),
        ([b"\r\n\r\n" + request(b"abc"), request(b"abc"), request(b"abc")], 2),
        ([request(b"abc", HEAD.replace(b"x\r", b"x\r\nConnection: close\r"))] * 2, 1),
        ([request(b"abc", HEAD.replace(b"1.1", b"1.0"))] * 2, 1),
        ([request(b"abc", HEAD.replace(b"x\r", b"x\r\nExpect: 100-continue\r"))] * 2, 2),
        ([request(b"abc", HEAD.replace(b"x\r", b"x\r\nConnection: upgrade\r\nUpgrade: h2c\r"))] * 2, 2),
        ([request(b"abc", HEAD.replace(b"x\r", b"x\r\nX-A: b\r\n c\r"))] * 2, 1),
        ([HEAD.replace(b"Content-Length: %d", b"Transfer-Encoding: chunked") + b"3\r\nabc\r\n0\r\n\r\n"] * 2, 2),
        ([b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"] * 2, 2),
        ([b"GET / HTTP/1.1\r\nX-Content-Length: 3\r\n\r\nabc"], 1),
    ],
)
async def test_a_known_head_means_what_it_meant(pieces, num_parsed):
    found, written, number = await seen(pieces)
    assert (found, written) == (await seen(pieces, knows=False))[:2]
    assert number == num_parsed


def test_what_is_found_out_of_a_head_is_kept_with_it():
    known = KnownHead.of(request(b"abc"), HEADERS)
    first, body = known.read(request(b"abcde"))
    assert (first, body) == ([*HEADERS[:1], (b"content-length", b"5"), HEADERS[2]], b"abcde")
    first.notes["a"] = 1
    second, _ = known.read(request(b"a"))
    assert second.notes == {"a": 1}
    assert second[1] == (b"content-length", b"1")
    assert first[1] == (b"content-length", b"5")


@pytest.mark.parametrize(
    ("data", "headers"),
    [
        (b"abc", HEADERS),
        (b"", HEADERS),
        (request(b"abc") + b"d", HEADERS),
        (request(b"abc")[:-1], HEADERS),
        (request(b"abc"), [*HEADERS, HEADERS[1]]),
        (request(b"abc"), HEADERS[:1]),
    ],
)
def test_only_one_whole_message_of_one_length_is_remembered(data, headers):
    assert KnownHead.of(data, headers) is None
