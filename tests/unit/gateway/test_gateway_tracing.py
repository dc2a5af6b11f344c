"""Traces: what an upstream is handed on without a tracer and with one, and the spans of a request."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from gateway_fakes import FakeUpstream, answer, make_client, refuse, stream

from langport.errors import ConfigError, Unavailable
from langport.figures import Phases, phases_watcher
from langport.gateway.tracing import Tracer, trace_headers
from langport.gateway.upstream import Upstream
from langport.settings.tree import TelemetrySettings
from langport.types import TokenUsage

CHAT = "/v1/chat/completions"
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"
EVENT = b'data: {"choices":[]}\n\n'


class TestHeaders:
    def test_both_are_handed_on(self):
        headers = [(b"host", b"x"), (b"traceparent", TRACEPARENT.encode()), (b"tracestate", b"vendor=1")]
        assert trace_headers(headers) == headers[1:]

    @pytest.mark.parametrize(
        "parent",
        [
            "", "x", TRACEPARENT.upper(), TRACEPARENT + "\r\nx: y", f"ff-{TRACE}-{PARENT}-01",
            f"00-{'0' * 32}-{PARENT}-01", f"00-{TRACE}-{'0' * 16}-01", f"00-{TRACE[1:]}-{PARENT}-01",
        ],
    )  # fmt: skip
    def test_what_is_none_is_not(self, parent):
        assert trace_headers([(b"traceparent", parent.encode()), (b"tracestate", b"vendor=1")]) == []

    def test_a_state_alone_or_too_long_is_not(self):
        assert trace_headers([(b"tracestate", b"vendor=1")]) == []
        parent = (b"traceparent", TRACEPARENT.encode())
        assert trace_headers([parent, (b"tracestate", b"v=" + b"1" * 600)]) == [parent]

    def test_versions_to_come_may_say_more(self):
        parent = (b"traceparent", f"01-{TRACE}-{PARENT}-01-more".encode())
        assert trace_headers([parent]) == [parent]


async def test_without_a_tracer_upstreams_see_the_clients_own(client, demo):
    await client.post(CHAT, {"model": "demo"}, headers={"traceparent": TRACEPARENT, "tracestate": "vendor=1"})
    found = trace_headers(demo.scope["headers"])
    assert found == [(b"traceparent", TRACEPARENT.encode()), (b"tracestate", b"vendor=1")]


def test_nothing_of_opentelemetry_is_imported_without_one():
    code = (
        "import sys; sys.path.insert(0, 'tests/unit/gateway')\n"
        "import langport.server, asyncio\n"
        "from gateway_fakes import make_client\n"
        "asyncio.run(make_client().post('/v1/chat/completions', {'model': 'demo'}))\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_traces_without_their_library_say_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    settings = TelemetrySettings(otlp_traces_endpoint="http://localhost:4318/v1/traces")
    with pytest.raises(ConfigError, match=r"pip install 'langport\[otel\]'"):
        make_client(telemetry=settings)


class Spans:
    """A tracer that keeps its spans."""

    def __init__(self, **options):
        trace = pytest.importorskip("opentelemetry.sdk.trace", reason="the extra otel is not installed")
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

        self._exporter = InMemorySpanExporter()
        provider = trace.TracerProvider(**options)
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = Tracer(provider)

    def all(self):
        return {span.name: span for span in self._exporter.get_finished_spans()}


def header(upstream, name):
    (value,) = [value.decode() for given, value in upstream.scope["headers"] if given == name]
    return value


class Collector(BaseHTTPRequestHandler):
    """Takes OTLP over HTTP."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.received.append((self.path, body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *arguments):
        """Nothing."""


@pytest.mark.parametrize("service", [None, "my-gateway"])
async def test_a_collector_gets_the_spans_when_the_server_ends_at_the_latest(monkeypatch, service):
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra otel is not installed")
    monkeypatch.setenv("NO_PROXY", "*")
    if service is None:
        monkeypatch.delenv("OTEL_SERVICE_NAME", raising=False)
    else:
        monkeypatch.setenv("OTEL_SERVICE_NAME", service)
    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        server.received = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_port}/v1/traces"
        client = make_client(telemetry=TelemetrySettings(otlp_traces_endpoint=endpoint))
        await client.post(CHAT, {"model": "demo"}, headers={"traceparent": TRACEPARENT})
        await asyncio.to_thread(client.app.close)
        server.shutdown()
    ((path, body),) = server.received
    assert path == "/v1/traces"
    assert f"POST {CHAT}".encode() in body
    assert bytes.fromhex(TRACE) in body
    assert (service or "langport").encode() in body


class TestSpans:
    async def test_a_request_goes_on_in_the_clients_trace_and_its_upstream_in_the_requests(self):
        spans, demo = Spans(), FakeUpstream()
        client = make_client({"demo": demo}, tracer=spans.tracer)
        headers = {"traceparent": TRACEPARENT, "tracestate": "vendor=1", "x-request-id": "my-id"}
        await client.post(CHAT, {"model": "demo"}, headers=headers)
        span = spans.all()[f"POST {CHAT}"]
        assert f"{span.context.trace_id:032x}" == TRACE
        assert f"{span.parent.span_id:016x}" == PARENT
        assert header(demo, b"traceparent") == f"00-{TRACE}-{span.context.span_id:016x}-01"
        assert header(demo, b"tracestate") == "vendor=1"
        assert span.kind.name == "SERVER"
        assert span.attributes["http.response.status_code"] == 200
        assert span.attributes["gen_ai.request.model"] == "demo"
        assert span.attributes["gen_ai.operation.name"] == "chat"
        assert span.attributes["langport.request_id"] == "my-id"

    @pytest.mark.parametrize("headers", [{}, {"traceparent": "nonsense"}])
    async def test_without_a_trace_of_the_clients_a_new_one_begins(self, headers):
        spans, demo = Spans(), FakeUpstream()
        await make_client({"demo": demo}, tracer=spans.tracer).post(CHAT, {"model": "demo"}, headers=headers)
        span = spans.all()[f"POST {CHAT}"]
        assert span.parent is None
        handed_on, flags = header(demo, b"traceparent").rsplit("-", 1)
        assert handed_on == f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}"
        assert int(flags, 16) & 1  # sampled

    async def test_one_that_the_client_does_not_record_is_not_recorded_but_goes_on(self):
        spans, demo = Spans(), FakeUpstream()
        parent = TRACEPARENT[:-1] + "0"
        client = make_client({"demo": demo}, tracer=spans.tracer)
        await client.post(CHAT, {"model": "demo"}, headers={"traceparent": parent})
        assert spans.all() == {}
        handed_on = header(demo, b"traceparent")
        assert handed_on.startswith(f"00-{TRACE}-")
        assert handed_on.endswith("-00")
        assert PARENT not in handed_on

    async def test_phases_of_the_engine_are_below_it_and_one_after_the_other(self):
        spans = Spans()

        async def app(scope, receive, send):
            await receive()
            scope["extensions"]["langport"]["meter"](lambda: TokenUsage(7, 2))
            await stream(EVENT, EVENT)(receive, send)
            phases_watcher.get()(Phases(1000.0, 0.5, 1.0, 2.0))

        demo = Upstream("demo", app, card=dict, is_ready=lambda: (True, ""), is_metered=True)
        await make_client({"demo": demo}, tracer=spans.tracer).post(CHAT, {"model": "demo"})
        found = spans.all()
        request = found.pop(f"POST {CHAT}")
        assert {span.parent.span_id for span in found.values()} == {request.context.span_id}
        times = {name: (span.start_time / 1e9, span.end_time / 1e9) for name, span in found.items()}
        assert times == {
            "engine queue": (1000.0, 1000.5),
            "engine prefill": (1000.5, 1001.5),
            "engine decode": (1001.5, 1003.5),
        }
        assert request.attributes["gen_ai.usage.input_tokens"] == 7
        assert request.attributes["gen_ai.usage.output_tokens"] == 2
        assert "langport.first_token_s" in request.attributes

    async def test_a_failure_is_marked_and_nothing_secret_is_told(self):
        spans = Spans()
        client = make_client({"demo": refuse(Unavailable("Not now."))}, tracer=spans.tracer, api_keys=["sk-secret"])
        headers = {"authorization": "Bearer sk-secret"}
        await client.post(CHAT + "?key=sk-secret", {"model": "demo", "messages": "the question"}, headers=headers)
        span = spans.all()[f"POST {CHAT}"]
        assert span.status.status_code.name == "ERROR"
        assert span.attributes["error.type"] == "server_error"
        assert span.attributes["langport.key"] == "static-1"
        assert "sk-secret" not in span.to_json()
        assert "question" not in span.to_json()

    async def test_the_answer_is_the_same_and_log_lines_name_the_trace(self, tmp_path):
        spans = Spans()
        path = tmp_path / "log"
        telemetry = TelemetrySettings(access_log="json", access_log_file=str(path))
        client = make_client({"demo": answer({"ok": True})}, tracer=spans.tracer, telemetry=telemetry)
        found = await client.post(CHAT, {"model": "demo"}, headers={"traceparent": TRACEPARENT})
        assert found.json == {"ok": True}
        assert "traceparent" not in found.headers
        client.app.close()
        assert f'"trace_id":"{TRACE}"' in path.read_text()

    async def test_requests_one_after_the_other_do_not_see_each_others_trace(self):
        spans = Spans()
        client = make_client({"demo": FakeUpstream()}, tracer=spans.tracer)
        for number in (1, 2):
            headers = {"traceparent": f"00-{number:032x}-{PARENT}-01"}
            await client.post(CHAT, {"model": "demo"}, headers=headers)
        found = [span.context.trace_id for span in spans._exporter.get_finished_spans()]
        assert found == [1, 2]
