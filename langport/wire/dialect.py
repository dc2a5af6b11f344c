"""What the clients of an API expect around every answer: how errors look, and what keeps and ends a stream.

OpenAI's is the one for all paths that no other API has.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from langport.errors import ApiError
from langport.wire import sse
from langport.wire.error import encode_error


@dataclass(frozen=True)
class Dialect:
    """One API's ways."""

    error_body: Callable[[ApiError, str], bytes]
    """The answer that tells of an error, given the request's id."""
    error_event: Callable[[ApiError, str], bytes]
    """The last event of a stream that cannot go on, given the request's id."""
    ping: bytes = sse.PING
    """Sent while there is nothing else to send."""
    done: bytes = sse.DONE
    """Sent after a stream's last event; may be empty."""
    id_header: bytes | None = None
    """Where the request's id is read, beside x-request-id."""


OPENAI = Dialect(
    error_body=lambda error, request_id: encode_error(error),
    error_event=lambda error, request_id: sse.event(encode_error(error)),
)
RESPONSES = replace(OPENAI, done=b"")
"""OpenAI's for a response, whose last event says that it is the last."""
