"""A server that is busy the first time it is asked: what clients that try again are shown with.

Its models are `busy-429` and `busy-503`. Each refuses a key's first request with that status, in the gateway's own
words and with its Retry-After, and answers every later one.
"""

from __future__ import annotations

import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import uvicorn

from langport.errors import ApiError, RateLimited, Unavailable
from langport.gateway.app import Gateway
from langport.gateway.upstream import Upstream
from langport.settings.tree import GatewaySettings

ANSWER = "Now I have time."
REFUSALS: dict[str, type[ApiError]] = {"busy-429": RateLimited, "busy-503": Unavailable}


class BusyServer:
    """A running one. `attempts` counts the requests of each key to each model."""

    def __init__(self) -> None:
        self.url = ""
        self.attempts: Counter[tuple[str, str]] = Counter()

    def upstream(self, name: str) -> Upstream:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            headers = dict(scope["headers"])
            key = (headers.get(b"x-api-key") or headers[b"authorization"].removeprefix(b"Bearer ")).decode()
            self.attempts[key, name] += 1
            if self.attempts[key, name] == 1:
                refusal = REFUSALS[name](f"{name} has no time now; try again in a second.")
                refusal.retry_after_s = 1
                raise refusal
            body = msgspec.json.encode(_messages(name) if scope["path"] == "/v1/messages" else _chat(name))
            start = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]}
            await send(start)
            await send({"type": "http.response.body", "body": body})

        return Upstream(name, app, dict, lambda: (True, ""))


def _chat(model: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": ANSWER, "refusal": None}
    return {
        "id": "chatcmpl-busy",
        "object": "chat.completion",
        "created": 1,
        "model": model,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }


def _messages(model: str) -> dict[str, Any]:
    return {
        "id": "msg_busy",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [{"type": "text", "text": ANSWER}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 1, "output_tokens": 1},
    }


@contextmanager
def serving() -> Iterator[BusyServer]:
    """A busy server on a free port of this machine."""
    busy = BusyServer()
    app = Gateway([busy.upstream(name) for name in REFUSALS], GatewaySettings())
    listener = socket.create_server(("127.0.0.1", 0))
    busy.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="on"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield busy
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
