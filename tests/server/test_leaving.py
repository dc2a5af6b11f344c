"""Clients that leave give back their place: the server has one, and its model would go on for many minutes."""

from __future__ import annotations

import json
import socket
from contextlib import ExitStack

from tests.server.conftest import ENDLESS
from tests.server.process import Server, until

PATH = "/v1/completions"
LONG = {"model": "endless", "prompt": "Once upon a time", "max_tokens": ENDLESS - 100, "ignore_eos": True, "seed": 1}


def num_running(server: Server) -> float:
    return server.metric("langport_engine_num_running", model="endless")


def num_waiting(server: Server) -> float:
    return server.metric("langport_engine_num_waiting", model="endless")


def num_queued(server: Server) -> float:
    """Those that the gateway has not let into the engine."""
    return server.metric("langport_queued_requests", queue="endless")


def assert_the_place_is_free(server: Server) -> None:
    """The next request is answered, and then nothing is left of any."""
    answer = server.post(PATH, **{**LONG, "max_tokens": 3})
    assert answer["usage"]["completion_tokens"] == 3
    until(lambda: num_running(server) == num_waiting(server) == num_queued(server) == 0, "an empty engine")
    until(lambda: server.metric("langport_requests_in_flight") == 1, "no request but the one for the metrics")
    assert server.metric("langport_engine_kv_cache_usage", model="endless") == 0


def send(server: Server, body: bytes, content_length: int) -> socket.socket:
    """A request sent by hand, whose connection the caller closes."""
    connection = socket.create_connection(("127.0.0.1", server.port))
    head = f"POST {PATH} HTTP/1.1\r\nHost: test\r\nContent-Length: {content_length}\r\n\r\n"
    connection.sendall(head.encode() + body)
    return connection


def test_a_stream_that_is_left(narrow_server: Server) -> None:
    with narrow_server.stream(PATH, **LONG) as events:
        for _ in range(3):
            assert next(events)["choices"][0]["finish_reason"] is None
        assert num_running(narrow_server) == 1
    assert_the_place_is_free(narrow_server)


def test_a_plain_request_that_is_left(narrow_server: Server) -> None:
    body = json.dumps(LONG).encode()
    with send(narrow_server, body, len(body)):
        until(lambda: num_running(narrow_server) == 1, "a running sequence")
    assert_the_place_is_free(narrow_server)


def test_a_waiting_request_that_is_left_before_its_first_byte(narrow_server: Server) -> None:
    for is_stream in (False, True):
        body = json.dumps({**LONG, "stream": is_stream}).encode()
        with narrow_server.stream(PATH, **LONG) as events:
            next(events)
            with send(narrow_server, body, len(body)):
                until(lambda: num_waiting(narrow_server) == 1, "a waiting sequence")
            until(lambda: num_waiting(narrow_server) == 0, "an empty queue")
            assert num_running(narrow_server) == 1
            assert next(events)["choices"][0]["finish_reason"] is None
        assert_the_place_is_free(narrow_server)


def test_a_request_that_is_left_in_the_middle_of_its_body(narrow_server: Server) -> None:
    body = json.dumps(LONG).encode()
    with send(narrow_server, body[:20], len(body)):
        until(lambda: narrow_server.metric("langport_requests_in_flight") == 2, "a request in flight")
    assert_the_place_is_free(narrow_server)


def test_many_choices_and_many_prompts_that_are_left(narrow_server: Server) -> None:
    with narrow_server.stream(PATH, **{**LONG, "n": 3, "prompt": ["a", "b", "c"]}) as events:
        next(events)
        until(lambda: num_waiting(narrow_server) == 8, "eight waiting sequences")
    assert_the_place_is_free(narrow_server)


def test_many_clients_that_leave_at_once(narrow_server: Server) -> None:
    body = json.dumps({**LONG, "stream": True}).encode()
    with ExitStack() as connections:
        for _ in range(20):
            connections.enter_context(send(narrow_server, body, len(body)))
        until(lambda: num_queued(narrow_server) + num_waiting(narrow_server) == 19, "a long queue")
        assert num_waiting(narrow_server) >= 1
    assert_the_place_is_free(narrow_server)


def test_a_stop_string_frees_the_place_too(narrow_server: Server) -> None:
    with narrow_server.stream(PATH, **LONG) as events:
        shown = "".join(next(events)["choices"][0]["text"] for _ in range(8))
    answer = narrow_server.post(PATH, **LONG, stop=[shown[2:4]])
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["choices"][0]["text"] == shown[: shown.index(shown[2:4])]
    assert_the_place_is_free(narrow_server)
