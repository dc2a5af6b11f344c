"""What a request's head says, and what it may not leave open: which of two headers counts, where its body ends, and how
it is encoded. A proxy in front that read another one of two keys, or another end of the body, would be let past.

Source: RFC 9110 (5.3, 7.2), RFC 9112 (6.1, 6.3).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Generic, TypeVar

from langport.errors import InvalidRequest
from langport.gateway.asgi import Header, Scope
from langport.gateway.auth import given_key
from langport.gateway.routes import Match, Routes, is_anthropic, plain_path
from langport.known_head import KnownHeaders
from langport.wire.anthropic import ANTHROPIC
from langport.wire.dialect import OPENAI

CLOSE: Header = (b"connection", b"close")
_ONCE = frozenset(
    (b"authorization", b"api-key", b"x-api-key", b"host", b"content-length", b"content-type", b"content-encoding",
     b"transfer-encoding", b"expect", b"origin", b"x-request-id", b"traceparent", b"anthropic-version")
)  # fmt: skip
_ONCE_PREFIX = b"x-langport-"


H = TypeVar("H")


class Head(Generic[H]):
    """What the gateway makes of a head, once for all requests of a connection that have it."""

    __slots__ = ("_is_checked", "_match", "dialect", "given_key", "path")

    def __init__(self, scope: Scope) -> None:
        self.path = plain_path(scope)
        self.dialect = ANTHROPIC if is_anthropic(self.path) else OPENAI
        """How the request's client reads errors."""
        self.given_key = given_key(dict(scope["headers"]))
        """Whether it is good has to be asked every time."""
        self._is_checked = False
        self._match: Match[H] | None = None

    @classmethod
    def of(cls, scope: Scope) -> Head[H]:
        """That of a request."""
        headers = scope["headers"]
        if not isinstance(headers, KnownHeaders):
            return cls(scope)
        head: Head[H] | None = headers.notes.get(cls)
        if head is None:
            head = headers.notes[cls] = cls(scope)
        return head

    def check(self, scope: Scope, headers: Mapping[bytes, bytes]) -> None:
        """Raises: as `check_head` does."""
        if not self._is_checked:
            check_head(scope, headers)
            self._is_checked = True

    def match(self, routes: Routes[H], scope: Scope) -> Match[H]:
        """Its route, in a table that never changes. Raises: NotFound, WrongMethod."""
        if self._match is None:
            self._match = routes.match(scope)
        return self._match


def check_head(scope: Scope, headers: Mapping[bytes, bytes]) -> None:
    """`headers`: the scope's, by name. Raises: InvalidRequest; the connection is of no use afterwards."""
    if len(headers) != len(scope["headers"]):
        numbers = Counter(name for name, _ in scope["headers"])
        for name, number in numbers.items():
            if number > 1 and (name in _ONCE or name.startswith(_ONCE_PREFIX)):
                raise InvalidRequest(
                    f"The header {name.decode('latin-1')} is there {number} times, and it may be there once: "
                    "readers do not agree on which one counts."
                )
    coding = headers.get(b"transfer-encoding")
    if coding is not None and (coding.strip().lower() != b"chunked" or scope.get("http_version") == "1.0"):
        raise InvalidRequest("The request's Transfer-Encoding must be chunked and nothing else, and its HTTP 1.1.")
    encoding = headers.get(b"content-encoding")
    if encoding is not None and encoding.strip().lower() != b"identity":
        raise InvalidRequest(
            "The request's body has a Content-Encoding, and compressed bodies are not read here; send it as it is."
        )
