"""Clients that take their time, or all connections: they are cut off, and others are answered meanwhile."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.gateway.upstream import Upstream
from tests.security.raw import BODY, KEY, Connection, ask, connected, request
from tests.server.process import Server, running, until

MAX_CONNECTIONS = 24
HEAD = request("GET", "/v1/models")


@pytest.fixture(scope="module")
def strict(upstream: Upstream) -> Iterator[Server]:
    """With a patience of one second, and few connections."""
    options = ("--client-timeout", "1", "--max-connections", str(MAX_CONNECTIONS), "--api-key", KEY)
    with running("--upstream", f"far={upstream.url}/v1#big", *options, command="gateway") as server:
        yield server


def drip(connection: Connection, data: bytes) -> None:
    """Send it byte by byte, until the server has had enough."""
    connection.socket.settimeout(0.05)
    for number in range(len(data)):
        connection.send(data[number : number + 1])
        try:
            answer = connection.socket.recv(1, socket.MSG_PEEK)
        except TimeoutError:
            continue
        except ConnectionResetError:
            return
        assert answer in (b"", b"H")
        break
    else:
        raise AssertionError("it was all taken")
    connection.socket.settimeout(60)


@pytest.mark.parametrize("data", [HEAD, request()[:-1] + b" " * 2000], ids=["head", "body"])
def test_what_drips_is_given_up(strict: Server, data: bytes) -> None:
    data = data if data is HEAD else data.replace(b"Content-Length: ", b"Content-Length: 9")
    head, _, rest = data.partition(b"\r\n\r\n")
    with connected(strict.port) as connection:
        if data is HEAD:
            drip(connection, b"GET /" + b"a" * 2000)
        else:
            connection.send(head + b"\r\n\r\n")
            drip(connection, rest)
        answer = connection.read()
        assert answer.status == 408
        assert "in time" in answer.message
        assert connection.is_ended()


def test_who_sends_nothing_more_is_given_up(strict: Server) -> None:
    for begin in (HEAD[:10], HEAD[:-2], request()[:-1]):
        with connected(strict.port) as connection:
            connection.send(begin)
            assert connection.read().status == 408
            assert connection.is_ended()


@pytest.mark.parametrize("begin", [b"", b"\r\n", HEAD[:10], HEAD, request()[:-1]], ids=range(5))
def test_who_holds_all_connections_starves_nobody(strict: Server, begin: bytes) -> None:
    held = [Connection(strict.port) for _ in range(3 * MAX_CONNECTIONS)]
    try:
        for connection in held:
            connection.send(begin)
        for path in ("/health", "/v1/models"):
            assert ask(strict.port, request("GET", path)).status == 200
        assert ask(strict.port, request()).status == 200
    finally:
        for connection in held:
            connection.socket.close()


def test_connections_at_work_are_not_ended_for_others(strict: Server, upstream: Upstream) -> None:
    upstream.hold.clear()
    upstream.began.clear()
    try:
        with connected(strict.port) as connection:
            connection.send(request())
            assert upstream.began.wait(60)
            held = [Connection(strict.port) for _ in range(3 * MAX_CONNECTIONS)]
            upstream.hold.set()
            assert connection.read().status == 200
            for other in held:
                other.socket.close()
    finally:
        upstream.hold.set()


def test_who_does_not_read_its_answer_is_given_up_and_so_is_the_upstreams_work(
    strict: Server, upstream: Upstream
) -> None:
    upstream.hold.clear()
    upstream.left.clear()
    upstream.flood.set()
    try:
        with connected(strict.port) as connection:
            connection.send(request(body=BODY[:-1] + b',"stream":true}'))
            assert upstream.left.wait(60)
    finally:
        upstream.flood.clear()
        upstream.hold.set()


def test_the_log_tells_of_them_in_sums(strict: Server) -> None:
    for _ in range(20):
        with connected(strict.port) as connection:
            connection.send(b"nonsense\r\n\r\n")
            assert connection.read().status == 400
    until(lambda: "Connections of clients that were ended:" in strict.log, "the line in the log")
    lines = [line for line in strict.log.splitlines() if "that were ended" in line or "Invalid HTTP" in line]
    assert len(lines) <= 2
