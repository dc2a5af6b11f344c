"""What the handlers of stored objects share: the call, pages, objects that are not there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from langport.api.http import Receive, Send, read_body, send_json
from langport.errors import InvalidRequest, NotFound
from langport.store.base import Query, Record, Store
from langport.wire.stored import page


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

    async def body(self) -> bytes:
        """The whole body. Raises: ClientLeft."""
        body = await read_body(self.receive)
        if body is None:
            raise ClientLeft
        return body


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
