"""A server of which more is asked than it can do: one waits, one is refused, health answers, draining ends it well."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.server.conftest import ENDLESS
from tests.server.process import Server, running, until

PATH = "/v1/completions"
LONG = {"model": "endless", "prompt": "Once upon a time", "max_tokens": ENDLESS - 100, "ignore_eos": True, "seed": 1}


@pytest.fixture
def server(endless_model: Path) -> Iterator[Server]:
    """With one sequence in a step, hence two places."""
    with running(str(endless_model), "--max-num-seqs", "1", "--model-requests-per-minute", "1000") as server:
        yield server


def ask(server: Server) -> socket.socket:
    """A request whose answer nobody waits for; closing the connection is leaving."""
    body = json.dumps(LONG).encode()
    connection = socket.create_connection(("127.0.0.1", server.port))
    connection.sendall(f"POST {PATH} HTTP/1.1\r\nHost: t\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    return connection


def until_in_flight(server: Server, number: int) -> None:
    """So many requests, and the one for the metrics."""
    until(lambda: server.metric("langport_requests_in_flight") == number + 1, f"{number} requests")


def post(server: Server, **headers: str) -> httpx.Response:
    body = {**LONG, "max_tokens": 3}
    return httpx.post(server.url + PATH, json=body, headers=headers, timeout=60, trust_env=False)


def test_a_full_server_refuses_at_once_and_goes_on(server: Server) -> None:
    with ExitStack() as stack:
        stream = stack.enter_context(server.stream(PATH, **LONG))  # which ends when nobody holds it
        next(stream)
        stack.enter_context(ask(server))
        until_in_flight(server, 2)
        refused = post(server, **{"x-langport-max-wait": "0"})
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "server_overloaded"
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.headers["x-ratelimit-limit-requests"] == "1000"
        for path in ("/health", "/ready", "/v1/models"):
            assert server.get(path) is not None
        # Somebody waits, and leaves again.
        with ask(server):
            until_in_flight(server, 3)
        until_in_flight(server, 2)
    answer = post(server)
    assert answer.status_code == 200
    assert answer.headers["x-ratelimit-remaining-requests"] == "997"  # who left while it waited counts for nothing


def test_a_server_that_ends_refuses_what_waits_and_goes_on_with_what_runs(server: Server) -> None:
    with ExitStack() as stack:
        stream = stack.enter_context(server.stream(PATH, **LONG))
        next(stream)
        stack.enter_context(ask(server))
        until_in_flight(server, 2)
        last = stack.enter_context(ask(server))
        until_in_flight(server, 3)
        server.process.send_signal(signal.SIGTERM)
        last.settimeout(60)
        assert last.recv(65536).startswith(b"HTTP/1.1 503")
        for _ in range(3):
            next(stream)
    assert server.wait_end() == 0
