"""A gateway over fake upstreams, and a client that speaks ASGI to it, so that tests see every message."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

import msgspec

from langport.gateway.app import Gateway
from langport.gateway.upstream import Upstream
from langport.settings.tree import GatewaySettings, TelemetrySettings


class FakeUpstream:
    """Answers what `script` says and remembers what it was given."""

    def __init__(self, script=None):
        self.script = script or answer({"ok": True})
        self.scope: dict[str, Any] = {}
        self.body = b""
        self.num_calls = 0

    async def __call__(self, scope, receive, send):
        self.num_calls += 1
        self.scope = scope
        message = await receive()
        assert message == {"type": "http.request", "body": message["body"], "more_body": False}
        self.body = message["body"]
        await self.script(receive, send)


def answer(value, status=200, headers=()):
    body = json.dumps(value).encode()

    async def script(receive, send):
        all_headers = [(b"content-type", b"application/json"), *headers]
        await send({"type": "http.response.start", "status": status, "headers": all_headers})
        await send({"type": "http.response.body", "body": body})

    return script


def stream(*events, then=None, content_type=b"text/event-stream; charset=utf-8"):
    """Sends the events; then ends, or raises `then` with the answer unfinished."""

    async def script(receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", content_type)]})
        for event in events:
            await send({"type": "http.response.body", "body": event, "more_body": True})
        if then is not None:
            raise then
        await send({"type": "http.response.body", "body": b""})

    return script


def refuse(error):
    async def script(receive, send):
        raise error

    return script


@dataclass
class Answer:
    messages: list[dict[str, Any]] = field(default_factory=list)

    @property
    def started(self) -> bool:
        return bool(self.messages)

    @property
    def finished(self) -> bool:
        return self.started and not self.messages[-1].get("more_body", self.messages[-1]["type"] != BODY)

    @property
    def status(self) -> int:
        return self.messages[0]["status"]

    @property
    def headers(self) -> dict[str, str]:
        pairs = [(name.decode(), value.decode()) for name, value in self.messages[0]["headers"]]
        assert len({name for name, _ in pairs}) == len(pairs), f"a header repeats: {pairs}"
        return dict(pairs)

    @property
    def chunks(self) -> list[bytes]:
        return [message["body"] for message in self.messages[1:] if message["body"]]

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error object, having the shape that every openai-python understands."""
        assert self.headers["content-type"] == "application/json"
        assert set(self.json) == {"error"}
        error = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]
        return error


BODY = "http.response.body"


class Client:
    def __init__(self, app):
        self.app = app

    async def request(self, method, path, body=b"", headers=None, *, raw_path=None, root_path="", chunks=None,
                      leave_after=None) -> Answer:  # fmt: skip
        """`chunks`: the body in pieces, no length told; `leave_after`: messages until the client goes."""
        path, _, query = path.partition("?")
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
        all_headers = {"host": "testserver", **(headers or {})}
        if chunks is None:
            all_headers.setdefault("content-length", str(len(body)))
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "root_path": root_path,
            "query_string": query.encode(),
            "headers": [(name.lower().encode(), value.encode()) for name, value in all_headers.items()],
        }
        if raw_path is not False:
            scope["raw_path"] = (raw_path or path).encode()
        pieces = list(chunks) if chunks is not None else [body]
        found = Answer()
        gone = asyncio.Event()
        if leave_after == 0:
            gone.set()

        async def receive():
            if pieces and pieces[0] is LEAVE:
                return {"type": "http.disconnect"}
            if pieces:
                return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            check_order(found, message)
            found.messages.append(message)
            if leave_after is not None and len(found.messages) >= leave_after:
                gone.set()

        await asyncio.wait_for(self.app(scope, receive, send), 10)
        return found

    async def get(self, path, **kwargs) -> Answer:
        return await self.request("GET", path, **kwargs)

    async def post(self, path, body=b"", **kwargs) -> Answer:
        return await self.request("POST", path, body, **kwargs)


LEAVE = object()


def check_order(found: Answer, message) -> None:
    """What a server would refuse: a second start, a body first, anything after the end."""
    if message["type"] == "http.response.start":
        assert not found.started, "a second start"
    else:
        assert message["type"] == BODY
        assert found.started, "a body before the start"
        assert not found.finished, "a body after the end"


def make_client(
    upstreams=None,
    *,
    telemetry=None,
    tracer=None,
    admission=None,
    cache=None,
    openapi=None,
    on_startup=None,
    on_shutdown=None,
    **settings,
) -> Client:
    """A client of a gateway over {name: script, FakeUpstream or Upstream}."""
    rows = []
    for name, app in (upstreams if upstreams is not None else {"demo": FakeUpstream()}).items():
        if isinstance(app, Upstream):
            rows.append(app)
        else:
            app = app if isinstance(app, FakeUpstream) else FakeUpstream(app)
            rows.append(Upstream(name, app, card=lambda: {"max_model_len": 4096}, is_ready=lambda: (True, "")))
    gateway = Gateway(
        rows,
        msgspec.convert(settings, GatewaySettings),
        telemetry=telemetry or TelemetrySettings(),
        tracer=tracer,
        admission=admission,
        cache=cache,
        openapi=openapi,
        on_startup=on_startup,
        on_shutdown=on_shutdown,
    )
    return Client(gateway)
