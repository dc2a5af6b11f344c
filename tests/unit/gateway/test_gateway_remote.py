"""A gateway in front of servers on real sockets: what goes on, what comes back, and all that servers do wrong."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest
from gateway_fakes import Client
from raw_server import chunked, gateway_to, plain, raw_server, says, served, until

from langport.errors import UpstreamFailed
from langport.gateway.app import Gateway
from langport.gateway.remote import Events
from langport.settings.tree import GatewaySettings

OK = plain(b'{"ok":true}')
CHAT = "/v1/chat/completions"
ASK = {"model": "far", "messages": []}
EVENTS = [b'data: {"n":%d,"text":"\xc3\xa4"}\n\n' % n for n in range(3)]
DONE = b"data: [DONE]\n\n"


async def ask(gateway, body=ASK, path=CHAT, **kwargs):
    return await Client(gateway).post(path, body, **kwargs)


# What goes on.


async def test_a_body_goes_on_byte_for_byte_but_for_the_name():
    body = b' {"weird" : [1e400, "\\u00e9", {"model":"inner"}], "model"\t:\n"far" ,"x":"\\"model\\":1" }\n'
    async with raw_server(says(OK)) as server:
        async with gateway_to(server.url) as (gateway, _):
            assert (await ask(gateway, body)).json == {"ok": True}
        async with gateway_to(server.url, model='org/"big"') as (gateway, _):
            await ask(gateway, body)
    assert server.requests[0].body == body
    assert server.requests[1].body == body.replace(b'"far"', b'"org/\\"big\\""')


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("/openai/deployments/far/chat/completions?api-version=1", b'{"messages":[]}', b'{"model":"m","messages":[]}'),
        ("/v1/engines/far/completions", b"{ }", b'{"model":"m" }'),
        ("/v1/engines/far/completions", b'{"a":{"model":"x"},"model":null}', b'{"a":{"model":"x"},"model":"m"}'),
        ("/chat/completions", b'{"model":"far"}', b'{"model":"m"}'),
    ],
)
async def test_a_model_in_the_path_comes_into_the_body(path, body, expected):
    async with raw_server(says(OK)) as server, gateway_to(server.url, model="m") as (gateway, _):
        assert (await ask(gateway, body, path)).status == 200
    assert server.requests[0].body == expected
    assert server.requests[0].line.startswith("POST /v1/")


@pytest.mark.parametrize("body", [b'{"model":"far","model":"far"}', b'{"mod\\u0065l":"other","model":"far"}'])
async def test_two_models_are_refused_because_servers_do_not_agree_which_counts(body):
    async with raw_server(says(OK)) as server, gateway_to(server.url) as (gateway, _):
        found = await ask(gateway, body)
    assert (found.status, found.error["param"]) == (400, "model")
    assert server.requests == []


@pytest.mark.parametrize(
    ("base", "path", "expected"),
    [
        ("", CHAT, "/v1/chat/completions"),
        ("/", CHAT, "/v1/chat/completions"),
        ("/v1", CHAT, "/v1/chat/completions"),
        ("/v1/", "/v1/embeddings", "/v1/embeddings"),
        ("/api/v1", "/v1/responses", "/api/v1/responses"),
        ("/v1beta/openai/", CHAT, "/v1beta/openai/chat/completions"),
        ("/vllm", CHAT, "/vllm/v1/chat/completions"),
        ("/v1", "/tokenize", "/tokenize"),
        ("/vllm/v1", "/detokenize", "/vllm/detokenize"),
    ],
)
async def test_paths_are_those_under_a_clients_base_url(base, path, expected):
    async with raw_server(says(OK)) as server, gateway_to(server.url + base) as (gateway, _):
        await ask(gateway, path=path)
    assert server.requests[0].line == f"POST {expected} HTTP/1.1"


async def test_azure_has_the_model_in_the_path_and_a_header_of_its_own():
    azure = {"model": "a b", "api": "azure", "key": "azure-key-1"}
    async with raw_server(says(OK)) as server, gateway_to(server.url, **azure) as (gateway, _):
        await ask(gateway)
        await ask(gateway, path="/openai/deployments/far/chat/completions?api-version=2025-01-01-preview")
        await ask(gateway, path="/openai/deployments/far/embeddings?api-version=%0d%0ax")
        await ask(gateway, path="/v1/responses")
    assert [request.line.split()[1] for request in server.requests] == [
        "/openai/deployments/a%20b/chat/completions?api-version=2024-10-21",
        "/openai/deployments/a%20b/chat/completions?api-version=2025-01-01-preview",
        "/openai/deployments/a%20b/embeddings?api-version=2024-10-21",
        "/openai/v1/responses",
    ]
    for request in server.requests:
        assert request.named["api-key"] == "azure-key-1"
        assert "authorization" not in request.named
    assert server.requests[0].json["model"] == "far"  # the path says it
    assert server.requests[3].json["model"] == "a b"


# Keys.

OWN = "sk-gateway-0001"
CONFIGURED = "sk-configured-0002"
CLIENT_HEADERS = {
    "authorization": f"Bearer {OWN}",
    "api-key": OWN,
    "x-api-key": OWN,
    "x-goog-api-key": OWN,
    "cookie": f"key={OWN}",
    "proxy-authorization": f"Bearer {OWN}",
    "openai-organization": "org-1",
    "openai-beta": "assistants=v2",
    "x-stainless-lang": "python",
    "connection": "x-smuggled",
    "x-smuggled": "1",
    "te": "trailers",
    "user-agent": "test/1",
}


async def test_no_key_of_this_server_goes_on():
    settings = GatewaySettings(api_keys=(OWN,))
    async with raw_server(says(OK)) as server:
        async with gateway_to(server.url, gateway=settings, key="env:K", environment={"K": CONFIGURED}) as (gateway, _):
            assert (await ask(gateway, headers=CLIENT_HEADERS)).status == 200
        async with gateway_to(server.url, gateway=settings) as (gateway, _):
            assert (await ask(gateway, headers=CLIENT_HEADERS)).status == 200
    first, second = (request.named for request in server.requests)
    assert OWN not in str(server.requests)
    assert first["authorization"] == f"Bearer {CONFIGURED}"
    assert "authorization" not in second
    assert (first["openai-beta"], first["x-stainless-lang"], first["user-agent"]) == (
        "assistants=v2",
        "python",
        "test/1",
    )
    assert not {"openai-organization", "x-smuggled", "te", "connection", "cookie"} & first.keys()
    assert first["accept-encoding"] == "identity"


async def test_the_clients_key_goes_on_where_the_settings_say_so():
    settings = GatewaySettings(api_keys=(OWN,))
    async with raw_server(says(OK)) as server:
        async with gateway_to(server.url, gateway=settings, forward_key=True) as (gateway, _):
            await ask(gateway, headers=CLIENT_HEADERS)
            await ask(gateway, headers={"x-api-key": OWN})
        async with gateway_to(server.url, api="azure", forward_key=True) as (gateway, _):
            await ask(gateway, headers={"authorization": "Bearer theirs"})
            await ask(gateway)
    first, second, azure, none = (request.named for request in server.requests)
    assert first["authorization"] == second["authorization"] == f"Bearer {OWN}"
    assert first["openai-organization"] == "org-1"
    assert "x-goog-api-key" not in first
    assert azure["api-key"] == "theirs"
    assert not {"authorization", "api-key"} & none.keys()


async def test_headers_of_the_settings_are_added_and_win():
    headers = {"X-Team": "env:TEAM", "User-Agent": "ours"}
    async with (
        raw_server(says(OK)) as server,
        gateway_to(
            server.url.replace("//", "//me:se%40same@"),
            headers=headers,
            forward_headers=("x-tenant", "Cookie"),
            environment={"TEAM": "blue"},
        ) as (gateway, _),
    ):
        await ask(gateway, headers={**CLIENT_HEADERS, "x-tenant": "t"})
    found = server.requests[0].named
    assert (found["x-team"], found["user-agent"], found["x-tenant"]) == ("blue", "ours", "t")
    assert found["authorization"] == "Basic bWU6c2VAc2FtZQ=="
    assert "cookie" not in found


async def test_a_key_does_not_come_back(caplog):
    """An answer that repeats what the server was sent, in its headers or in an error, is cleaned of the key."""
    caplog.set_level(logging.DEBUG)
    body = b'{"error":{"message":"bad key %b","type":"x","param":null,"code":null}}' % CONFIGURED.encode()
    echo = plain(body, "403 Forbidden", b"X-Echo: Bearer " + CONFIGURED.encode())
    async with raw_server(says(echo)) as server, gateway_to(server.url, key=CONFIGURED) as (gateway, _):
        found = await ask(gateway)
        assert found.status == 403
        assert found.error["message"] == "bad key (hidden)"
        metrics = (await Client(gateway).get("/metrics")).body.decode()
    assert CONFIGURED not in str(found.messages) + metrics + caplog.text


@pytest.mark.parametrize("status", ["401 Unauthorized", "407 Proxy Authentication Required"])
async def test_a_refused_key_is_the_operators_matter_and_not_the_clients(status):
    refusal = plain(b'{"error":{"message":"Incorrect API key: sk-conf**0002"}}', status)
    async with raw_server(says(refusal)) as server:
        async with gateway_to(server.url, key=CONFIGURED) as (gateway, _):
            found = await ask(gateway)
            assert (found.status, found.error["code"]) == (502, "upstream_error")
            assert "refuses the key" in found.error["message"]
            assert b"sk-conf" not in found.body
        async with gateway_to(server.url, forward_key=True) as (gateway, _):
            assert (await ask(gateway)).status == int(status[:3])


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "307 Temporary Redirect", "308 Permanent Redirect"])
async def test_a_redirect_is_never_followed_and_not_passed_on(status):
    async with raw_server(says(OK)) as elsewhere:
        moved = plain(b"", status, f"Location: {elsewhere.url}/v1/chat/completions".encode())
        async with raw_server(says(moved)) as server, gateway_to(server.url, key=CONFIGURED) as (gateway, _):
            found = await ask(gateway)
    assert found.status == 502
    assert "redirect" in found.error["message"]
    assert "location" not in found.headers
    assert elsewhere.requests == []


# What comes back.


@pytest.mark.parametrize("status", ["400 Bad Request", "404 Not Found", "429 Too Many Requests", "500 Oops", "503 No"])
async def test_an_error_of_the_server_is_passed_on_as_it_is(status):
    body = b'{"error": {"message": "no", "type": "t", "param": null, "code": "c"}, "more": 1}'
    answer = plain(body, status, b"Retry-After: 7", b"x-ratelimit-remaining-requests: 0", b"Set-Cookie: a=b")
    async with raw_server(says(answer)) as server, gateway_to(server.url) as (gateway, _):
        found = await ask(gateway)
    assert (found.status, found.body) == (int(status[:3]), body)
    assert (found.headers["retry-after"], found.headers["x-ratelimit-remaining-requests"]) == ("7", "0")
    assert "set-cookie" not in found.headers


async def test_headers_about_the_connection_stay_here():
    hop = (b"Connection: keep-alive, X-Hop", b"X-Hop: 1", b"Keep-Alive: timeout=5", b"Server: x")
    answer = plain(b"{}", "200 OK", *hop, b"X-Custom: 2", b"Access-Control-Allow-Origin: *", b"X-Request-Id: theirs")
    async with raw_server(says(answer)) as server, gateway_to(server.url) as (gateway, _):
        found = await ask(gateway, headers={"x-request-id": "mine"})
    assert {
        "connection",
        "x-hop",
        "keep-alive",
        "access-control-allow-origin",
        "server",
    } & found.headers.keys() == set()
    assert (found.headers["x-custom"], found.headers["x-request-id"]) == ("2", "mine")
    assert server.requests[0].named["x-request-id"] == "mine"


async def test_events_come_one_by_one_as_they_are_sent():
    go_on = asyncio.Event()

    async def script(peer, request):
        await peer.send(chunked(EVENTS[0], is_whole=False))
        await go_on.wait()
        await peer.send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(DONE), DONE))

    async with raw_server(script) as server, gateway_to(server.url) as (gateway, _):
        task = asyncio.create_task(ask(gateway))
        sent = []
        # The client's side of the same request, to see the first event before the second exists.
        client = Client(gateway)
        original = gateway

        async def watching(scope, receive, send):
            async def noting(message):
                sent.append(message)
                await send(message)

            await original(scope, receive, noting)

        client.app = watching
        second = asyncio.create_task(client.post(CHAT, ASK))
        await until(lambda: len(sent) >= 2)
        assert sent[1]["body"] == EVENTS[0]
        go_on.set()
        assert (await task).body == (await second).body == EVENTS[0] + DONE


@pytest.mark.parametrize("separator", [b"\n\n", b"\r\n\r\n", b"\r\r", b"\n\r\n"])
def test_events_are_cut_behind_an_empty_line(separator):
    text = separator.join([b"data: 1", b"event: x\ndata: 2", b"data: 3"]) + separator
    for size in (1, 2, 5, 1000):
        events = Events()
        pieces = [events.take(text[i : i + size]) for i in range(0, len(text), size)]
        assert b"".join(pieces) == text
        assert all(piece.endswith(separator) for piece in pieces if piece)
        assert events.rest == b""


def test_a_comment_is_not_held_back():
    events = Events()
    assert events.take(b": ping\n") == b": ping\n"
    assert events.take(b"data: 1\n") == b""
    assert events.take(b"\n") == b"data: 1\n\n"


async def test_a_stream_cut_at_any_byte_has_whole_events_and_an_error():
    """Never a [DONE] that was not there, never half an event, never silence."""
    whole = chunked(EVENTS[0] + EVENTS[1][:9], EVENTS[1][9:], EVENTS[2], DONE)
    head_end = whole.index(b"\r\n\r\n") + 4
    done_end = whole.index(b"[DONE]\n\n") + 8
    position = 0

    async def script(peer, request):
        await peer.send(whole[:position])
        peer.cut()

    async with raw_server(script) as server, gateway_to(server.url) as (gateway, _):
        for position in range(len(whole)):
            found = await ask(gateway)
            if position < head_end + 4 + len(EVENTS[0]):  # its chunk's length is in front
                assert (found.status, found.error["code"]) == (502, "upstream_error"), position
                continue
            assert found.status == 200
            assert found.finished
            events = found.body.split(b"\n\n")
            assert events.pop() == b""
            if position >= done_end:
                assert found.body == b"".join(EVENTS) + DONE
                continue
            last = json.loads(events.pop().removeprefix(b"data: "))
            assert last["error"]["code"] == "upstream_error"
            assert "closed the connection" in last["error"]["message"]
            assert [event + b"\n\n" for event in events] == EVENTS[: len(events)], position
        position = len(whole)
        assert (await ask(gateway)).body == b"".join(EVENTS) + DONE


async def test_a_plain_answer_cut_at_any_byte_is_an_error_with_a_status():
    whole = plain(b'{"answer":"' + b"x" * 50 + b'"}')
    for position in range(0, len(whole), 7):
        async with (
            raw_server(says(whole[:position], cut=True)) as server,
            gateway_to(server.url) as (gateway, _),
        ):
            found = await ask(gateway)
            assert (found.status, found.error["code"]) == (502, "upstream_error"), position
            assert found.headers["retry-after"] == "1"


async def test_a_stream_without_a_length_must_end_with_its_last_event():
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
    for body, is_whole in (
        (EVENTS[0] + DONE, True),
        (EVENTS[0] + b"data: [DONE]", True),
        (EVENTS[0] + b"data: {", False),
        (EVENTS[0], False),
        (EVENTS[0] + b": ping\n\n", False),
    ):
        async with raw_server(says(head + body, cut=True)) as server, gateway_to(server.url) as (gateway, _):
            found = await ask(gateway)
        assert (b'"error"' not in found.body) == is_whole
        assert found.body.startswith(EVENTS[0])


GARBAGE = [
    b"SSH-2.0-OpenSSH_9.2\r\n",
    b"\x16\x03\x01\x02\x00" * 20,
    b"HTTP/1.1 abc\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\nContent-Length: 1e1\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\nX-A: 1\r\n folded\r\nContent-Length : 2\r\n\r\n{}",
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\nContent-Length: 2\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\n" + b"X-Y: z\r\n" * 20_000 + b"Content-Length: 2\r\n\r\n{}",
]


@pytest.mark.parametrize("garbage", GARBAGE, ids=range(len(GARBAGE)))
async def test_what_is_no_answer_is_an_error(garbage):
    async with raw_server(says(garbage, cut=True)) as server, gateway_to(server.url, key=CONFIGURED) as (gateway, _):
        found = await ask(gateway)
    assert (found.status, found.error["code"]) == (502, "upstream_error")
    assert server.url in found.error["message"]
    assert CONFIGURED not in found.error["message"]


async def test_an_informational_answer_comes_before_the_real_one():
    early = (b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n")
    async with raw_server(says(*early, OK)) as server, gateway_to(server.url) as (gateway, _):
        found = await ask(gateway)
    assert (found.status, found.json) == (200, {"ok": True})
    assert "link" not in found.headers


async def test_a_server_that_cannot_be_reached_is_named_without_what_is_secret(caplog):
    async with raw_server(says(OK)) as server:
        url = server.url.replace("//", "//user:sesame-5@")
    async with gateway_to(url, headers={"x-secret": "sesame-5"}) as (gateway, _):
        found = await ask(gateway)
    assert (found.status, found.error["code"]) == (502, "upstream_error")
    assert found.error["message"] == f"The upstream {server.url} cannot be reached: Connection refused."
    assert "sesame-5" not in caplog.text


async def test_a_name_that_nobody_has():
    async with gateway_to("http://nobody.invalid") as (gateway, _):
        found = await ask(gateway)
    assert found.status == 502
    assert "http://nobody.invalid cannot be reached" in found.error["message"]


# Connections.


async def test_a_connection_serves_one_request_after_the_other():
    async with raw_server(says(OK)) as server, gateway_to(server.url) as (gateway, _):
        for _ in range(5):
            assert (await ask(gateway)).status == 200
        assert server.num_connections == 1
        await asyncio.gather(*(ask(gateway) for _ in range(3)))
    assert 2 <= server.num_connections <= 3


@pytest.mark.parametrize("after", [b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", b"garbage"])
async def test_what_comes_behind_an_answer_is_nobodys(after):
    async with raw_server(says(OK + after)) as server, gateway_to(server.url) as (gateway, _):
        for _ in range(3):
            assert (await ask(gateway)).json == {"ok": True}
    assert server.num_connections == 3


async def test_a_kept_connection_that_is_closed_is_replaced_once():
    async def script(peer, request):
        if peer.number == 1 and len(server.requests) == 1:
            await peer.send(OK)
        elif peer.number < 3:
            peer.cut()
        else:
            await peer.send(OK)

    async with raw_server(script) as server, gateway_to(server.url) as (gateway, _):
        assert (await ask(gateway)).status == 200
        found = await ask(gateway)  # the kept one is cut without an answer, and so is its replacement
        assert (found.status, server.num_connections, len(server.requests)) == (502, 2, 3)
        assert "without an answer" in found.error["message"]
        assert (await ask(gateway)).status == 200


async def test_a_connection_that_began_to_answer_is_not_replaced():
    async def script(peer, request):
        await peer.send(OK if len(server.requests) == 1 else b"HTTP/1.1 2")
        if len(server.requests) > 1:
            peer.cut()

    async with raw_server(script) as server, gateway_to(server.url) as (gateway, _):
        assert (await ask(gateway)).status == 200
        assert (await ask(gateway)).status == 502
    assert len(server.requests) == 2


async def test_an_unused_connection_is_closed_after_a_while_and_not_more_than_some_are_kept():
    now = [100.0]

    async def script(peer, request):
        await until(lambda: len(server.requests) >= 5)  # all at once
        await peer.send(OK)

    async with raw_server(script) as server, gateway_to(server.url, max_idle_connections=2) as (gateway, remote):
        remote.client._clock = lambda: now[0]
        await asyncio.gather(*(ask(gateway) for _ in range(5)))
        await until(lambda: server.num_open == 2)
        remote.client.expire()
        assert len(remote.client._idle) == 2
        now[0] += 4.0
        remote.client.expire()
        await until(lambda: server.num_open == 0)
        assert (await ask(gateway)).status == 200


# Time, by a clock that the test turns.


async def stalled(script, turn_s, *, when, **settings):
    """The answer to a request for which time passes once `when(server)` is so."""
    now = [0.0]
    async with raw_server(script) as server, gateway_to(server.url, **settings) as (gateway, remote):
        remote.client._clock = lambda: now[0]
        asking = asyncio.create_task(ask(gateway))
        await until(lambda: when(server))
        for _ in range(20):
            await asyncio.sleep(0.001)
        now[0] += turn_s - 0.1
        remote.client.expire()
        await asyncio.sleep(0.01)
        assert not asking.done()
        now[0] += 0.2
        remote.client.expire()
        found = await asking
        await until(lambda: server.num_open == 0)
        return found


async def forever(peer, request):
    await peer.wait_hang_up()
    peer.cut()


def begins(*pieces: bytes):
    async def script(peer, request):
        for piece in pieces:
            await peer.send(piece)
        await forever(peer, request)

    return script


async def test_a_server_that_does_not_begin_is_given_up():
    found = await stalled(forever, 5, when=lambda server: server.requests, first_byte_timeout_s=5)
    assert (found.status, found.error["code"]) == (504, "upstream_timeout")
    assert "within 5 s" in found.error["message"]


async def test_headers_that_drip_are_given_up_too():
    script = begins(b"HTTP/1.1 200 OK\r\n", b"X-A: ", b"b\r\n")
    found = await stalled(script, 5, when=lambda server: server.requests, first_byte_timeout_s=5)
    assert found.status == 504


async def test_a_stream_that_stalls_ends_with_an_error_event():
    script = begins(chunked(EVENTS[0], is_whole=False))
    found = await stalled(script, 3, when=lambda server: server.requests, chunk_timeout_s=3)
    assert found.status == 200
    first, last, _ = found.body.split(b"\n\n")
    assert first + b"\n\n" == EVENTS[0]
    assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "upstream_timeout"


async def test_an_answer_may_take_so_long_in_all():
    script = begins(chunked(EVENTS[0], is_whole=False))
    found = await stalled(script, 9, when=lambda server: server.requests, total_timeout_s=9)
    assert b"upstream_timeout" in found.body


async def test_a_server_that_takes_no_connection_is_given_up(monkeypatch):
    async with gateway_to("http://127.0.0.1:9", connect_timeout_s=0.01) as (gateway, remote):

        async def never():
            await asyncio.Event().wait()

        monkeypatch.setattr(remote.client, "_open", never)
        found = await ask(gateway)
    assert (found.status, found.error["code"]) == (504, "upstream_timeout")
    assert "could not be reached within 0.01 s" in found.error["message"]


# Leaving.


@pytest.mark.parametrize("num_gateways", [1, 2])
@pytest.mark.parametrize("messages", [0, 2])
async def test_a_client_that_leaves_ends_the_servers_work(num_gateways, messages):
    """Before the first byte, and in the middle of a stream; what is in between are connections, too."""
    script = forever if messages == 0 else begins(chunked(EVENTS[0], is_whole=False))
    async with raw_server(script) as server, gateway_to(server.url) as (gateway, _):
        if num_gateways == 1:
            await left(gateway, server, messages)
            return
        async with served(gateway) as url, gateway_to(url) as (outer, _):
            await left(outer, server, messages)


async def left(gateway: Gateway, server, messages: int):
    gone = asyncio.Event()
    sent = []

    async def receive():
        if not gone.is_set() and not hasattr(receive, "given"):
            receive.given = True
            return {"type": "http.request", "body": json.dumps(ASK).encode(), "more_body": False}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": CHAT,
        "raw_path": CHAT.encode(),
        "headers": [],
        "query_string": b"",
    }
    answering = asyncio.create_task(gateway(scope, receive, send))
    await until(lambda: server.requests and len(sent) == messages)
    assert server.num_open == 1
    gone.set()
    await asyncio.wait_for(answering, 10)
    await until(lambda: server.num_open == 0)
    assert len(sent) == messages


async def test_a_client_that_leaves_while_it_waits_for_its_turn_gives_it_back():
    release = asyncio.Event()

    async def script(peer, request):
        await release.wait()
        await peer.send(OK)

    async with raw_server(script) as server, gateway_to(server.url, max_concurrency=1) as (gateway, _):
        first = asyncio.create_task(ask(gateway))
        await until(lambda: server.requests)
        second = asyncio.create_task(ask(gateway, leave_after=0))
        await second
        third = asyncio.create_task(ask(gateway))
        await asyncio.sleep(0.01)
        assert len(server.requests) == 1
        release.set()
        assert [(await first).status, (await third).status] == [200, 200]
        assert len(server.requests) == 2


async def test_a_slow_client_holds_the_server_up_and_fills_no_memory():
    sent = 0
    piece = b"data: " + b"x" * 65536 + b"\n\n"

    async def script(peer, request):
        nonlocal sent
        await peer.send(chunked(is_whole=False))
        for _ in range(400):
            await peer.send(b"%x\r\n%b\r\n" % (len(piece), piece))
            sent += len(piece)
        await peer.send(b"0\r\n\r\n")

    async with raw_server(script) as server, gateway_to(server.url) as (gateway, remote):
        may_read = asyncio.Event()
        received = 0

        async def receive():
            if not hasattr(receive, "given"):
                receive.given = True
                return {"type": "http.request", "body": json.dumps(ASK).encode(), "more_body": False}
            return await asyncio.Event().wait()

        async def send(message):
            nonlocal received
            received += len(message.get("body", b""))
            if message["type"] == "http.response.body":
                await may_read.wait()

        scope = {
            "type": "http",
            "method": "POST",
            "path": CHAT,
            "raw_path": CHAT.encode(),
            "headers": [],
            "query_string": b"",
        }
        answering = asyncio.create_task(gateway(scope, receive, send))
        before = -1
        while sent != before or not received:
            before = sent
            await asyncio.sleep(0.05)
        (connection,) = remote.client._live
        assert connection._num_buffered < 1_000_000
        assert sent < 20_000_000 < 400 * len(piece)
        may_read.set()
        await answering
    assert received == 400 * len(piece)


async def test_a_header_with_a_line_break_goes_nowhere():
    async with raw_server(says(OK)) as server, gateway_to(server.url) as (gateway, _):
        found = await ask(gateway, headers={"user-agent": "a\r\nx-evil: 1"})
        assert (found.status, server.requests) == (400, [])


async def test_the_models_that_a_server_lists_come_and_go():
    listing = {"data": [{"id": "a", "owned_by": "them", "max_model_len": 512}, {"id": "far"}, {"id": "org/b"}]}

    async def script(peer, request):
        await peer.send(plain(json.dumps(listing).encode()) if request.line.startswith("GET") else OK)

    from langport.gateway.remote_models import Catalog

    async with raw_server(script) as server, gateway_to(server.url, key=CONFIGURED) as (gateway, remote):
        catalog = Catalog(remote)
        catalog.update(gateway.served, await remote.list_models())
        assert server.requests[0].line == "GET /v1/models HTTP/1.1"
        assert server.requests[0].named["authorization"] == f"Bearer {CONFIGURED}"
        entries = {entry["id"]: entry for entry in (await Client(gateway).get("/v1/models")).json["data"]}
        assert list(entries) == ["far", "a", "org/b"]  # far is the one of the settings
        assert (entries["a"]["owned_by"], entries["a"]["max_model_len"], entries["a"]["root"]) == ("them", 512, "a")
        assert entries["far"]["owned_by"] == "127.0.0.1"
        assert (await ask(gateway, {"model": "org/b"})).status == 200
        del listing["data"][0]
        catalog.update(gateway.served, await remote.list_models())
        assert (await ask(gateway, {"model": "a"})).status == 404
        assert (await ask(gateway, {"model": "far"})).status == 200
        assert (await Client(gateway).get("/ready")).status == 200


@pytest.mark.parametrize(
    "answer", [plain(b"[]"), plain(b"{}", "404 Not Found"), b"nonsense\r\n\r\n", plain(b'{"data":[1]}')]
)
async def test_a_list_that_is_none_is_an_error_that_says_so(answer):
    async with raw_server(says(answer, cut=True)) as server, gateway_to(server.url) as (_, remote):
        with pytest.raises(UpstreamFailed, match=server.url):
            await remote.list_models()


@pytest.mark.parametrize(("status", "lives"), [("200 OK", True), ("401 No", True), ("404 No", True), ("503 No", False)])
async def test_it_lives_when_it_answers(status, lives):
    async with raw_server(says(plain(b"{}", status))) as server, gateway_to(server.url) as (_, remote):
        if lives:
            await remote.check()
        else:
            with pytest.raises(UpstreamFailed, match="GET /v1/models answers 503"):
                await remote.check()
        assert server.requests[0].line == "GET /v1/models HTTP/1.1"
