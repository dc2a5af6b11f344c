"""Requests that two readers could understand differently, that are too large, or that ask for what is not there."""

from __future__ import annotations

import gzip
import json
import socket
from pathlib import Path

import pytest

from tests.gateway.upstream import Upstream
from tests.security.raw import AUTHORIZATION, BODY, CHAT, KEY, ask, chunked, connected, request
from tests.server.process import Server, until

SMUGGLED = request("GET", "/v1/models")
CHUNKED = b"Transfer-Encoding: chunked"

AMBIGUOUS = {
    "a length twice": request(body=BODY + SMUGGLED, length=b"Content-Length: %d\r\nContent-Length: 0" % len(BODY)),
    "the same length twice": request(length=b"Content-Length: %d\r\nContent-Length: %d" % ((len(BODY),) * 2)),
    "a list of lengths": request(length=b"Content-Length: %d, %d" % ((len(BODY),) * 2)),
    "a length with a sign": request(length=b"Content-Length: +%d" % len(BODY)),
    "a negative length": request(length=b"Content-Length: -1"),
    "a length in hexadecimal": request(length=b"Content-Length: 0x10"),
    "a length of many digits": request(length=b"Content-Length: " + b"9" * 40),
    "no length": request(length=b"Content-Length:"),
    "a space before the colon": request(length=b"Content-Length : %d" % len(BODY)),
    "chunked and a length": request("POST", CHAT, CHUNKED, body=b"0\r\n\r\n" + SMUGGLED),
    "chunked twice": request("POST", CHAT, CHUNKED, CHUNKED, body=chunked(BODY), length=b""),
    "chunked before another coding": request("POST", CHAT, CHUNKED + b", gzip", body=chunked(BODY), length=b""),
    "chunked behind another coding": request(length=b"Transfer-Encoding: gzip, chunked", body=chunked(BODY)),
    "a coding that looks like chunked": request(length=b"Transfer-Encoding: xchunked", body=chunked(BODY)),
    "a coding that is none": request(length=b"Transfer-Encoding: identity"),
    "chunked in HTTP/1.0": request(length=CHUNKED, body=chunked(BODY), version=b"HTTP/1.0"),
    "a negative chunk": request(length=CHUNKED, body=b"-1\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "a chunk of 0x": request(length=CHUNKED, body=b"0x%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)),
    "a chunk behind a space": request(length=CHUNKED, body=b" %x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)),
    "a chunk before a space": request(length=CHUNKED, body=b"%x \r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)),
    "a chunk that overflows": request(length=CHUNKED, body=b"10000000000000002\r\nab\r\n0\r\n\r\n"),
    "a chunk that is longer than it says": request(length=CHUNKED, body=b"2\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "chunks in bare line feeds": request(length=CHUNKED, body=chunked(BODY).replace(b"\r\n", b"\n")),
    "bare line feeds": request().replace(b"\r\n", b"\n"),
    "a bare line feed in a header": request("POST", CHAT, b"X-A: b\nX-Smuggled: 1"),
    "a bare carriage return in a header": request("POST", CHAT, b"X-A: b\rX-Smuggled: 1"),
    "a folded header": request("POST", CHAT, b"X-A: b\r\n c", key=b""),
    "a folded first header": request().replace(b"Host", b" Host", 1),
    "a folded key": request(key=b"Authorization: Bearer\r\n " + KEY.encode()),
    "a name with a space": request("POST", CHAT, b"X A: b"),
    "a name that is empty": request("POST", CHAT, b": b"),
    "a line without a colon": request("POST", CHAT, b"X-A"),
    "NUL in a header": request("POST", CHAT, b"X-A: b\0c"),
    "NUL in a name": request("POST", CHAT, b"X\0A: b"),
    "NUL in the path": request("POST", b"/v1/chat\0/completions"),
    "a control character in a header": request("POST", CHAT, b"X-A: b\x01c"),
    "two hosts": request("POST", CHAT, b"Host: other"),
    "two keys": request("POST", CHAT, b"Authorization: Bearer other"),
    "two keys, the good one last": request("POST", CHAT, AUTHORIZATION, key=b"Authorization: Bearer other"),
    "two Azure keys": request("POST", CHAT, b"api-key: a", b"API-Key: b"),
    "two content types": request("POST", CHAT, b"Content-Type: text/plain", b"Content-Type: application/json"),
    "two of LangPort's own": request("POST", CHAT, b"x-langport-max-wait: 1", b"x-langport-max-wait: 2"),
    "a space in the path": request("POST", b"/v1/chat/completions /x"),
    "bytes in the path that are not ASCII": request("POST", "/v1/chät/completions".encode()),
    "no path": request("POST", b""),
    "another version": request(version=b"HTTP/1.2"),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a version in small letters": request(version=b"http/1.1"),
    "a method that is none": request().replace(b"POST", b"PO ST", 1),
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
}


@pytest.mark.parametrize("case", AMBIGUOUS)
def test_what_readers_do_not_agree_on_is_refused_and_nothing_behind_it_is_read(
    server: Server, upstream: Upstream, case: str
) -> None:
    num_asked = len(upstream.requests)
    with connected(server.port) as connection:
        connection.send(AMBIGUOUS[case] + SMUGGLED)
        answer = connection.read()
        assert answer.status == 400
        assert len(answer.message) > 20
        assert KEY not in answer.message
        assert connection.is_ended()
    assert len(upstream.requests) == num_asked


@pytest.mark.parametrize(
    "header", [AUTHORIZATION, b"X-Api-Key: " + KEY.encode(), b"X-Langport-Max-Wait: nonsense", b"Host: other"]
)
def test_fields_behind_a_body_are_no_headers(server: Server, header: bytes) -> None:
    end = b"0\r\n" + header + b"\r\n\r\n"
    open_door = request(length=CHUNKED, body=chunked(BODY, end=end))
    closed_door = request(length=CHUNKED, body=chunked(BODY, end=end), key=b"")
    assert ask(server.port, open_door).status == 200
    assert ask(server.port, closed_door).status == 401


def test_bodies_in_chunks_with_extensions_are_read(server: Server, upstream: Upstream) -> None:
    body = b'5;name="a;b"\r\n' + BODY[:5] + b"\r\n" + chunked(BODY[5:])
    assert ask(server.port, request(length=b"transfer-encoding:\tChunked", body=body)).status == 200
    assert json.loads(upstream.requests[-1][2])["messages"] == json.loads(BODY)["messages"]


# Size.

HEAVY_HEADS = {
    "a long header": request("GET", "/v1/models", b"X-A: " + b"a" * 100_000),
    "many headers": request("GET", "/v1/models", *(b"X-%d: a" % number for number in range(300))),
    "a flood of headers": request("GET", "/v1/models", *(b"X-%d: a" % number for number in range(9000))),
    "a long name": request("GET", "/v1/models", b"a" * 70_000 + b": 1"),
}


@pytest.mark.parametrize("case", HEAVY_HEADS)
def test_a_heavy_head_is_refused(server: Server, case: str) -> None:
    with connected(server.port) as connection:
        connection.send(HEAVY_HEADS[case] + SMUGGLED)
        answer = connection.read()
        assert answer.status == 431
        assert "headers" in answer.message
        assert connection.is_ended()


def test_a_long_target_is_refused(server: Server) -> None:
    answer = ask(server.port, request("GET", b"/v1/models?" + b"a" * 100_000))
    assert answer.status in (400, 431)


@pytest.mark.parametrize(
    ("begin", "piece"),
    [
        (b"GET /v1/models HTTP/1.1\r\nX-A: ", b"a" * 65536),
        (b"GET /v1/models HTTP/1.1\r\n", b"X-A: b\r\n" * 8192),
        (b"GET /", b"a" * 65536),
        (request(length=CHUNKED, body=b"") + b"5;", b"a" * 65536),
        (request(length=CHUNKED, body=b"") + b"0\r\nX-A: ", b"a" * 65536),
        (request(length=CHUNKED, body=b"") + b"0\r\n", b"X-A: b\r\n" * 8192),
    ],
    ids=["header", "headers", "target", "chunk extension", "trailer", "trailers"],
)
def test_what_never_ends_is_ended_and_takes_no_memory(server: Server, begin: bytes, piece: bytes) -> None:
    before = resident_bytes(server)
    with connected(server.port) as connection:
        connection.send(begin)
        for _ in range(256):  # 16 MiB
            connection.send(piece)
        try:
            status = connection.read().status
        except EOFError:  # it hung up on so much that its answer was lost on the way
            status = 431
        assert status in (400, 431)
    assert resident_bytes(server) - before < 8 * 1024 * 1024


def test_a_body_that_is_too_large_is_refused_before_it_comes(server: Server) -> None:
    answer = ask(server.port, request(body=b"", length=b"Content-Length: 999999999999999"))
    assert answer.status == 413
    assert "--max-body-size" in answer.message


def test_chunks_without_end_are_refused_and_take_no_memory(server: Server) -> None:
    before = resident_bytes(server)
    with connected(server.port) as connection:
        connection.send(request(length=CHUNKED, body=b""))
        for _ in range(256):  # 16 MiB, of which one is allowed
            connection.send(chunked(b" " * 65536, end=b""))
        assert connection.read().status == 413
    assert resident_bytes(server) - before < 8 * 1024 * 1024


@pytest.mark.parametrize("encoding", [b"gzip", b"deflate", b"br", b"gzip, identity"])
def test_a_compressed_body_is_not_unpacked(server: Server, upstream: Upstream, encoding: bytes) -> None:
    num_asked = len(upstream.requests)
    bomb = gzip.compress(BODY + b" " * 10_000_000)
    answer = ask(server.port, request("POST", CHAT, b"Content-Encoding: " + encoding, body=bomb))
    assert answer.status == 400
    assert "Content-Encoding" in answer.message
    assert len(upstream.requests) == num_asked


def resident_bytes(server: Server) -> int:
    fields = Path(f"/proc/{server.process.pid}/statm").read_text().split()
    return int(fields[1]) * 4096


# Targets.

TARGETS = [
    "/v1/chat%2Fcompletions",
    "/v1/chat/completions/",
    "/v1/chat/completions//",
    "/v1/chat/completions?api-version=../../admin",
    "/v1/chat/completions?a=b%0d%0aX-Smuggled:%201",
    "/v1/chat/completions/../../admin",
    "/v1/chat/completions/..%2f..%2fadmin",
    "/v1/chat/completions%2f..%2f..%2fadmin",
    "/v1/chat/completions%00",
    "/v1/chat/completions%0d%0aX-Smuggled:%201",
    "/v1/../v1/chat/completions",
    "/v1/./chat/completions",
    "//v1/chat/completions",
    "/v1//chat/completions",
    "/v1%2fchat/completions",
    "/%761/chat/completions",
    "/v1/%2e%2e/chat/completions",
    "/v1/engines/far/completions",
    "/v1/engines/far%2F..%2F..%2Fadmin/completions",
    "/v1/engines/..%2f..%2fadmin/completions",
    "/v1/engines/../completions",
    "/openai/deployments/far/chat/completions?api-version=1%0d%0aX:y",
    "/openai/deployments/..%2f..%2fadmin/chat/completions",
    "/openai/deployments/far/../../admin/chat/completions",
    "/openai/deployments/far%00/chat/completions",
    "/v1/messages/../../admin",
    "http://evil.example/v1/chat/completions",
    "http://evil.example@127.0.0.1:1/v1/chat/completions",
    "https://user:password@evil.example:9/v1/embeddings",
    "HTTP://EVIL.EXAMPLE/v1/completions",
    "/v1/responses/..%2f..%2fadmin",
    "/anthropic/v1/messages",
    "/\\evil.example/v1/chat/completions",
    "/v1/chat/completions;admin",
    "/v1/chat/completions%23",
]
UPSTREAM_PATHS = {"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/messages", "/v1/responses"}


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_of_a_target_reaches_an_upstream_but_which_route_it_is(
    server: Server, upstream: Upstream, target: str
) -> None:
    num_asked = len(upstream.requests)
    answer = ask(server.port, request("POST", target, b"X-Forwarded-Host: evil.example"))
    assert answer.status in (200, 400, 404, 405)
    asked = upstream.requests[num_asked:]
    assert (answer.status == 200) == bool(asked)
    for path, headers, _ in asked:
        assert path in UPSTREAM_PATHS
        assert headers["host"] == upstream.url.removeprefix("http://")
        assert not {"x-smuggled", "x-forwarded-host"} & headers.keys()


@pytest.mark.parametrize("target", ["evil.example:443", "http://evil.example", "*", "?", "#", "/v1/models#a"])
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "CONNECT", "TRACE", "PROPFIND"])
def test_other_targets_lead_nowhere(server: Server, upstream: Upstream, method: str, target: str) -> None:
    num_asked = len(upstream.requests)
    answer = ask(server.port, request(method, target))
    assert answer.status in (400, 404, 405) or target.startswith("/v1/models")
    assert b"evil.example" not in answer.body
    assert len(upstream.requests) == num_asked


@pytest.mark.parametrize("host", [b"evil.example", b"a b", b"", b"[::1", b"127.0.0.1:99999", b"a/../b?c#d@e"])
def test_the_host_changes_nothing(server: Server, upstream: Upstream, host: bytes) -> None:
    answer = ask(server.port, request().replace(b"Host: test", b"Host: " + host, 1))
    assert answer.status == 200
    assert host not in answer.body or not host
    assert "evil" not in str(answer.headers)
    assert upstream.requests[-1][1]["host"] == upstream.url.removeprefix("http://")


def test_an_odd_path_stays_in_its_line_of_the_log(server: Server) -> None:
    target = "/v1/x%0d%0a2026-01-01%20INFO%20forged%1b[31m"
    assert ask(server.port, request("GET", target)).status == 404
    until(lambda: "forged" in server.log, "its line in the log")
    assert not any(line.startswith("2026-01-01") for line in server.log.splitlines())
    assert "\x1b" not in server.log


# Several requests, and other protocols.


def test_requests_in_one_go_are_answered_in_their_order(server: Server) -> None:
    ids = [f"pipelined-{number}" for number in range(50)]
    with connected(server.port) as connection:
        connection.send(b"".join(request("POST", CHAT, b"x-request-id: " + id.encode()) for id in ids))
        answers = [connection.read() for _ in ids]
    assert [answer.headers["x-request-id"] for answer in answers] == ids
    assert {answer.status for answer in answers} == {200}


def test_nonsense_behind_a_request_never_gets_into_its_answer(server: Server, upstream: Upstream) -> None:
    upstream.hold.clear()
    upstream.began.clear()
    try:
        streamed = BODY[:-1] + b',"stream":true}'
        with connected(server.port) as connection:
            connection.send(request(body=streamed))
            assert upstream.began.wait(60)
            seen = b""
            while b"data: " not in seen:
                seen += connection.socket.recv(65536)
            connection.send(b"nonsense\r\n\r\n")
            while data := _received(connection.socket):
                seen += data
        assert seen.count(b"HTTP/1.1") == 1
        assert b"nonsense" not in seen
        assert not seen.endswith(b"0\r\n\r\n")  # it does not look whole
    finally:
        upstream.hold.set()


def _received(connection: socket.socket) -> bytes:
    try:
        return connection.recv(65536)
    except ConnectionResetError:
        return b""


@pytest.mark.parametrize("form", ["length", "chunked"])
def test_a_client_that_offers_http_2_is_answered_in_this_one(server: Server, form: str) -> None:
    offer = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA")
    length, body = (None, BODY) if form == "length" else (CHUNKED, chunked(BODY))
    with connected(server.port) as connection:
        connection.send(request("POST", CHAT, *offer, body=body, length=length) + SMUGGLED)
        assert connection.read().status == 200
        assert connection.read().status == 200


def test_the_body_of_such_a_client_may_come_later(server: Server) -> None:
    with connected(server.port) as connection:
        head = request("POST", CHAT, b"Connection: Upgrade", b"Upgrade: h2c").removesuffix(BODY)
        connection.send(head)
        connection.send(BODY[:10])
        connection.send(BODY[10:])
        assert connection.read().status == 200


def test_websockets_and_tunnels_are_not_there(server: Server) -> None:
    offer = (b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Key: AA==", b"Sec-WebSocket-Version: 13")
    assert ask(server.port, request("GET", "/v1/responses", *offer)).status == 405
    assert ask(server.port, request("CONNECT", "evil.example:443")).status == 400
    assert "websocket" not in server.log.lower()


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_closes_its_side_has_left(server: Server, upstream: Upstream, stream: bool) -> None:
    upstream.hold.clear()
    upstream.began.clear()
    upstream.left.clear()
    try:
        body = BODY[:-1] + b',"stream":true}' if stream else BODY
        with connected(server.port) as connection:
            connection.send(request(body=body))
            assert upstream.began.wait(60)
            connection.socket.shutdown(1)
            if stream:
                assert upstream.left.wait(60)
            assert b"[DONE]" not in b"".join(iter(lambda: _received(connection.socket), b""))
    finally:
        upstream.hold.set()
