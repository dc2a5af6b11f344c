"""A form with a file (multipart/form-data, RFC 7578), read piece by piece through python-multipart."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from langport.api.http import Receive
from langport.api.stored_call import ClientLeft
from langport.errors import InvalidRequest

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

FORM = "Send a form (multipart/form-data) with the fields purpose and file, as `curl -F purpose=batch -F file=@FILE`."
MAX_HEADER_BYTES = 8 * 1024
"""Of one part."""


@dataclass(frozen=True)
class Part:
    """The beginning of a field or a file; its data follows."""

    name: str
    filename: str | None


async def read_form(headers: Mapping[bytes, bytes], receive: Receive) -> AsyncIterator[Part | bytes]:
    """The parts of a form, each followed by its data in pieces.

    Raises: InvalidRequest when the body is no form, ClientLeft.
    """
    from python_multipart.exceptions import FormParserError
    from python_multipart.multipart import MultipartParser, parse_options_header

    content_type, options = parse_options_header(headers.get(b"content-type", b""))
    if content_type != b"multipart/form-data" or b"boundary" not in options:
        raise InvalidRequest(f"The request body is not a form. {FORM}", param="file")
    events = _Events()
    try:
        parser = MultipartParser(options[b"boundary"], events.callbacks())
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientLeft
            parser.write(message.get("body", b""))
            for event in events.take():
                yield event
            if not message.get("more_body", False):
                break
        parser.finalize()
    except FormParserError as error:
        raise InvalidRequest(f"The form cannot be read: {error}. {FORM}", param="file") from None
    if not events.is_ended:
        raise InvalidRequest("The form ends in the middle of a part.", param="file")


class _Events:
    """Collects what the parser calls back, since a callback cannot wait for a disk."""

    def __init__(self) -> None:
        self.is_ended = False
        self._found: list[Part | bytes] = []
        self._headers: dict[bytes, bytes] = {}
        self._name = b""
        self._value = b""

    def callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._add_name,
            "on_header_value": self._add_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_part_data": self._add_data,
            "on_end": self._end,
        }

    def take(self) -> list[Part | bytes]:
        found, self._found = self._found, []
        return found

    def _begin(self) -> None:
        self._headers = {}

    def _add_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]
        self._check(self._name)

    def _add_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]
        self._check(self._value)

    def _check(self, text: bytes) -> None:
        if len(text) > MAX_HEADER_BYTES or len(self._headers) > MAX_HEADER_BYTES // 64:
            raise InvalidRequest("A part of the form has headers that are too long.", param="file")

    def _end_header(self) -> None:
        self._headers[self._name.lower()] = self._value
        self._name = self._value = b""

    def _end_headers(self) -> None:
        from python_multipart.multipart import parse_options_header

        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        filename = options.get(b"filename")
        self._found.append(
            Part(
                options.get(b"name", b"").decode("utf-8", "replace"),
                None if filename is None else filename.decode("utf-8", "replace"),
            )
        )

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        self._found.append(data[start:end])

    def _end(self) -> None:
        self.is_ended = True
