"""Endpoints that belong to no single model: stored objects, files, batches.

They are answered by an ASGI app beside the upstreams, which the gateway knows as little of as of those.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from langport.gateway.asgi import ASGIApp, Receive, Scope, Send

Recorder = Callable[[ASGIApp, Scope, Receive, Send], Awaitable[None]]
"""Calls an upstream and keeps what it answers; what it is given is what the upstream would get."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One row of a service's table."""

    method: str
    path: str
    """In its full form; a part in braces, `/v1/files/{file_id}`, takes whatever stands there."""
    streams_body: bool = False
    """The body comes as the client sends it, unread and without a limit; otherwise whole, in one `http.request`."""


@dataclass(frozen=True, slots=True)
class Service:
    """An app and what it answers."""

    app: ASGIApp
    """Gets an endpoint's path as `scope["path"]`, what stood for its braces in `scope["path_params"]`, and in
    `scope["extensions"]["langport"]` the `request_id`, the `owner` and `is_strict`. Raises: ApiError before it has
    sent anything.
    """
    endpoints: Sequence[Endpoint]
    recorders: Mapping[str, Recorder]
    """By the path of an upstream's endpoint: who keeps the answers to requests with `"store": true`."""
