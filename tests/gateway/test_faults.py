"""`langport gateway` in front of a server that fails at every byte of its answer, alone and in a route with a good one.

Alone, a client gets an error with a status as long as no event was whole, and after that an error event: never an end
that looks like a good one. In a route whatever has not begun is answered by the other server.
"""

from __future__ import annotations

import itertools
import json
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest
import yaml

from tests.gateway.faulty import DONE, EVENTS, PLAIN, FaultyServer, answer, faulty_server
from tests.gateway.upstream import upstream_server
from tests.security.raw import Answer, ask, connected, request
from tests.server.process import Server, running, until

FORMS = ("events", "unframed", "plain")
PATIENCE_S = 0.5
"""Of the gateway with the server that fails."""


@pytest.fixture(scope="module")
def faulty() -> Iterator[FaultyServer]:
    with faulty_server() as server:
        yield server


@pytest.fixture(scope="module")
def slamming() -> Iterator[str]:
    """A server that takes connections and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_slam, args=(listener,), daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


def _slam(listener: socket.socket) -> None:
    linger = (struct.pack("ii", 1, 0), struct.pack("ii", 0, 0))
    with suppress(OSError):
        for number in itertools.count():
            connection, _ = listener.accept()
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger[number % 2])
            connection.close()


@pytest.fixture(scope="module")
def gateway(faulty: FaultyServer, slamming: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`bad` is the server that fails, `good` is it as well where no fault is asked for, `dead` is none, and `slamming`
    hangs up on everybody."""
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        dead = f"http://127.0.0.1:{nobody.getsockname()[1]}"
    slow = {"first_byte_timeout_s": PATIENCE_S, "chunk_timeout_s": PATIENCE_S}
    lenient = {"max_failures": 10**9, "failure_rate": 1.0, "check_interval_s": 0, "cooldown_s": 0.01}
    upstreams: list[dict[str, object]] = [
        {"name": "bad", "url": faulty.url, "model": "m", **slow},
        {"name": "dead", "url": dead},
        {"name": "slamming", "url": slamming},
        {"name": "good", "url": faulty.url, "model": "good"},
    ]
    settings = {
        "upstreams": upstreams,
        "routes": {
            name: {
                "deployments": [{"model": name.removesuffix("-or-good")}, {"model": "stand-in", "priority": 1}],
                "retry": {"budget": 1e9},
                "health": lenient,
            }
            for name in ("bad-or-good", "dead-or-good", "slamming-or-good")
        },
    }
    with upstream_server() as other:
        upstreams.append({"name": "stand-in", "url": other.url})
        file = tmp_path_factory.mktemp("faults") / "langport.yaml"
        file.write_text(yaml.safe_dump(settings))
        with running("--config", str(file), command="gateway") as server:
            yield server


def body(model: str, form: str, **fault: object) -> bytes:
    fields = {"model": model, "messages": [], "form": form, "stream": form != "plain"}
    return json.dumps({**fields, **({"fault": fault} if fault else {})}).encode()


def told(port: int, model: str, form: str, **fault: object) -> Answer:
    return ask(port, request(body=body(model, form, **fault)))


def is_good(found: Answer, form: str) -> bool:
    """Whether it is the whole answer of a good server."""
    if form == "plain":
        return found.status == 200 and "choices" in json.loads(found.body)
    is_over = found.body.rstrip(b"\n").endswith(DONE.rstrip(b"\n"))  # its empty line may be missing
    return found.status == 200 and is_over and b'"error"' not in found.body


def is_error(found: Answer, statuses: tuple[int, ...] = (502,)) -> bool:
    return found.status in statuses and len(found.message) > 20


def is_broken_off(found: Answer, code: str = "upstream_error") -> bool:
    """Whether it has whole events, then an error event as its last."""
    *events, last, end = found.body.split(b"\n\n")
    error = json.loads(last.removeprefix(b"data: "))["error"]
    return (
        found.status == 200
        and end == b""
        and error["code"] == code
        and [event + b"\n\n" for event in events] == list(EVENTS[: len(events)])
        and len(events) > 0
    )


def first_event_ends(form: str) -> int:
    """The number of bytes after which something may have been sent to the client."""
    whole = answer(form)
    return len(whole) if form == "plain" else whole.index(EVENTS[0]) + len(EVENTS[0])


def last_byte_needed(form: str) -> int:
    """The number of bytes after which the answer is whole: the end of a stream says so itself."""
    whole = answer(form)
    return len(whole) if form == "plain" else whole.index(DONE) + len(DONE)


@pytest.mark.parametrize("how", ["cut", "reset"])
@pytest.mark.parametrize("form", FORMS)
def test_an_answer_that_ends_at_any_byte(gateway: Server, form: str, how: str) -> None:
    for at in range(len(answer(form)) + 1):
        found = told(gateway.port, "bad", form, at=at, how=how)
        if is_good(found, form):
            assert at >= last_byte_needed(form) - len(b"\n\n"), at  # what its last line says is known before it ends
        elif at >= first_event_ends(form) and found.status == 200:
            assert is_broken_off(found), (at, found)
        else:
            assert is_error(found), (at, found)
            assert at < first_event_ends(form) or how == "reset", at  # a reset may overtake what came before it
    assert is_good(told(gateway.port, "bad", form), form)
    until(lambda: gateway.metric("langport_requests_in_flight") == 1, "that nothing is left")


@pytest.mark.parametrize("how", ["cut", "reset"])
@pytest.mark.parametrize("form", FORMS)
def test_what_has_not_begun_is_answered_by_another_server(gateway: Server, form: str, how: str) -> None:
    for at in range(len(answer(form)) + 1):
        found = told(gateway.port, "bad-or-good", form, at=at, how=how)
        assert found.status == 200, (at, found)
        if at < first_event_ends(form):
            assert is_good(found, form), (at, found)
            assert found.headers["x-langport-deployment"] == "stand-in"
        else:
            assert is_good(found, form) or is_broken_off(found), (at, found)


PHASES = {
    "before it says anything": lambda form: 0,
    "in the status line": lambda form: 10,
    "in a header": lambda form: answer(form).index(b"Content-Type") + 15,
    "behind the headers": lambda form: answer(form).index(b"\r\n\r\n") + 4,
    "in the body": lambda form: answer(form).index(b"\r\n\r\n") + 30,
    "before the end": lambda form: len(answer(form)) - 5,
}


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("form", FORMS)
def test_an_answer_that_stands_still(gateway: Server, faulty: FaultyServer, form: str, phase: str) -> None:
    at = PHASES[phase](form)
    num_left = faulty.num_left()
    found = told(gateway.port, "bad", form, at=at, how="stall")
    if at < first_event_ends(form):
        assert is_error(found, (504,)), found
    else:
        # Behind its `[DONE]` a stream is whole, whatever its connection does.
        assert is_good(found, form) or is_broken_off(found, "upstream_timeout")
    until(lambda: faulty.num_left() == num_left + 1, "that the server's work is ended")


@pytest.mark.parametrize("form", FORMS)
def test_a_server_that_stands_still_is_replaced_while_nothing_has_begun(gateway: Server, form: str) -> None:
    for at in (0, 10, first_event_ends(form) - 1):
        assert is_good(told(gateway.port, "bad-or-good", form, at=at, how="stall"), form)


@pytest.mark.parametrize("form", FORMS)
def test_headers_that_drip(gateway: Server, faulty: FaultyServer, form: str) -> None:
    num_left = faulty.num_left()
    assert is_error(told(gateway.port, "bad", form, at=0, how="drip"), (504,))
    until(lambda: faulty.num_left() == num_left + 1, "that the server's work is ended")
    assert is_good(told(gateway.port, "bad-or-good", form, at=0, how="drip"), form)


@pytest.mark.parametrize("phase", ["before it says anything", "behind the headers", "in the body"])
@pytest.mark.parametrize("form", FORMS)
def test_a_client_that_leaves_ends_the_work_in_every_phase(
    gateway: Server, faulty: FaultyServer, form: str, phase: str
) -> None:
    num_stalled, num_left = faulty.num_stalled(), faulty.num_left()
    with connected(gateway.port) as connection:
        connection.send(request(body=body("good", form, at=PHASES[phase](form), how="stall")))
        until(lambda: faulty.num_stalled() == num_stalled + 1, "that it is asked")
    # A connection of an earlier test may be counted late, so there can be more than this one.
    until(lambda: faulty.num_left() > num_left, "that the server's work is ended")


GARBAGE = {
    "nothing": "",
    "text": "Hello!\r\n\r\n",
    "another protocol": "\x16\x03\x01\x02\x00\x01",
    "two lengths": "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
    "a length and chunks": "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a bad chunk": "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "endless headers": "HTTP/1.1 200 OK\r\n" + "X-A: " + "b" * 100_000,
    "another protocol by upgrade": "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n",
    "a redirect": "HTTP/1.1 302 Found\r\nLocation: http://evil.example/\r\nContent-Length: 0\r\n\r\n",
}


@pytest.mark.parametrize("case", GARBAGE)
def test_garbage_is_an_error_and_another_server_is_asked(gateway: Server, case: str) -> None:
    found = told(gateway.port, "bad", "plain", raw=GARBAGE[case])
    assert is_error(found)
    assert b"evil" not in found.body
    assert is_good(told(gateway.port, "bad-or-good", "plain", raw=GARBAGE[case]), "plain")


@pytest.mark.parametrize(("status", "name"), [(429, "Too Many Requests"), (500, "x"), (502, "x"), (503, "x")])
def test_errors_are_passed_on_and_another_server_is_asked(gateway: Server, status: int, name: str) -> None:
    error = json.dumps({"error": {"message": "Not now, please.", "type": "t", "param": None, "code": "c"}})
    raw = f"HTTP/1.1 {status} {name}\r\nRetry-After: 7\r\nContent-Length: {len(error)}\r\n\r\n{error}"
    found = told(gateway.port, "bad", "plain", raw=raw)
    assert (found.status, found.headers["retry-after"], found.message) == (status, "7", "Not now, please.")
    assert is_good(told(gateway.port, "bad-or-good", "plain", raw=raw), "plain")


def test_a_server_that_is_not_there(gateway: Server) -> None:
    for form in FORMS:
        assert is_error(told(gateway.port, "dead", form))
        assert is_good(told(gateway.port, "dead-or-good", form), form)


def test_a_server_that_hangs_up_at_once(gateway: Server) -> None:
    for _ in range(100):
        assert is_error(told(gateway.port, "slamming", "events"))
        assert is_good(told(gateway.port, "slamming-or-good", "events"), "events")


def test_a_good_answer_comes_byte_for_byte(gateway: Server) -> None:
    assert told(gateway.port, "good", "plain").body == PLAIN
    for form in ("events", "unframed"):
        assert told(gateway.port, "good", form).body == b"".join(EVENTS) + DONE
