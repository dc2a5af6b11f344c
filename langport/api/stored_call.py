"""What the handlers of stored objects share: the call, pages, objects that are not there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from langport.api.http import Header, Receive, Send, read_body, send_json
from langport.errors import InvalidRequest, NotFound
from langport.store.base import Query, Record, Store
from langport.wire.error import decode_body
from langport.wire.stored import page
from langport.wire.unknown import ignored_header, unknown_fields

T = TypeVar("T", bound=msgspec.Struct)


class ClientLeft(Exception):
    """The client left in the middle of its request; nobody is there to answer."""


@dataclass(frozen=True)
class StoredCall:
    """One call that belongs to no model."""

    request_id: str
    owner: str
    """Whose objects it may see."""
    ids: Mapping[str, str]
    """What the path says, by the name in its braces."""
    query: bytes
    headers: Mapping[bytes, bytes]
    receive: Receive
    send: Send
    is_strict: bool = False
    """Refuse fields that nobody documents, instead of listing them."""

    async def read(self, decoder: msgspec.json.Decoder[T]) -> tuple[T, list[Header]]:
        """The body as a struct, and the header that lists what the struct has not.

        Raises: InvalidRequest for what is no such body, and in strict mode for fields beside it; ClientLeft.
        """
        body = await read_body(self.receive)
        if body is None:
            raise ClientLeft
        request = decode_body(decoder, body)
        return request, self.ignored(body, type(request))

    def ignored(self, body: bytes, known: type[msgspec.Struct]) -> list[Header]:
        """`x-langport-ignored` with the fields that `known` has not. Raises: InvalidRequest, in strict mode."""
        return ignored_header(unknown_fields(body, known), is_strict=self.is_strict)


async def find(store: Store, kind: str, id: str, owner: str, *, what: str) -> Record:
    """Raises: NotFound, also when it is somebody else's: nobody learns that it exists."""
    record = await store.get(kind, id, owner)
    if record is None:
        raise missing(what, id)
    return record


def missing(what: str, id: str) -> NotFound:
    return NotFound(f"No {what} with the id '{id[:100]}' is stored here for this API key.", param="id")


async def send_page(call: StoredCall, store: Store, kind: str, query: Query) -> None:
    """Answer with a page of the caller's objects. Raises: InvalidRequest when `after` is none of them."""
    found = await store.page(kind, call.owner, query)
    if found is None:
        raise unknown_cursor(query.after)
    records, has_more = found
    ids = [record.id for record in records]
    await send_json(call.send, page(ids, [record.body for record in records], has_more))


def unknown_cursor(after: str | None) -> InvalidRequest:
    return InvalidRequest(f"after: there is no object with the id '{(after or '')[:100]}' in this list.", param="after")


def expiry(created_at: int, retention_days: int) -> int | None:
    """When an object of this age is to be removed; None for never."""
    return created_at + retention_days * 24 * 3600 if retention_days else None
