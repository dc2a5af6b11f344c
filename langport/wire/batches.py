"""`/v1/batches`: the request, the batch, the lines that go in and the lines that come out."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from langport.errors import InvalidRequest
from langport.wire.error import decode_body
from langport.wire.stored import ExpiresAfter, Metadata
from langport.wire.unknown import MAX_REFUSED, unknown_fields

BatchStatus = Literal[
    "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
]
ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings")
"""Where the lines of a batch may go."""
COMPLETION_WINDOW_S = 24 * 3600


class BatchRequest(msgspec.Struct, kw_only=True):
    input_file_id: str
    endpoint: str
    completion_window: Literal["24h"]
    metadata: Metadata | None = None
    output_expires_after: ExpiresAfter | None = None


DECODER = msgspec.json.Decoder(BatchRequest)


class BatchError(msgspec.Struct, kw_only=True):
    """Why a batch could not begin."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None


class BatchErrors(msgspec.Struct, kw_only=True):
    object: Literal["list"] = "list"
    data: list[BatchError]


class RequestCounts(msgspec.Struct):
    total: int = 0
    completed: int = 0
    failed: int = 0


class Batch(msgspec.Struct, kw_only=True):
    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    errors: BatchErrors | None = None
    input_file_id: str
    completion_window: str
    status: BatchStatus
    output_file_id: str | None = None
    error_file_id: str | None = None
    created_at: int
    in_progress_at: int | None = None
    expires_at: int
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: RequestCounts
    metadata: dict[str, str] | None = None
    output_expires_after: ExpiresAfter | None = None


BATCH_DECODER = msgspec.json.Decoder(Batch)


class Line(msgspec.Struct, kw_only=True):
    """One request of a batch."""

    custom_id: Annotated[str, Meta(min_length=1)]
    method: Literal["POST"]
    url: str
    body: dict[str, msgspec.Raw]


class _CustomId(msgspec.Struct):
    custom_id: Any = None


LINE_DECODER = msgspec.json.Decoder(Line)
_ID_DECODER = msgspec.json.Decoder(_CustomId)


class LineResponse(msgspec.Struct):
    status_code: int
    request_id: str
    body: msgspec.Raw


class LineError(msgspec.Struct):
    """Why a line was not answered by anybody."""

    code: str
    message: str


class LineResult(msgspec.Struct, kw_only=True):
    """A line of the output file or of the error file."""

    id: str
    custom_id: str | None
    response: LineResponse | None
    error: LineError | None


def custom_id(line: bytes) -> str | None:
    """A line's own name, whatever else is wrong with it."""
    try:
        given = _ID_DECODER.decode(line).custom_id
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return given if isinstance(given, str) else None


def read_line(text: bytes, endpoint: str) -> Line:
    """Raises: InvalidRequest saying what is wrong with the line."""
    try:
        line = decode_body(LINE_DECODER, text)
    except InvalidRequest as error:
        raise InvalidRequest(error.message.replace("The request body", "The line"), param=error.param) from None
    if names := unknown_fields(text, Line):
        fields = ", ".join(Line.__struct_fields__)
        raise InvalidRequest(f"A line has no {', '.join(names[:MAX_REFUSED])}; it has {fields}.", param=names[0])
    if line.url != endpoint:
        raise InvalidRequest(f"url must be the batch's endpoint {endpoint}, not {line.url[:200]!r}.", param="url")
    if line.body.get("stream") == msgspec.Raw(b"true"):
        raise InvalidRequest("body.stream must not be true: nobody reads a batch as it comes.", param="body.stream")
    return line
