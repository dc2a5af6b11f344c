"""What outlives the server: stored chats, files, and a batch that a killed server has begun and the next one ends."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

from tests.server.process import Server, running, until
from tests.server.test_models import CHAT, EMBED

COMPLETIONS, EMBEDDINGS = "/v1/completions", "/v1/embeddings"


def upload(server: Server, lines: list[dict[str, Any]]) -> str:
    text = "".join(json.dumps(line) + "\n" for line in lines)
    answer = server.http.post("/v1/files", data={"purpose": "batch"}, files={"file": ("in.jsonl", text.encode())})
    assert answer.status_code == 200, answer.text
    id = answer.json()["id"]
    assert isinstance(id, str)
    return id


def start_batch(server: Server, path: str, bodies: list[dict[str, Any]]) -> str:
    lines = [
        {"custom_id": f"line-{number}", "method": "POST", "url": path, "body": body}
        for number, body in enumerate(bodies)
    ]
    batch = server.post("/v1/batches", input_file_id=upload(server, lines), endpoint=path, completion_window="24h")
    id = batch["id"]
    assert isinstance(id, str)
    return id


def ended(server: Server, id: str) -> Any:
    until(lambda: server.get(f"/v1/batches/{id}")["completed_at"], "the end of the batch")
    return server.get(f"/v1/batches/{id}")


def output(server: Server, batch: Any) -> list[Any]:
    content = server.http.get(f"/v1/files/{batch['output_file_id']}/content")
    return [json.loads(line) for line in content.text.splitlines()]


def answered_lines(store: Path, batch_id: str) -> list[int]:
    from langport.store.threaded import ThreadedStore

    async def ask() -> list[int]:
        opened = ThreadedStore(store)
        positions = await opened.positions(batch_id)
        await opened.close()
        return positions

    return asyncio.run(ask())


def test_a_batch_outlives_a_killed_server(tmp_path: Path) -> None:
    body = {"model": CHAT, "prompt": "one, two, three,", "max_tokens": 64, "ignore_eos": True, "temperature": 0}
    bodies = [{**body, "seed": number} for number in range(16)]
    options = (CHAT, "--batch-concurrency", "1")
    environment = {"XDG_STATE_HOME": str(tmp_path)}
    with running(*options, **environment) as server:
        kept = server.post("/v1/chat/completions", model=CHAT, store=True, messages=[{"role": "user", "content": "Hi"}])
        id = start_batch(server, COMPLETIONS, bodies)
        until(lambda: server.get(f"/v1/batches/{id}")["request_counts"]["completed"] >= 2)
        os.killpg(server.process.pid, signal.SIGKILL)
        server.wait_end()
    num_answered = len(answered_lines(tmp_path / "langport" / "store.db", id))
    assert 2 <= num_answered < 16, "the batch was over before the server was killed"
    with running(*options, **environment) as server:
        batch = ended(server, id)
        assert batch["request_counts"] == {"total": 16, "completed": 16, "failed": 0}
        lines = output(server, batch)
        assert [line["custom_id"] for line in lines] == [f"line-{number}" for number in range(16)]
        assert len({line["response"]["body"]["choices"][0]["text"] for line in lines}) == 1
        num_asked = server.metric("langport_requests_total", route=COMPLETIONS, model=CHAT, status="200")
        assert num_asked == 16 - num_answered
        assert server.get(f"/v1/chat/completions/{kept['id']}")["choices"] == kept["choices"]


def test_a_batch_of_embeddings_with_lines_that_fail(demo_server: Server) -> None:
    bodies: list[dict[str, Any]] = [
        {"model": EMBED, "input": "Hello"},
        {"model": "nobody", "input": "Hello"},
        {"model": CHAT, "input": "Hello"},
        {"model": EMBED, "input": ["a", "b"]},
    ]
    batch = ended(demo_server, start_batch(demo_server, EMBEDDINGS, bodies))
    assert batch["request_counts"] == {"total": 4, "completed": 2, "failed": 2}
    first, last = output(demo_server, batch)
    assert len(first["response"]["body"]["data"]) == 1
    assert len(last["response"]["body"]["data"]) == 2
    direct = demo_server.post(EMBEDDINGS, model=EMBED, input="Hello")
    vector, expected = first["response"]["body"]["data"][0]["embedding"], direct["data"][0]["embedding"]
    assert vector == expected
    errors = demo_server.http.get(f"/v1/files/{batch['error_file_id']}/content").text.splitlines()
    assert [json.loads(line)["response"]["status_code"] for line in errors] == [404, 400]
