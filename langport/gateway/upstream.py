"""What answers a model's requests: an ASGI app and what the gateway must know about it.

The local API, a remote server and a test fake look the same from here.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from langport.direct import DirectReceive
from langport.figures import Histogram
from langport.gateway.asgi import ASGIApp, Message, Receive, Scope
from langport.gateway.limits import UNLIMITED, ModelLimits
from langport.gateway.queue import Places
from langport.gateway.residence import Residence
from langport.settings.tree import Price


def _own_generation() -> Callable[[], str]:
    return partial(str, secrets.token_hex(8))


@dataclass(frozen=True, slots=True)
class Upstream:
    """One served model."""

    name: str
    """The public name."""
    app: ASGIApp
    """Gets one of `app.UPSTREAM_PATHS` as its path, however the client spelled it.

    `scope["extensions"]["langport"]` holds the `request_id`, the `model`, whether the body names one (`has_model`), the
    `owner` of what is stored, a `meter`, and for work in the background its `priority`; the app may put the
    `deployment` there that answers. The whole body comes in one `http.request`, then `receive` waits for
    `http.disconnect`. The scope's headers hold the `traceparent` that a remote server must get
    (`tracing.trace_headers`). A start's message may say in `upstream_s` how many seconds that server alone took.
    Raises: ApiError before it has sent anything.
    """
    card: Callable[[], Mapping[str, Any]]
    """Its entry of /v1/models; the gateway sets `id`, and what else is missing."""
    is_ready: Callable[[], tuple[bool, str]]
    """Whether it answers now, and why not. Called by /ready and /metrics, so it must not wait."""
    stats: Callable[[], Mapping[str, float | Histogram]] | None = None
    """Figures that /metrics shows as `langport_engine_<name>`, e.g. num_running. Must not wait."""
    deployments: Callable[[], Mapping[str, bool]] | None = None
    """By name, which of its deployments get requests now; for /metrics, where it has any. Must not wait."""
    check: Callable[[], Awaitable[None]] | None = None
    """Asks it whether it lives, at the price of one small request. Raises: ApiError or OSError when it does not."""
    limits_keys: bool = False
    """A 429 of it concerns the key of the client that it was sent, and nobody else's requests."""
    load_adapter: Callable[[str, str], Awaitable[Upstream]] | None = None
    """Makes an upstream of a LoRA adapter of this model: its public name, and a directory or hub id. None: takes none.

    Raises: NotFound or InvalidRequest naming `lora_path`, Unavailable.
    """
    residence: Residence | None = None
    """Of a model that can leave memory and come back. None: it cannot, or is no model itself."""
    places: Places | None = None
    """How much it works on at once; what comes beyond that waits in the gateway. None: very much."""
    limits: ModelLimits = UNLIMITED
    """Its own, before those of the settings for all models."""
    is_metered: bool = False
    """It tells the extension's `meter` (`types.Meter`) how the tokens of a request are counted; those of any other one
    are read from its answers."""
    unload: Callable[[], None] | None = None
    """Of an adapter: called once, when no new request will come; those that run still end. None: it is a model."""
    generation: Callable[[], str] = field(default_factory=_own_generation)
    """Names what answers under the name, weights and settings: what one generation has answered is never given again
    in place of another's (`cache.py`). Must not wait. When not given, that of this object in this process."""
    weight: float = 1.0
    """Its share of a route's requests, where the route does not say."""
    price: Price | None = None
    """What its tokens cost, where the settings name no price for it."""
    read_headers: tuple[bytes, ...] = ()
    """Headers of clients, in small letters, that it gets beside the usual ones, so that answers may depend on them."""


class ReplayedBody(DirectReceive):
    """A `receive` that hands over a body already read, then waits for the client to leave."""

    __slots__ = ("_body", "_receive", "is_client_gone")

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive
        self.is_client_gone = False

    async def __call__(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        message = await self._receive()
        while message["type"] != "http.disconnect":
            message = await self._receive()
        self.is_client_gone = True
        return message

    def take_whole(self) -> bytes | None:
        """See `DirectReceive`."""
        body, self._body = self._body, None
        return body

    def when_gone(self, callback: Callable[[], None]) -> bool:
        """See `DirectReceive`."""

        def leave() -> None:
            self.is_client_gone = True
            callback()

        return isinstance(self._receive, DirectReceive) and self._receive.when_gone(leave)


class StreamedBody:
    """The client's own `receive`, which notes that the client has left."""

    __slots__ = ("_receive", "is_client_gone")

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.is_client_gone = False

    async def __call__(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.is_client_gone = True
        return message


def inner_scope(scope: Scope, path: str, **known: Any) -> dict[str, Any]:
    """A copy of the client's scope as an inner app must see it, with what is `known`; headers untouched."""
    given = scope.get("extensions")
    extensions = {**given, "langport": {**given.get("langport", {}), **known}} if given else {"langport": known}
    return {**scope, "path": path, "raw_path": path.encode(), "root_path": "", "extensions": extensions}
