"""The pipeline: ids, headers, errors before and after the start, clients that leave, health, metrics, log."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest
from gateway_fakes import LEAVE, Client, FakeUpstream, answer, make_client, refuse, stream

from langport.errors import ApiError, CheckpointError, ConfigError, InvalidRequest, RateLimited, Unavailable
from langport.gateway.upstream import Upstream

CHAT = "/v1/chat/completions"
EVENT = b'data: {"choices":[]}\n\n'


async def test_a_request_reaches_its_upstream_unchanged(client, demo):
    body = b'{"model": "demo",  "messages": [], "unknown": [1, 2]}'
    found = await client.post(CHAT + "?a=1", body, headers={"x-own": "1"})
    assert (found.status, found.json) == (200, {"ok": True})
    assert demo.body == body
    assert demo.scope["path"] == CHAT
    assert demo.scope["query_string"] == b"a=1"
    assert (b"x-own", b"1") in demo.scope["headers"]
    request_id = found.headers["x-request-id"]
    known = {"request_id": request_id, "model": "demo", "owner": "", "is_strict": False, "has_model": True}
    extension = dict(demo.scope["extensions"]["langport"])
    assert callable(extension.pop("meter"))
    assert extension == known


async def test_a_body_in_pieces_arrives_in_one(client, demo):
    await client.post(CHAT, chunks=[b'{"mod', b'el": "de', b'mo"}', b""])
    assert demo.body == b'{"model": "demo"}'


@pytest.mark.parametrize(
    ("setting", "header", "is_strict"),
    [
        ("report", None, False),
        ("report", "true", True),
        ("report", " 1", True),
        ("refuse", None, True),
        ("refuse", "False", False),
    ],
)
async def test_a_request_may_choose_to_be_strict(demo, setting, header, is_strict):
    client = make_client({"demo": demo}, unknown_parameters=setting)
    headers = {} if header is None else {"x-langport-strict": header}
    assert (await client.post(CHAT, {"model": "demo"}, headers=headers)).status == 200
    assert demo.scope["extensions"]["langport"]["is_strict"] is is_strict


async def test_a_strictness_that_is_neither_is_refused(client):
    found = await client.post(CHAT, {"model": "demo"}, headers={"x-langport-strict": "maybe"})
    assert found.status == 400
    assert "x-langport-strict must be true or false" in found.error["message"]


async def test_an_alias_reaches_its_target_under_the_targets_name(client, demo):
    found = await client.post(CHAT, {"model": "gpt-4"})
    assert found.status == 200
    assert demo.scope["extensions"]["langport"]["model"] == "demo"


async def test_a_stream_is_relayed_chunk_by_chunk():
    client = make_client({"demo": stream(EVENT, EVENT, b"data: [DONE]\n\n")})
    found = await client.post(CHAT, {"model": "demo", "stream": True})
    assert found.chunks == [EVENT, EVENT, b"data: [DONE]\n\n"]
    assert found.finished
    assert found.headers["content-type"].startswith("text/event-stream")
    assert found.headers["x-request-id"]


class TestHeaders:
    @pytest.mark.parametrize("path", ["/v1/models", "/health", "/nothing", "/v1/models/unknown", "/"])
    async def test_every_answer_has_them(self, client, path):
        headers = (await client.get(path)).headers
        assert headers["x-request-id"]
        assert headers["openai-version"] == "2020-10-01"
        assert headers["openai-organization"] == "langport"
        assert int(headers["openai-processing-ms"]) >= 0

    async def test_ids_differ(self, client):
        ids = {(await client.get("/v1/models")).headers["x-request-id"] for _ in range(50)}
        assert len(ids) == 50

    @pytest.mark.parametrize("given", ["abc", "A-b_c.9", "x" * 128])
    async def test_a_sane_id_is_kept(self, client, given):
        assert (await client.get("/health", headers={"x-request-id": given})).headers["x-request-id"] == given

    @pytest.mark.parametrize("given", ["", "a b", "x" * 129, "a\tb", "ä", "a\n"])
    async def test_another_one_is_replaced(self, client, given):
        kept = (await client.get("/health", headers={"x-request-id": given})).headers["x-request-id"]
        assert kept.startswith("req_")
        assert kept != given

    async def test_the_upstreams_own_ones_are_replaced_and_others_kept(self):
        headers = [(b"x-request-id", b"theirs"), (b"openai-organization", b"theirs"), (b"x-more", b"1")]
        client = make_client({"demo": answer({}, headers=headers)})
        found = await client.post(CHAT, {"model": "demo"}, headers={"x-request-id": "ours"})
        assert found.headers["x-request-id"] == "ours"
        assert found.headers["openai-organization"] == "langport"
        assert found.headers["x-more"] == "1"


class TestErrors:
    async def test_one_from_the_upstream_is_told_in_the_openai_shape(self):
        client = make_client({"demo": refuse(InvalidRequest("n is wrong", param="n", code="odd"))})
        found = await client.post(CHAT, {"model": "demo"})
        assert found.status == 400
        assert found.error == {
            "message": "n is wrong",
            "type": "invalid_request_error",
            "param": "n",
            "code": "odd",
        }
        assert "retry-after" not in found.headers

    @pytest.mark.parametrize(
        ("error", "seconds", "expected"),
        [(RateLimited, 2.1, "3"), (Unavailable, 0.01, "1"), (Unavailable, 7, "7")],
    )
    async def test_retry_after_is_whole_seconds_rounded_up(self, error, seconds, expected):
        raised = error("later")
        raised.retry_after_s = seconds
        found = await make_client({"demo": refuse(raised)}).post(CHAT, {"model": "demo"})
        assert found.status == error.status
        assert found.headers["retry-after"] == expected

    async def test_an_unexpected_one_is_logged_once_and_not_told(self, caplog):
        client = make_client({"demo": refuse(ZeroDivisionError("secret detail"))})
        found = await client.post(CHAT, {"model": "demo"}, headers={"x-request-id": "trace-me"})
        assert (found.status, found.error["type"]) == (500, "server_error")
        assert "secret" not in found.error["message"]
        assert "trace-me" in found.error["message"]
        (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
        assert "trace-me" in record.getMessage()
        assert record.exc_info is not None

    @pytest.mark.parametrize(
        ("raised", "told"),
        [(ApiError("engine gone"), "engine gone"), (ValueError("secret"), "request id trace-me")],
    )
    async def test_a_started_event_stream_ends_with_an_error_event(self, raised, told, caplog):
        client = make_client({"demo": stream(EVENT, then=raised)})
        found = await client.post(CHAT, {"model": "demo"}, headers={"x-request-id": "trace-me"})
        assert found.status == 200
        assert found.finished
        assert found.chunks[0] == EVENT
        last = found.chunks[-1]
        assert last.startswith(b"data: ")
        assert last.endswith(b"\n\n")
        error = json.loads(last[6:])["error"]
        assert told in error["message"]
        assert set(error) == {"message", "type", "param", "code"}
        assert b"secret" not in found.body
        assert len([record for record in caplog.records if record.levelno >= logging.ERROR]) == 1

    async def test_another_started_answer_is_left_unfinished(self):
        client = make_client({"demo": stream(b'{"half', then=ValueError(), content_type=b"application/json")})
        found = await client.post(CHAT, {"model": "demo"})
        assert found.body == b'{"half'
        assert not found.finished

    async def test_one_after_the_end_changes_nothing(self, caplog):
        async def script(receive, send):
            await stream(EVENT)(receive, send)
            raise ValueError("too late")

        found = await make_client({"demo": script}).post(CHAT, {"model": "demo"})
        assert found.chunks == [EVENT]
        assert "too late" in caplog.text

    async def test_an_upstream_that_says_nothing_is_a_server_error(self):
        async def silent(receive, send):
            pass

        found = await make_client({"demo": silent}).post(CHAT, {"model": "demo"})
        assert (found.status, found.error["type"]) == (500, "server_error")

    async def test_the_next_request_is_served(self):
        scripts = iter([refuse(ValueError()), answer({"ok": True})])

        async def script(receive, send):
            await next(scripts)(receive, send)

        client = make_client({"demo": script})
        assert [(await client.post(CHAT, {"model": "demo"})).status for _ in range(2)] == [500, 200]


class TestClientsThatLeave:
    async def test_the_upstream_hears_of_it(self):
        heard = asyncio.Event()

        async def script(receive, send):
            await send(
                {
                    "type": "http.response.start",
                    "status": 200,
                    "headers": [(b"content-type", b"text/event-stream")],
                }
            )
            await send({"type": "http.response.body", "body": EVENT, "more_body": True})
            assert await receive() == {"type": "http.disconnect"}
            heard.set()

        found = await make_client({"demo": script}).post(CHAT, {"model": "demo"}, leave_after=2)
        assert heard.is_set()
        assert found.chunks == [EVENT]

    async def test_before_the_first_byte_nothing_is_sent_and_499_is_counted(self, caplog):
        async def script(receive, send):
            assert (await receive())["type"] == "http.disconnect"

        client = make_client({"demo": script})
        found = await client.post(CHAT, {"model": "demo"}, leave_after=0)
        assert not found.started
        assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
        assert 'status="499"' in (await client.get("/metrics")).body.decode()

    async def test_while_its_body_is_read(self, client, demo, caplog):
        found = await client.post(CHAT, chunks=[b'{"model"', LEAVE])
        assert not found.started
        assert demo.num_calls == 0
        assert not [record for record in caplog.records if record.levelno >= logging.ERROR]

    async def test_a_server_that_says_so_by_oserror_is_no_failure(self, caplog):
        upstream = make_client({"demo": stream(EVENT, EVENT)})

        async def send(message):
            raise OSError("connection lost")

        async def receive():
            return {"type": "http.request", "body": b'{"model": "demo"}', "more_body": False}

        scope = {"type": "http", "method": "POST", "path": CHAT, "headers": [], "query_string": b""}
        await upstream.app(scope, receive, send)
        assert not [record for record in caplog.records if record.levelno >= logging.ERROR]

    async def test_a_cancelled_request_is_no_longer_in_flight(self):
        entered = asyncio.Event()

        async def script(receive, send):
            entered.set()
            await receive()

        client = make_client({"demo": script})
        task = asyncio.create_task(client.post(CHAT, {"model": "demo"}))
        await entered.wait()
        assert "langport_requests_in_flight 2.0" in (await client.get("/metrics")).body.decode()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert "langport_requests_in_flight 1.0" in (await client.get("/metrics")).body.decode()


class TestBodies:
    @pytest.mark.parametrize("body", [b"", b"  ", b"[1, 2]", b'"text"', b"null", b'{"model": "x", ', b"{} x", b"["])
    async def test_what_is_no_json_object_is_refused(self, client, body):
        found = await client.post(CHAT, body)
        assert (found.status, found.error["type"]) == (400, "invalid_request_error")

    @pytest.mark.parametrize("body", [b'{"model": "\xff\xfe"}', b'{"a":' * 20_000, b'{"model": 1e999}'])
    async def test_neither_does_an_odd_one_break_it(self, client, body):
        assert (await client.post(CHAT, body)).status == 400

    @pytest.mark.parametrize("body", [{}, {"model": None}, {"model": ""}])
    async def test_a_missing_model(self, client, body):
        found = await client.post(CHAT, body)
        assert (found.status, found.error["param"]) == (400, "model")
        assert "you must provide a model parameter" in found.error["message"]

    @pytest.mark.parametrize("model", [1, 1.5, True, ["demo"], {"id": "demo"}])
    async def test_a_model_that_is_no_string(self, client, model):
        found = await client.post(CHAT, {"model": model})
        assert (found.status, found.error["param"]) == (400, "model")

    async def test_other_wrong_types_are_the_upstreams_business(self, client, demo):
        assert (await client.post(CHAT, {"model": "demo", "stream": "yes", "messages": 1})).status == 200
        assert demo.num_calls == 1

    async def test_an_unknown_model(self, client):
        found = await client.post(CHAT, {"model": "gpt-5"})
        assert found.status == 404
        assert found.error["code"] == "model_not_found"
        assert found.error["param"] == "model"
        assert "'gpt-5'" in found.error["message"]
        assert "demo, org/name, gpt-4" in found.error["message"]

    async def test_the_message_stays_short(self):
        client = make_client({f"model-{i}": FakeUpstream() for i in range(500)})
        message = (await client.post(CHAT, {"model": "x" * 100_000})).error["message"]
        assert len(message) < 1000

    @pytest.mark.parametrize("length", ["101", "9" * 5000])
    async def test_a_declared_length_over_the_limit_is_refused_unread(self, length):
        client = make_client(max_body_bytes=100)
        found = await client.post(CHAT, chunks=[LEAVE], headers={"content-length": length})
        assert found.status == 413
        assert "100 bytes" in found.error["message"]

    @pytest.mark.parametrize("length", ["", "-1", "1e3", "0x10"])
    async def test_a_length_that_is_no_number(self, client, length):
        found = await client.post(CHAT, chunks=[LEAVE], headers={"content-length": length})
        assert found.status == 400
        assert "Content-Length" in found.error["message"]

    async def test_one_without_a_length_is_refused_while_it_is_read(self):
        client = make_client(max_body_bytes=100)
        found = await client.post(CHAT, chunks=[b"x" * 60, b"x" * 60, LEAVE])
        assert found.status == 413

    async def test_a_body_at_the_limit_is_read(self):
        body = b'{"model": "demo"}'
        assert (await make_client(max_body_bytes=len(body)).post(CHAT, body)).status == 200


class TestOperators:
    async def test_health_is_always_ok(self):
        down = Upstream("demo", FakeUpstream(), card=dict, is_ready=lambda: (False, "loading"))
        found = await make_client({"demo": down}).get("/health")
        assert (found.status, found.json) == (200, {"status": "ok"})

    async def test_ready_says_why_not(self):
        state = {"demo": (False, "loading weights")}
        slow = Upstream("demo", FakeUpstream(), card=dict, is_ready=lambda: state["demo"])
        client = make_client({"demo": slow, "other": FakeUpstream()})
        found = await client.get("/ready")
        assert found.status == 503
        assert found.json == {"status": "not ready", "models": {"demo": "loading weights"}}
        state["demo"] = (True, "")
        found = await client.get("/ready")
        assert (found.status, found.json) == (200, {"status": "ready"})

    async def test_metrics_count_requests_by_route_model_and_status(self, client):
        for model in ("demo", "gpt-4", "made-up"):
            await client.post("/chat/completions", {"model": model})
        await client.get("/made/up")
        found = await client.get("/metrics")
        assert found.headers["content-type"].startswith("text/plain")
        text = found.body.decode()
        assert f'langport_requests_total{{route="{CHAT}",model="demo",upstream="",status="200"}} 2.0' in text
        assert f'langport_requests_total{{route="{CHAT}",model="",upstream="",status="404"}} 1.0' in text
        assert 'langport_requests_total{route="other",model="",upstream="",status="404"} 1.0' in text
        assert f'langport_request_duration_seconds_count{{route="{CHAT}",model="demo",upstream=""}} 2.0' in text
        assert f'langport_time_to_first_byte_seconds_count{{route="{CHAT}",model="demo",upstream=""}} 2.0' in text
        assert "langport_requests_in_flight 1.0" in text
        assert "made" not in text

    async def test_metrics_show_what_engines_report_at_that_moment(self):
        figures = {"num_running": 3, "num_waiting": 1, "kv_cache_usage": 0.5, "more": 7}
        engine = Upstream("a", FakeUpstream(), card=dict, is_ready=lambda: (False, ""), stats=lambda: figures)
        client = make_client({"a": engine, "b": FakeUpstream()})
        text = (await client.get("/metrics")).body.decode()
        assert 'langport_engine_num_running{model="a"} 3.0' in text
        assert 'langport_engine_kv_cache_usage{model="a"} 0.5' in text
        assert 'langport_engine_more{model="a"} 7.0' in text
        assert 'langport_model_ready{model="a"} 0.0' in text
        assert 'langport_model_ready{model="b"} 1.0' in text
        figures["num_running"] = 4
        assert 'langport_engine_num_running{model="a"} 4.0' in (await client.get("/metrics")).body.decode()

    async def test_one_line_in_the_access_log_without_key_or_query(self, caplog):
        caplog.set_level(logging.INFO, logger="langport.access")
        client = make_client(api_keys=["sk-secret"])
        headers = {"authorization": "Bearer sk-secret", "x-request-id": "trace-me"}
        await client.post(CHAT + "?key=sk-secret", {"model": "demo"}, headers=headers)
        (record,) = [record for record in caplog.records if record.name == "langport.access"]
        line = record.getMessage()
        assert line.startswith(f"POST {CHAT} model=demo status=200 ")
        assert line.endswith("id=trace-me")
        assert "sk-secret" not in caplog.text

    async def test_nobody_writes_lines_of_his_own_into_the_log(self, client, caplog):
        caplog.set_level(logging.INFO, logger="langport.access")
        await client.get("/a\nb", raw_path="/a%0Ab")
        await client.get("/a\nb", raw_path=False)
        await client.post(CHAT, {"model": "a\nb"})
        assert len(caplog.records) == 3
        assert not [record for record in caplog.records if "\n" in record.getMessage()]


class TestPages:
    async def test_docs_is_one_page_that_loads_nothing_from_elsewhere(self, client):
        found = await client.get("/docs")
        assert found.headers["content-type"].startswith("text/html")
        assert b"openapi.json" in found.body
        assert b"//" not in found.body.replace(b"http://www.w3.org", b"")

    async def test_openapi_is_made_once(self):
        made = []

        def openapi():
            made.append(1)
            return {"openapi": "3.1.0"}

        client = make_client(openapi=openapi)
        assert not made
        assert [(await client.get("/openapi.json")).json for _ in range(2)] == [{"openapi": "3.1.0"}] * 2
        assert len(made) == 1

    async def test_without_a_document_it_says_so(self, client):
        assert "OpenAPI" in (await client.get("/openapi.json")).error["message"]

    async def test_the_front_page_for_programs_and_people(self, client):
        assert (await client.get("/")).json["name"] == "LangPort"
        found = await client.get("/", headers={"accept": "text/html,*/*"})
        assert b"/v1" in found.body
        assert found.headers["content-type"].startswith("text/html")

    async def test_head_is_get_without_the_body(self, client):
        get, head = await client.get("/v1/models"), await client.request("HEAD", "/v1/models")
        assert head.status == 200
        assert head.body == b""
        assert head.finished
        assert head.headers["content-length"] == get.headers["content-length"] == str(len(get.body))


class TestLifespan:
    async def run(self, client: Client):
        sent = []
        events = iter(["startup", "shutdown"])

        async def receive():
            return {"type": f"lifespan.{next(events)}"}

        async def send(message):
            sent.append(message)

        await client.app({"type": "lifespan"}, receive, send)
        return sent

    async def test_hooks_run_in_their_phase(self):
        calls = []

        async def start():
            calls.append("start")

        async def stop():
            calls.append("stop")

        sent = await self.run(make_client(on_startup=start, on_shutdown=stop))
        assert calls == ["start", "stop"]
        assert [message["type"] for message in sent] == [
            "lifespan.startup.complete",
            "lifespan.shutdown.complete",
        ]

    @pytest.mark.parametrize(("error", "logged"), [(CheckpointError("no weights"), 0), (OSError("no weights"), 1)])
    async def test_a_failed_start_is_told_to_the_server(self, error, logged, caplog):
        async def start():
            raise error

        sent = await self.run(make_client(on_startup=start))
        assert sent == [{"type": "lifespan.startup.failed", "message": "no weights"}]
        assert len(caplog.records) == logged

    async def test_websockets_are_refused(self, client):
        sent = []

        async def receive():
            return {"type": "websocket.connect"}

        async def send(message):
            sent.append(message)

        await client.app({"type": "websocket", "path": "/v1/realtime"}, receive, send)
        assert [message["type"] for message in sent] == ["websocket.close"]


def test_all_problems_of_names_are_told_together():
    twice = [Upstream("a", FakeUpstream(), card=dict, is_ready=lambda: (True, "")) for _ in range(2)]
    with pytest.raises(ConfigError) as caught:
        make_client({"1": twice[0], "2": twice[1]}, aliases={"a": "a", "x": "nowhere", "y": "x"})
    assert len(caught.value.problems) == 4
