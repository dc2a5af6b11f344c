"""Cross-origin rules for browsers. Specification: fetch.spec.whatwg.org, CORS protocol."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from langport.errors import InvalidRequest
from langport.gateway.asgi import Header

EXPOSED = (
    "x-request-id, request-id, openai-processing-ms, openai-organization, openai-version, retry-after, "
    "x-langport-ignored, x-langport-deployment, x-langport-cache, age"
)
_EXPOSE: Header = (b"access-control-expose-headers", EXPOSED.encode())
_HEADER_NAMES = re.compile(rb"[A-Za-z0-9!#$%&'*+.^_`|~, -]+")
_VARY: Header = (b"vary", b"Origin")


class Cors:
    """Which web origins may call. With none configured no header is ever added.

    Credentials (cookies) are never allowed: keys travel in a header that the page sets itself.
    """

    def __init__(self, allowed_origins: Iterable[str]) -> None:
        origins = [origin.rstrip("/").encode() for origin in allowed_origins]
        self.is_on = bool(origins)
        self._any = b"*" in origins
        self._origins = frozenset(origins)

    def headers(self, origin: bytes | None) -> list[Header]:
        """What to add to an answer for a request that came with this `Origin`."""
        if not self.is_on:
            return []
        if self._any:
            return [(b"access-control-allow-origin", b"*"), _EXPOSE]
        if origin is None or origin not in self._origins:
            return [_VARY]
        return [(b"access-control-allow-origin", origin), _EXPOSE, _VARY]

    def is_preflight(self, method: str, headers: Mapping[bytes, bytes]) -> bool:
        """Whether a browser is asking for permission, rather than for an answer."""
        return (
            self.is_on and method == "OPTIONS" and b"origin" in headers and b"access-control-request-method" in headers
        )

    def preflight_headers(self, headers: Mapping[bytes, bytes]) -> list[Header]:
        """The permission, beside `headers`. Raises: InvalidRequest for an origin that is not allowed."""
        origin = headers[b"origin"]
        if not self._any and origin not in self._origins:
            raise InvalidRequest(
                f"The origin {origin.decode('latin-1')[:200]} may not call this server; "
                "start it with --allowed-origins to change that."
            )
        wanted = headers.get(b"access-control-request-headers", b"")
        if not _HEADER_NAMES.fullmatch(wanted):
            wanted = b"authorization, content-type"
        return [
            (b"access-control-allow-methods", b"GET, HEAD, POST, DELETE, OPTIONS"),
            (b"access-control-allow-headers", wanted),
            (b"access-control-max-age", b"7200"),
        ]
