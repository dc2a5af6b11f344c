"""`/v1/batches`: made, listed, read and cancelled here; `batch_runner` does their work."""

from __future__ import annotations

import secrets
from collections.abc import Callable

import msgspec

from langport.api.files import KIND as FILE
from langport.api.http import send_json
from langport.api.stored_call import StoredCall, expiry, find, send_page
from langport.errors import InvalidRequest
from langport.settings.tree import StoreSettings
from langport.store.base import Query, Record, Store
from langport.wire.batches import (
    BATCH_DECODER,
    COMPLETION_WINDOW_S,
    DECODER,
    ENDPOINTS,
    Batch,
    RequestCounts,
)
from langport.wire.stored import ListQuery, read_query

KIND = "batch"
COMPLETED, FAILED = "completed", "failed"
"""Tags of the items of a batch: its answered lines."""
CANCELLABLE = ("validating", "in_progress", "finalizing")


class Batches:
    """The endpoints."""

    def __init__(
        self, store: Store, settings: StoreSettings, clock: Callable[[], float], wake: Callable[[str], None]
    ) -> None:
        """`wake` tells whoever does the work that a batch has changed."""
        self._store = store
        self._settings = settings
        self._clock = clock
        self._wake = wake

    async def create(self, call: StoredCall) -> None:
        asked, headers = await call.read(DECODER)
        if asked.endpoint not in ENDPOINTS:
            raise InvalidRequest(
                f"endpoint must be one of {', '.join(ENDPOINTS)}, not {asked.endpoint[:200]!r}.", param="endpoint"
            )
        file = await self._store.get(FILE, asked.input_file_id, call.owner)
        if file is None:
            raise InvalidRequest(
                f"input_file_id: no file with the id '{asked.input_file_id[:100]}' is stored here for this API key. "
                "Upload one with POST /v1/files and purpose=batch.",
                param="input_file_id",
            )
        if file.tag != "batch":
            raise InvalidRequest(
                f"input_file_id: the file was uploaded with the purpose {file.tag}; upload it with purpose=batch.",
                param="input_file_id",
            )
        now = int(self._clock())
        batch = Batch(
            id=f"batch_{secrets.token_hex(12)}",
            endpoint=asked.endpoint,
            input_file_id=asked.input_file_id,
            completion_window=asked.completion_window,
            status="validating",
            created_at=now,
            expires_at=now + COMPLETION_WINDOW_S,
            request_counts=RequestCounts(),
            metadata=asked.metadata,
            output_expires_after=asked.output_expires_after,
        )
        # Its work ends before its time does, so that it is never removed while it runs.
        until = expiry(now + COMPLETION_WINDOW_S, self._settings.retention_days)
        await self._store.put(as_record(batch, call.owner, until))
        self._wake(batch.id)
        await send_json(call.send, batch, headers)

    async def list(self, call: StoredCall) -> None:
        asked = read_query(ListQuery, call.query)
        await send_page(call, self._store, KIND, Query(limit=asked.limit, after=asked.after, is_descending=True))

    async def retrieve(self, call: StoredCall) -> None:
        record = await self._find(call)
        batch = BATCH_DECODER.decode(record.body)
        if batch.status in ("in_progress", "finalizing", "cancelling"):
            await count_lines(self._store, batch)
        await send_json(call.send, batch)

    async def cancel(self, call: StoredCall) -> None:
        record = await self._find(call)
        batch = BATCH_DECODER.decode(record.body)
        if batch.status not in ("cancelling", "cancelled"):
            is_open = batch.status in CANCELLABLE
            batch.status, batch.cancelling_at = "cancelling", int(self._clock())
            changed = as_record(batch, record.owner, record.expires_at)
            if not is_open or not await self._store.change(changed, if_status=CANCELLABLE):
                state = BATCH_DECODER.decode((await self._find(call)).body).status
                raise InvalidRequest(f"The batch {batch.id} cannot be cancelled: its status is {state}.")
            self._wake(batch.id)
        await send_json(call.send, batch)

    async def _find(self, call: StoredCall) -> Record:
        return await find(self._store, KIND, call.ids["batch_id"], call.owner, what=KIND)


def as_record(batch: Batch, owner: str, expires_at: int | None) -> Record:
    """The batch as it is stored; `expires_at` is when it is removed, not when its window ends."""
    return Record(
        kind=KIND,
        id=batch.id,
        owner=owner,
        created_at=batch.created_at,
        body=msgspec.json.encode(batch),
        status=batch.status,
        metadata=batch.metadata or {},
        expires_at=expires_at,
    )


async def count_lines(store: Store, batch: Batch) -> None:
    """Bring a batch's counts up to date with its answered lines."""
    counts = await store.count_items(batch.id)
    batch.request_counts.completed = counts.get(COMPLETED, 0)
    batch.request_counts.failed = counts.get(FAILED, 0)
