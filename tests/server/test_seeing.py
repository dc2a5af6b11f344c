"""What an operator sees of a real server: figures of engines and requests, the access log, times on answers."""

from __future__ import annotations

import json
from pathlib import Path

from tests.server.process import running

CHAT = "langport-demo-chat"


def test_a_chat_leaves_its_traces(tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    with running(CHAT, "--access-log", "json", "--access-log-file", str(log), "--api-key", "sk-secret") as server:
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
