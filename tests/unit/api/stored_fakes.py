"""A gateway over one fake model and a store, and an HTTP client of it, in this process."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec

from langport.api import batch_runner
from langport.api.stored import StoredApi
from langport.api.stored_endpoints import ENDPOINTS, STREAMED_BODIES
from langport.gateway.app import Gateway
from langport.gateway.service import Endpoint, Service
from langport.gateway.upstream import Upstream
from langport.settings.tree import GatewaySettings, StoreSettings
from langport.store.base import Store

CHATS = "/v1/chat/completions"
KEYS = ("one", "two")


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class FakeModel:
    """Answers `echo: ` and the last message. `statuses` are used up first; a cleared `running` makes calls wait,
    and `pauses_after` clears it after so many calls.
    """

    def __init__(self) -> None:
        self.running = asyncio.Event()
        self.running.set()
        self.pauses_after = 1_000_000
        self.statuses: list[int] = []
        self.calls: list[dict[str, Any]] = []
        self.known: list[dict[str, Any]] = []
        """What the gateway said of each call."""
        self.num_open = 0
        self.most_open = 0
        self.num_cancelled = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = json.loads((await receive())["body"])
        self.calls.append(body)
        self.known.append(scope["extensions"]["langport"])
        if len(self.calls) > self.pauses_after:
            self.running.clear()
        self.num_open += 1
        self.most_open = max(self.most_open, self.num_open)
        try:
            await self.running.wait()
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        finally:
            self.num_open -= 1
        status = self.statuses.pop(0) if self.statuses else 200
        if body.get("stream"):
            await _send(send, status, b"text/event-stream; charset=utf-8", *chunks(body, f"chatcmpl-{len(self.calls)}"))
        else:
            answer = completion(body, f"chatcmpl-{len(self.calls)}") if status == 200 else {"error": {"message": "no"}}
            await _send(send, status, b"application/json", json.dumps(answer).encode())


async def _send(send: Any, status: int, content_type: bytes, *parts: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", content_type)]})
    for part in parts:
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def said(body: dict[str, Any]) -> str:
    return f"echo: {body['messages'][-1]['content']}"


def completion(body: dict[str, Any], id: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": said(body), "refusal": None}
    return {
        "id": id,
        "object": "chat.completion",
        "created": 5,
        "model": body["model"],
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
    }


def chunks(body: dict[str, Any], id: str) -> list[bytes]:
    head = {"id": id, "object": "chat.completion.chunk", "created": 5, "model": body["model"]}
    deltas = [{"role": "assistant", "content": "", "refusal": None}, *({"content": c} for c in said(body)), {}]
    events = [
        {**head, "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}]} for delta in deltas
    ]
    events[-1]["choices"][0]["finish_reason"] = "stop"
    return [*(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events), b"data: [DONE]\n\n"]


def on_disk(folder: Path) -> list[str]:
    """The contents of files that a site with this folder keeps."""
    files = folder / "store.db.files"
    return sorted(os.listdir(files)) if files.exists() else []


class Site:
    """A server without its sockets."""

    def __init__(
        self,
        folder: Path | None = None,
        *,
        model: FakeModel | None = None,
        app: Callable[..., Awaitable[None]] | None = None,
        store: Store | None = None,
        keys: tuple[str, ...] = (),
        clock: Clock | None = None,
        max_line_bytes: int = 100_000,
        **settings: Any,
    ) -> None:
        place = "memory" if folder is None else str(folder / "store.db")
        self.clock = clock or Clock()
        self.model = model or FakeModel()
        self.stored = StoredApi(
            msgspec.convert({"place": place, **settings}, StoreSettings),
            Path("/nowhere"),
            max_line_bytes=max_line_bytes,
            store=store,
            clock=self.clock,
        )
        endpoints = [Endpoint(*endpoint, streams_body=endpoint in STREAMED_BODIES) for endpoint in ENDPOINTS]
        self.gateway = Gateway(
            [Upstream("demo", app or self.model, dict, lambda: (True, ""))],
            GatewaySettings(api_keys=keys),
            service=Service(self.stored, endpoints, self.stored.recorders),
        )
        headers = {"authorization": f"Bearer {keys[0]}"} if keys else {}
        transport = httpx.ASGITransport(app=self.gateway)
        self.http = httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers)

    async def start(self) -> None:
        await self.stored.start(self.gateway, lambda: self.gateway.num_in_flight)

    async def close(self) -> None:
        await self.stored.close()
        await self.http.aclose()

    async def chat(self, content: Any = "Hi", **fields: Any) -> httpx.Response:
        body = {"model": "demo", "messages": [{"role": "user", "content": content}], "store": True, **fields}
        return await self.http.post(CHATS, json=body)

    async def get(self, path: str, **query: Any) -> Any:
        answer = await self.http.get(path, params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def upload(self, content: bytes | str, purpose: str = "batch", **fields: Any) -> Any:
        data = content if isinstance(content, bytes) else content.encode()
        answer = await self.http.post(
            "/v1/files", data={"purpose": purpose, **fields}, files={"file": ("in.jsonl", data)}
        )
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def batch(self, lines: list[Any], **fields: Any) -> Any:
        """A batch of these lines; texts as they are, all else as JSON."""
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        file = await self.upload("\n".join(texts) + "\n")
        body = {"input_file_id": file["id"], "endpoint": CHATS, "completion_window": "24h", **fields}
        answer = await self.http.post("/v1/batches", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def ended(self, id: str, *statuses: str) -> Any:
        """The batch, once it has one of these statuses."""
        async with asyncio.timeout(20):
            while True:
                batch = await self.get(f"/v1/batches/{id}")
                if batch["status"] in (statuses or ("completed", "failed", "expired", "cancelled")):
                    return batch
                await asyncio.sleep(0.01)

    async def lines_of(self, file_id: str | None) -> list[Any]:
        """The lines of an output or error file."""
        assert file_id is not None
        answer = await self.http.get(f"/v1/files/{file_id}/content")
        assert answer.status_code == 200, answer.text
        return [json.loads(line) for line in answer.text.splitlines()]


def line(name: str, content: str = "Hi", **body: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": content}]
    return {
        "custom_id": name,
        "method": "POST",
        "url": CHATS,
        "body": {"model": "demo", "messages": messages, **body},
    }


async def until(is_true: Callable[[], Any]) -> None:
    async with asyncio.timeout(20):
        while not is_true():
            await asyncio.sleep(0.01)


def hurry(monkeypatch: Any) -> None:
    """Look for changes often."""
    monkeypatch.setattr(batch_runner, "POLL_S", 0.02)
    monkeypatch.setattr(batch_runner, "BUSY_POLL_S", 0.01)
