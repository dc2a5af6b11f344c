"""Responses by id: retrieve, follow, cancel, delete, and the items that they read."""

from __future__ import annotations

from langport.api.http import send_json
from langport.api.response_runs import Runs
from langport.api.response_store import OPEN, StoredResponse
from langport.api.stored_call import StoredCall, unknown_cursor
from langport.api.streaming import stream_events
from langport.errors import InvalidRequest
from langport.wire.dialect import RESPONSES
from langport.wire.stored import Deleted, ItemsQuery, RetrieveQuery, page, read_query


class StoredResponses:
    """The endpoints."""

    def __init__(self, runs: Runs) -> None:
        self._runs = runs
        self._store = runs.store

    async def retrieve(self, call: StoredCall) -> None:
        asked = read_query(RetrieveQuery, call.query)
        id = call.ids["response_id"]
        stored = await self._store.get(id, call.owner)
        if asked.stream:
            await self._follow(call, stored, -1 if asked.starting_after is None else asked.starting_after)
            return
        if asked.starting_after is not None:
            raise InvalidRequest("starting_after is only allowed together with stream=true.", param="starting_after")
        await send_json(call.send, stored.response)

    async def cancel(self, call: StoredCall) -> None:
        id = call.ids["response_id"]
        stored = await self._store.get(id, call.owner)
        if not stored.response.background:
            raise InvalidRequest(
                "Only a response that was created with background: true can be cancelled; end another one by closing "
                "its connection.",
                param="response_id",
            )
        await self._end(stored, call.owner)
        await send_json(call.send, (await self._store.get(id, call.owner)).response)

    async def delete(self, call: StoredCall) -> None:
        id = call.ids["response_id"]
        await self._end(await self._store.get(id, call.owner), call.owner)
        await self._store.delete(id, call.owner)
        await send_json(call.send, Deleted(id=id, object="response"))

    async def input_items(self, call: StoredCall) -> None:
        asked = read_query(ItemsQuery, call.query)
        found = await self._store.input_items(
            call.ids["response_id"],
            call.owner,
            limit=asked.limit,
            after=asked.after,
            is_descending=asked.order == "desc",
        )
        if found is None:
            raise unknown_cursor(asked.after)
        items, has_more = found
        await send_json(call.send, page([item.id for item in items], [item.body for item in items], has_more))

    async def compact(self, call: StoredCall) -> None:
        """Raises: InvalidRequest, always."""
        raise InvalidRequest(
            "POST /v1/responses/compact is not supported by this server: only OpenAI can read a compacted "
            "conversation. truncation: auto drops the oldest items of one that has grown too long."
        )

    async def _end(self, stored: StoredResponse, owner: str) -> None:
        """Stop working on a response, if anybody does: this server at once, another one when it next looks."""
        is_open = stored.response.status in OPEN
        if (is_open or self._runs.find(stored.response.id, owner)) and await self._runs.cancel(
            stored.response.id, owner
        ):
            return
        if is_open:
            stored.response.status = "cancelled"
            await self._store.update(stored, owner)

    async def _follow(self, call: StoredCall, stored: StoredResponse, after: int) -> None:
        if not stored.is_streamed:
            raise InvalidRequest(
                "Only a response that was created with background: true and stream: true can be streamed again; "
                "retrieve it without stream.",
                param="stream",
            )
        events = await self._runs.follow(stored.response.id, call.owner, after)
        if events is None:
            raise InvalidRequest(
                "The events of this response are not kept any more, or another server has them; retrieve it without "
                "stream.",
                param="stream",
            )
        await stream_events(call.send, events, (), call.request_id, RESPONSES)
