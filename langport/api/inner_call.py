"""A call of an ASGI app from inside the process, as if a client had made it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from langport.api.http import App, ASGIMessage, Scope


@dataclass
class InnerAnswer:
    """What the app answered."""

    status: int = 0
    headers: dict[bytes, bytes] = field(default_factory=dict)
    body: bytes = b""

    @property
    def request_id(self) -> str:
        return self.headers.get(b"x-request-id", b"").decode("latin-1")

    @property
    def retry_after_s(self) -> float | None:
        given = self.headers.get(b"retry-after", b"")
        return float(given) if given.isdigit() else None


async def post(app: App, path: str, body: bytes, *, owner: str, priority: int) -> InnerAnswer:
    """POST a JSON body on somebody's behalf, after all requests of lower `priority`; cancelling it hangs up."""
    answer = InnerAnswer()
    parts: list[bytes] = []
    waiting: list[ASGIMessage] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> ASGIMessage:
        if not waiting:
            await asyncio.Event().wait()  # this client stays until it is answered
        return waiting.pop()

    async def send(message: ASGIMessage) -> None:
        if message["type"] == "http.response.start":
            answer.status = message["status"]
            answer.headers = dict(message["headers"])
        else:
            parts.append(message.get("body", b""))

    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    scope: Scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": headers,
        "client": None,
        "server": None,
        "extensions": {"langport": {"owner": owner, "priority": priority}},
    }
    await app(scope, receive, send)
    answer.body = b"".join(parts)
    return answer
