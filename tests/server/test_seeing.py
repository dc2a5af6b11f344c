"""What an operator sees of a real server: figures of engines and requests, the access log, times on answers, traces."""

from __future__ import annotations

import importlib.util
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.server.process import running

CHAT = "langport-demo-chat"


def test_a_chat_leaves_its_traces(tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    with running(
        CHAT, "--speculation", "off", "--access-log", "json", "--access-log-file", str(log), "--api-key", "sk-secret"
    ) as server:
        server.http.headers["authorization"] = "Bearer sk-secret"
        messages = [{"role": "user", "content": "What is the capital of Norway? " * 5}]
        body = {"model": CHAT, "messages": messages, "temperature": 0, "max_tokens": 8, "ignore_eos": True}
        for _ in range(2):
            with server.stream("/v1/chat/completions", **body) as events:
                assert list(events)
        plain = server.http.post("/v1/chat/completions", json=body)
        usage = plain.json()["usage"]
        assert 0 <= float(plain.headers["x-langport-overhead-ms"]) <= float(plain.headers["openai-processing-ms"]) + 1

        assert server.metric("langport_prompt_tokens_total", model=CHAT) == 3 * usage["prompt_tokens"]
        assert server.metric("langport_generation_tokens_total", model=CHAT) == 3 * 8
        assert server.metric("langport_time_to_first_token_seconds_count", model=CHAT) == 2
        assert server.metric("langport_inter_token_latency_seconds_count", model=CHAT) > 2
        assert server.metric("langport_overhead_seconds_count", model=CHAT) == 3

        assert server.metric("langport_engine_generation_tokens_total", model=CHAT) == 3 * 8
        assert server.metric("langport_engine_prefix_cache_queries_total", model=CHAT) == 3 * usage["prompt_tokens"]
        assert server.metric("langport_engine_prefix_cache_hits_total", model=CHAT) > usage["prompt_tokens"]
        assert server.metric("langport_engine_time_to_first_token_seconds_count", model=CHAT) == 3
        assert server.metric("langport_engine_preemptions_total", model=CHAT) == 0
        assert server.metric("langport_engine_steps_total", model=CHAT) >= 3 * 8
        printed = server.log
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    chats = [line for line in lines if line["path"] == "/v1/chat/completions"]
    assert [line["status"] for line in chats] == [200, 200, 200]
    for line in chats:
        assert (line["key"], line["model"], line["client"]) == ("static-1", CHAT, "127.0.0.1")
        assert (line["prompt_tokens"], line["completion_tokens"]) == (usage["prompt_tokens"], 8)
        assert line["first_byte_s"] <= line["duration_s"]
    for hidden in ("sk-secret", "Norway"):
        assert hidden not in log.read_text() + printed


@contextmanager
def collector() -> Iterator[tuple[str, list[bytes]]]:
    """An address that takes OTLP over HTTP, and the bodies that came."""
    received: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1/traces", received
        server.shutdown()


@pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("opentelemetry", "opentelemetry.exporter")),
    reason="the extra otel is not installed",
)
def test_the_engines_phases_reach_a_collector_in_the_clients_trace() -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    with collector() as (url, received):
        with running(CHAT, "--otlp-traces-endpoint", url) as server:
            server.http.headers["traceparent"] = f"00-{trace}-00f067aa0ba902b7-01"
            server.chat("Hello!", max_tokens=4)
        spans = b"".join(received)
    for name in (b"POST /v1/chat/completions", b"engine queue", b"engine prefill", b"engine decode"):
        assert name in spans
    assert spans.count(bytes.fromhex(trace)) == 4
    assert b"Hello!" not in spans
