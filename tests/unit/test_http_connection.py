"""What one connection sends for what its app does, byte for byte; test_http_protocol.py has who looks after it."""

from __future__ import annotations

import asyncio
import gc
import logging

import pytest
import uvicorn
from uvicorn.server import ServerState

from langport.direct import DirectReceive, DirectSend
from langport.http_connection import HIGH_WATER
from langport.http_protocol import Guard

GET = b"GET /a%20b?c=d HTTP/1.1\r\nHost: x\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\n"


class Transport(asyncio.Transport):
    def __init__(self):
        super().__init__()
        self.writes = []
        self.ended = ""
        self.is_paused = False

    @property
    def written(self):
        return b"".join(self.writes)

    def get_extra_info(self, name, default=None):
        return {"peername": ("1.2.3.4", 5), "sockname": ("127.0.0.1", 80)}.get(name, default)

    def write(self, data):
        self.writes.append(data)

    def get_write_buffer_size(self):
        return 0

    def is_closing(self):
        return bool(self.ended)

    def close(self):
        self.ended = self.ended or "closed"

    def abort(self):
        self.ended = "aborted"

    def pause_reading(self):
        assert not self.is_paused
        self.is_paused = True

    def resume_reading(self):
        assert self.is_paused
        self.is_paused = False


@pytest.fixture
async def connect():
    """Makes a connection to an app, and its transport."""
    made = []

    def connect(app, state=None):
        guard = Guard(client_timeout_s=30, keep_alive_s=75)
        config = uvicorn.Config(app, http=guard, interface="asgi3", log_config=None)
        connection = guard(config, state or ServerState(), {})
        transport = Transport()
        connection.connection_made(transport)
        made.append(connection)
        return connection, transport

    yield connect
    for connection in made:
        connection.connection_lost(None)
    await turns()


async def turns(number=6):
    for _ in range(number):
        await asyncio.sleep(0)


def start(status=200, *headers):
    return {"type": "http.response.start", "status": status, "headers": list(headers)}


def body(data=b"", *, more=False):
    return {"type": "http.response.body", "body": data, "more_body": more}


def says(*messages):
    async def app(scope, receive, send):
        for message in messages:
            await send(message)

    return app


async def test_a_whole_answer_is_one_write(connect):
    app = says(start(200, (b"content-type", b"a/b"), (b"content-length", b"2")), body(b"hi"))
    connection, transport = connect(app)
    connection.data_received(GET)
    await turns()
    assert transport.writes == [OK + b"content-type: a/b\r\ncontent-length: 2\r\n\r\nhi"]
    assert transport.ended == ""


async def test_a_head_does_not_wait_for_a_body_that_takes_its_time(connect):
    is_there = asyncio.Event()

    async def app(scope, receive, send):
        await send(start())
        await is_there.wait()
        await send(body(b"hi", more=True))
        await send(body())

    connection, transport = connect(app)
    connection.data_received(GET)
    await turns()
    assert transport.writes == [OK + b"transfer-encoding: chunked\r\n\r\n"]
    is_there.set()
    await turns()
    assert transport.writes[1:] == [b"2\r\nhi\r\n", b"0\r\n\r\n"]


async def test_the_scope_says_what_was_asked(connect):
    scopes = []

    async def app(scope, receive, send):
        scopes.append(scope)
        await says(start(204), body())(scope, receive, send)

    connection, _ = connect(app)
    connection.data_received(GET)
    await turns()
    (scope,) = scopes
    assert (scope["method"], scope["path"], scope["raw_path"]) == ("GET", "/a b", b"/a%20b")
    assert (scope["query_string"], scope["headers"], scope["http_version"]) == (b"c=d", [(b"host", b"x")], "1.1")
    assert (scope["client"], scope["server"], scope["scheme"]) == (("1.2.3.4", 5), ("127.0.0.1", 80), "http")


@pytest.mark.parametrize(
    ("request_line", "messages", "written"),
    [
        (b"HEAD / HTTP/1.1", [start(200, (b"content-length", b"5")), body()], b"content-length: 5\r\n\r\n"),
        (b"HEAD / HTTP/1.1", [start(), body(b"hi", more=True), body()], b"\r\n"),
        (b"GET / HTTP/1.0", [start(), body(b"hi", more=True), body()], b"connection: close\r\n\r\nhi"),
        (b"GET / HTTP/1.0", [start(200, (b"content-length", b"2")), body(b"hi")],
         b"content-length: 2\r\nconnection: close\r\n\r\nhi"),
        (b"GET / HTTP/1.1", [start(), body(b"hi")], b"transfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"),
    ],
)  # fmt: skip
async def test_bodies_are_framed_as_the_client_understands_it(connect, request_line, messages, written):
    connection, transport = connect(says(*messages))
    connection.data_received(request_line + b"\r\nHost: x\r\n\r\n")
    await turns()
    assert transport.written == OK + written
    assert transport.ended == ("closed" if b"1.0" in request_line else "")


async def test_an_answer_may_end_the_connection(connect):
    connection, transport = connect(says(start(200, (b"connection", b"close"), (b"content-length", b"0")), body()))
    connection.data_received(GET)
    await turns()
    assert transport.written.count(b"connection: close") == 1
    assert transport.ended == "closed"


async def test_a_body_is_handed_over_as_it_comes(connect):
    got = []

    async def app(scope, receive, send):
        while not got or got[-1]["more_body"]:
            got.append(await receive())
        await says(start(204), body())(scope, receive, send)

    connection, transport = connect(app)
    connection.data_received(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\nExpect: 100-continue\r\n\r\n")
    await turns()
    assert transport.written == b"HTTP/1.1 100 Continue\r\n\r\n"
    connection.data_received(b"abc")
    await turns()
    connection.data_received(b"def")
    await turns()
    assert [(message["body"], message["more_body"]) for message in got] == [(b"abc", True), (b"def", False)]


async def test_a_body_that_nobody_reads_is_not_taken_in_without_end(connect):
    may_read = asyncio.Event()
    got = []

    async def app(scope, receive, send):
        await may_read.wait()
        got.append(await receive())
        await asyncio.Event().wait()

    connection, transport = connect(app)
    connection.data_received(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
    connection.data_received(b"x" * (HIGH_WATER + 1))
    assert transport.is_paused
    may_read.set()
    await turns()
    assert len(got[0]["body"]) == HIGH_WATER + 1
    assert not transport.is_paused


async def test_requests_that_come_early_are_answered_in_their_order(connect):
    paths = []
    gates = [asyncio.Event(), asyncio.Event()]

    async def app(scope, receive, send):
        paths.append(scope["path"])
        await gates[len(paths) - 1].wait()
        await says(start(200, (b"content-length", b"1")), body(scope["path"][1:].encode()))(scope, receive, send)

    connection, transport = connect(app)
    connection.data_received(b"GET /1 HTTP/1.1\r\nHost: x\r\n\r\nGET /2 HTTP/1.1\r\nHost: x\r\n\r\n")
    await turns()
    assert paths == ["/1"]
    assert transport.is_paused
    gates[1].set()
    gates[0].set()
    await turns()
    assert paths == ["/1", "/2"]
    assert [data[-1:] for data in transport.writes] == [b"1", b"2"]
    assert not transport.is_paused


@pytest.mark.parametrize(
    ("messages", "written"),
    [
        ([], b"HTTP/1.1 500 Internal Server Error"),
        ([start(200, (b"x-a", b"1\r\nx-b: 2")), body()], b"HTTP/1.1 500 Internal Server Error"),
        ([start(200, (b"content-length", b"1")), body(b"two")], b"HTTP/1.1 500 Internal Server Error"),
        ([start(200, (b"content-length", b"9")), body(b"two")], b"HTTP/1.1 500 Internal Server Error"),
        ([start(), body(b"one", more=True)], OK),
        ([start(), body(b"one", more=True), start()], OK),
    ],
)
async def test_what_is_no_answer_is_an_error_or_the_end_of_the_connection(connect, messages, written, caplog):
    caplog.set_level(logging.CRITICAL)
    connection, transport = connect(says(*messages))
    connection.data_received(GET)
    await turns()
    assert transport.written.startswith(written)
    assert b"x-b" not in transport.written
    assert not transport.written.endswith(b"0\r\n\r\n")
    assert transport.ended == "closed"


async def test_pieces_can_be_written_without_a_task(connect):
    given = []

    async def app(scope, receive, send):
        assert isinstance(send, DirectSend)
        given.append(send)
        await send(start())
        await send(body(b"one", more=True))
        await asyncio.Event().wait()

    connection, transport = connect(app)
    connection.data_received(GET)
    await turns()
    (send,) = given
    assert send.write(b"two")
    connection.pause_writing()
    calls = []
    assert not send.write(b"three")
    send.when_ready(lambda: calls.append("ready"))
    assert calls == []
    connection.resume_writing()
    assert calls == ["ready"]
    send.when_ready(lambda: calls.append("still"))
    assert calls == ["ready", "still"]
    assert transport.writes[1:] == [b"3\r\ntwo\r\n", b"5\r\nthree\r\n"]
    connection.pause_writing()
    send.when_ready(lambda: calls.append("gone"))
    connection.connection_lost(None)
    assert calls == ["ready", "still", "gone"]
    assert send.write(b"four")
    assert len(transport.writes) == 3


async def test_a_send_waits_for_a_client_that_does_not_read(connect):
    sent = []

    async def app(scope, receive, send):
        await send(start())
        for piece in (b"a", b"b"):
            await send(body(piece, more=True))
            sent.append(piece)
        await send(body())

    connection, transport = connect(app)
    connection.pause_writing()
    connection.data_received(GET)
    await turns()
    assert (sent, transport.writes) == ([], [])
    connection.resume_writing()
    await turns()
    assert sent == [b"a", b"b"]


@pytest.mark.parametrize("is_answered", [False, True])
async def test_a_client_that_leaves_is_told_of_once_and_only_before_its_answer_is_complete(connect, is_answered):
    told = []
    messages = []

    async def app(scope, receive, send):
        assert isinstance(receive, DirectReceive)
        await receive()
        assert receive.when_gone(lambda: told.append(1))
        if is_answered:
            await says(start(204), body())(scope, receive, send)
        messages.append(await receive())
        receive.when_gone(lambda: told.append(2))

    connection, _ = connect(app)
    connection.data_received(GET)
    await turns()
    connection.connection_lost(None)
    await turns()
    assert messages == [{"type": "http.disconnect"}]
    assert told == ([] if is_answered else [1, 2])


async def test_the_server_can_wait_for_its_tasks_and_connections(connect):
    state = ServerState()
    go_on = asyncio.Event()

    async def app(scope, receive, send):
        await go_on.wait()
        await says(start(204), body())(scope, receive, send)

    connection, transport = connect(app, state)
    connection.data_received(GET)
    await turns()
    assert len(state.tasks) == len(state.connections) == 1
    connection.shutdown()
    assert transport.ended == ""
    go_on.set()
    await turns()
    assert transport.ended == "closed"
    assert b"connection: close" in transport.written
    connection.connection_lost(None)
    assert not state.tasks
    assert not state.connections


async def test_a_request_leaves_nothing_that_only_the_collector_finds(connect):
    connection, _ = connect(says(start(200, (b"content-length", b"2")), body(b"hi")))
    connection.data_received(GET)
    await turns()
    gc.collect()
    gc.disable()
    try:
        gc.set_debug(gc.DEBUG_SAVEALL)
        for _ in range(3):
            connection.data_received(GET)
            await turns()
        gc.collect()
        assert [found for found in gc.garbage if type(found).__module__.startswith("langport")] == []
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
