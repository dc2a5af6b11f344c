"""Responses that are kept: what a later one continues, what is fetched by id, and what an older process left open.

A response is one object with its input as items; a conversation is the chain of its responses, so nothing of it is
kept twice. The store may be shared by several processes: one that works on a response in the background promises
every few seconds to go on, and when the promise has run out, the response counts as failed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

import msgspec

from langport.api.response_items import Reference, response_of
from langport.errors import InvalidRequest, NotFound, StoreUnavailable
from langport.store.base import Item as StoredItem
from langport.store.base import Record, Store
from langport.wire.response_items import ITEM_DECODER, Item
from langport.wire.responses import Response, ResponseError, ResponseStatus

logger = logging.getLogger(__name__)

KIND = "response"
PROMISE_S = 30
"""How long a response in the background may be without news from the process that works on it."""
OPEN: tuple[ResponseStatus, ...] = ("queued", "in_progress")
_CONTINUABLE = ("completed", "incomplete")
_DAY_S = 24 * 3600

_encode = msgspec.json.Encoder().encode


class StoredResponse(msgspec.Struct):
    """The body of a record."""

    response: Response
    is_streamed: bool = False
    """Its events are kept while it runs."""
    promised_until: int = 0
    """Seconds since 1970; while the response is open, its process has promised to be there until then."""


_DECODER = msgspec.json.Decoder(StoredResponse)


class ResponseStore:
    """The responses of all models and owners."""

    def __init__(
        self,
        store: Store | None,
        *,
        retention_days: int = 30,
        refuses_unstored: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Without a store nothing is kept. `retention_days`: 0 keeps for ever.

        `refuses_unstored`: a response that should be kept is refused while the store is down, not just answered.
        """
        self._store = store
        self._retention_days = retention_days
        self._refuses_unstored = refuses_unstored
        self._clock = clock
        self._is_failing = False

    @property
    def keeps(self) -> bool:
        """Whether there is a store at all."""
        return self._store is not None

    async def check(self, owner: str) -> None:
        """Raises: StoreUnavailable when the store is down and the settings say that this matters."""
        if self._store is not None and self._refuses_unstored:
            await self._store.get(KIND, "", owner)

    async def history(self, id: str, owner: str, *, may_begin_late: bool) -> list[Item]:
        """What was said up to and with a response, oldest first.

        `may_begin_late`: take what is left of a conversation whose beginning is gone.
        Raises: InvalidRequest naming `previous_response_id`; StoreUnavailable.
        """
        param = "previous_response_id"
        chain = await self._store.chain(KIND, id, owner) if self._store is not None else []
        if not chain:
            raise InvalidRequest(
                f"Previous response with id '{id[:100]}' not found." + self._why_nothing(),
                param=param,
                code="previous_response_not_found",
            )
        status = chain[-1][0].status
        if status not in _CONTINUABLE:
            raise InvalidRequest(
                f"The response '{id}' is {status}; only a completed one can be continued.", param=param
            )
        if chain[0][0].parent is not None and not may_begin_late:
            raise InvalidRequest(
                f"The response '{id}' continues '{chain[0][0].parent}', which is not stored any more. Send the "
                "conversation as input, or truncation: auto to go on with what is left of it.",
                param=param,
            )
        items: list[Item] = []
        for record, stored_items in chain:
            items += map(_decode_item, stored_items)
            items += _DECODER.decode(record.body).response.output
        return items

    async def resolve(self, items: Sequence[Item | Reference], owner: str) -> list[Item]:
        """The items with those that are only referred to. Raises: InvalidRequest naming one that is not there."""
        known: dict[str, dict[str, Item]] = {}
        found: list[Item] = []
        for item in items:
            if not isinstance(item, Reference):
                found.append(item)
                continue
            response_id = response_of(item.id)
            if response_id is not None and response_id not in known:
                known[response_id] = await self._items_of(response_id, owner)
            referred = known.get(response_id or "", {}).get(item.id)
            if referred is None:
                raise InvalidRequest(
                    f"{item.param}: no item with the id '{item.id[:100]}' is stored here." + self._why_nothing(),
                    param=item.param,
                )
            found.append(referred)
        return found

    async def keep(self, response: Response, items: Sequence[Item], owner: str) -> None:
        """Store an answered response; if that fails, its `store` says so and it is answered all the same."""
        try:
            await self.put(StoredResponse(response), items, owner)
        except StoreUnavailable as error:
            response.store = False
            if not self._is_failing:
                logger.error("Responses are answered but not stored: %s", error)
            self._is_failing = True
        else:
            if self._is_failing:
                logger.info("Responses are stored again.")
            self._is_failing = False

    async def put(self, stored: StoredResponse, items: Sequence[Item], owner: str) -> None:
        """Store a response with its input. Raises: StoreUnavailable."""
        assert self._store is not None
        kept = [StoredItem(item.id, position, _encode(item)) for position, item in enumerate(items)]
        await self._store.put(self._record(stored, owner), kept)

    async def update(self, stored: StoredResponse, owner: str) -> bool:
        """Write the state of a response that was open; False when it is not any more. Raises: StoreUnavailable."""
        assert self._store is not None
        return await self._store.change(self._record(stored, owner), if_status=OPEN)

    def promise(self) -> int:
        """Until when a process that speaks now is believed to be there."""
        return int(self._clock()) + PROMISE_S

    async def get(self, id: str, owner: str) -> StoredResponse:
        """A response as it is now. Raises: NotFound, StoreUnavailable."""
        record = await self._store.get(KIND, id, owner) if self._store is not None else None
        if record is None:
            raise missing(id)
        stored = _DECODER.decode(record.body)
        if stored.response.status in OPEN and stored.promised_until < self._clock():
            fail(stored.response, "The server was stopped while it worked on this response. Send the request again.")
            if not await self.update(stored, owner):
                return await self.get(id, owner)
        return stored

    async def delete(self, id: str, owner: str) -> None:
        """Raises: NotFound, StoreUnavailable."""
        if self._store is None or not await self._store.delete(KIND, id, owner):
            raise missing(id)

    async def input_items(
        self, id: str, owner: str, *, limit: int, after: str | None, is_descending: bool
    ) -> tuple[list[StoredItem], bool] | None:
        """A page of a response's input; None when `after` is none of it. Raises: NotFound, StoreUnavailable."""
        await self.get(id, owner)
        assert self._store is not None
        return await self._store.items(id, limit=limit, after=after, is_descending=is_descending)

    async def _items_of(self, id: str, owner: str) -> dict[str, Item]:
        chain = await self._store.chain(KIND, id, owner) if self._store is not None else []
        if not chain:
            return {}
        record, stored_items = chain[-1]
        items = [*map(_decode_item, stored_items), *_DECODER.decode(record.body).response.output]
        return {item.id: item for item in items}

    def _record(self, stored: StoredResponse, owner: str) -> Record:
        response = stored.response
        days = self._retention_days
        return Record(
            kind=KIND,
            id=response.id,
            owner=owner,
            created_at=response.created_at,
            body=_encode(stored),
            model=response.model,
            status=response.status,
            parent=response.previous_response_id,
            metadata=response.metadata,
            expires_at=response.created_at + days * _DAY_S if days else None,
        )

    def _why_nothing(self) -> str:
        return "" if self.keeps else " This server keeps no responses (it runs with --store none)."


def missing(id: str) -> NotFound:
    return NotFound(f"Response with id '{id[:100]}' not found.", param="id")


def fail(response: Response, why: str) -> None:
    """Mark a response as one that will not be completed."""
    response.status = "failed"
    response.error = ResponseError("server_error", why)


def _decode_item(item: StoredItem) -> Item:
    return ITEM_DECODER.decode(item.body)
