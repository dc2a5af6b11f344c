"""What a request's head may not leave open: which of two headers counts, where its body ends, and how it is encoded.

A proxy in front that read another one of two keys, or another end of the body, would be let past.
Source: RFC 9110 (5.3, 7.2), RFC 9112 (6.1, 6.3).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from langport.errors import InvalidRequest
from langport.gateway.asgi import Header, Scope

CLOSE: Header = (b"connection", b"close")
_ONCE = frozenset(
    (b"authorization", b"api-key", b"x-api-key", b"host", b"content-length", b"content-type", b"content-encoding",
     b"transfer-encoding", b"expect", b"origin", b"x-request-id", b"traceparent", b"anthropic-version")
)  # fmt: skip
_ONCE_PREFIX = b"x-langport-"


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
