"""Who looks after connections, with a clock that only tests move; over sockets see tests/security."""

from __future__ import annotations

import asyncio
import logging

import pytest
import uvicorn
from uvicorn.server import ServerState

from langport import http_protocol
from langport.http_protocol import LINGER_S, MIN_BYTES_PER_S, TELL_S, Guard, State

TIMEOUT_S, KEEP_ALIVE_S = 30.0, 75.0
HEAD = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


class Transport(asyncio.Transport):
    def __init__(self):
        super().__init__()
        self.written = b""
        self.ended = ""
        self.num_waiting = 0

    def get_extra_info(self, name, default=None):
        return default

    def write(self, data):
        self.written += data

    def get_write_buffer_size(self):
        return self.num_waiting

    def is_closing(self):
        return bool(self.ended)

    def close(self):
        self.ended = self.ended or "closed"

    def abort(self):
        self.ended = "aborted"

    def pause_reading(self):
        pass

    def resume_reading(self):
        pass


class Site:
    """A server whose app answers when it is told to."""

    def __init__(self, **options):
        self.clock = Clock()
        self.guard = Guard(client_timeout_s=TIMEOUT_S, keep_alive_s=KEEP_ALIVE_S, clock=self.clock, **options)
        self.config = uvicorn.Config(self.app, http=self.guard, interface="asgi3", log_config=None)
        self.may_answer = asyncio.Event()
        self.reads = True
        self.connections = []

    async def app(self, scope, receive, send):
        if self.reads:
            self.reading = asyncio.ensure_future(_read_all(receive))
        await self.may_answer.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})

    def connect(self):
        connection = self.guard(self.config, ServerState(), {})
        connection.connection_made(Transport())
        self.connections.append(connection)
        return connection

    async def close(self):
        """Let nothing wait."""
        self.may_answer.set()
        for connection in self.connections:
            connection.connection_lost(None)
        await turns()

    def pass_time(self, seconds):
        """In steps of a second, with a look after each."""
        for _ in range(int(seconds)):
            self.clock.now += 1
            self.guard.look()


async def _read_all(receive):
    while (await receive()).get("more_body"):
        pass


@pytest.fixture
async def make():
    made = []

    def make(**options):
        made.append(Site(**options))
        return made[-1]

    yield make
    for site in made:
        await site.close()


@pytest.fixture
async def site(make):
    return make()


async def turns():
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("data", "state", "limit_s"),
    [
        (b"", State.IDLE, KEEP_ALIVE_S),
        (b"\r\n", State.IDLE, KEEP_ALIVE_S),
        (HEAD[:-1], State.HEAD, TIMEOUT_S),
        (POST, State.BODY, TIMEOUT_S),
    ],
)
async def test_what_waits_for_its_client_does_so_for_so_long(site, data, state, limit_s):
    connection = site.connect()
    connection.data_received(data)
    await turns()
    assert connection.state()[0] is state
    site.pass_time(limit_s)
    assert connection.transport.ended == ""
    site.pass_time(2)
    assert connection.transport.ended == "closed"
    assert connection.transport.written.startswith(b"HTTP/1.1 408" if state is not State.IDLE else b"")


async def test_a_head_that_drips_has_no_longer(site):
    connection = site.connect()
    for number in range(40):
        connection.data_received(HEAD[number % 5 : number % 5 + 1] if number < 5 else b"a")
        site.pass_time(1)
    assert connection.transport.ended == "closed"


async def test_a_body_has_longer_the_more_comes(site):
    connection = site.connect()
    connection.data_received(POST)
    await turns()
    for _ in range(10 * int(TIMEOUT_S)):
        connection.data_received(b" " * MIN_BYTES_PER_S)
        await turns()
        site.pass_time(1)
    assert connection.transport.ended == ""
    for _ in range(3 * int(TIMEOUT_S)):
        connection.data_received(b" ")
        await turns()
        site.pass_time(1)
    assert connection.transport.ended == "closed"


async def test_time_in_which_nobody_reads_a_body_is_not_its_clients(site):
    site.reads = False
    connection = site.connect()
    connection.data_received(POST)
    await turns()
    connection.data_received(b" " * 70_000)
    assert connection.is_reading_paused
    site.pass_time(1)
    since = connection.since_s
    site.pass_time(100)
    assert connection.since_s == since + 100
    assert connection.transport.ended == ""


async def test_a_body_that_nobody_wants_any_more_may_come_for_a_while(site):
    site.may_answer.set()
    connection = site.connect()
    connection.data_received(POST)
    await turns()
    assert connection.state()[0] is State.UNREAD
    connection.data_received(b" " * 1000)
    site.pass_time(LINGER_S)
    assert connection.transport.ended == ""
    site.pass_time(2)
    assert connection.transport.ended == "closed"


async def test_an_answer_must_be_read(site):
    connection = site.connect()
    connection.data_received(HEAD)
    await turns()
    connection.pause_writing()
    for number in range(3):
        connection.transport.num_waiting = 1000 - number
        site.pass_time(TIMEOUT_S - 1)
    assert connection.transport.ended == ""
    site.pass_time(3)
    assert connection.transport.ended == "aborted"


async def test_work_has_no_limit_here(site):
    connection = site.connect()
    connection.data_received(HEAD)
    await turns()
    assert connection.state()[0] is State.WORKING
    site.pass_time(10 * KEEP_ALIVE_S)
    assert connection.transport.ended == ""


async def test_those_that_wait_for_their_clients_go_first_and_the_oldest_of_them(make):
    site = make(max_connections=5)
    found = []
    for _ in range(4):
        found.append(site.connect())
        site.clock.now += 1
    working, idle, other, head = found
    working.data_received(HEAD)
    head.data_received(HEAD[:5])
    await turns()
    site.pass_time(1)
    site.connect()
    assert not any(connection.transport.ended for connection in (working, idle, other, head))
    for victim in (head, idle, other):
        site.pass_time(1)
        site.connect()
        assert victim.transport.ended == "aborted"
    assert working.transport.ended == ""


async def test_when_all_work_the_newest_goes(make):
    site = make(max_connections=2)
    working = [site.connect() for _ in range(2)]
    for connection in working:
        connection.data_received(HEAD)
    await turns()
    assert site.connect().transport.ended == "aborted"
    assert not any(connection.transport.ended for connection in working)


async def test_one_line_a_minute_tells_of_all(site, caplog):
    caplog.set_level(logging.INFO)
    for _ in range(100):
        site.connect().data_received(b"nonsense\r\n")
    site.pass_time(TELL_S - 1)
    assert [record.getMessage() for record in caplog.records] == [
        "Connections of clients that were ended: 100 not HTTP."
    ]
    site.connect().data_received(b"nonsense\r\n")
    site.pass_time(2)
    assert len(caplog.records) == 2


def test_there_may_be_as_many_as_files_allow(monkeypatch):
    monkeypatch.setattr(http_protocol.resource, "getrlimit", lambda what: (1024, 20_000))
    raised = []
    monkeypatch.setattr(http_protocol.resource, "setrlimit", lambda what, limits: raised.append(limits))
    assert http_protocol.connections_there_may_be() == (20_000 - 256) // 2
    assert raised == [(20_000, 20_000)]
