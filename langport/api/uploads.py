"""`/v1/uploads`: files that come in parts, in any order, several at a time; the completed one is a file like others.

A part's content is on the disk like a file's, its size in its record's metadata.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from contextlib import aclosing
from hashlib import md5

import msgspec

from langport.api.files import FileForm, Files, base_name, check_purpose, new_file_id
from langport.api.http import send_json
from langport.api.multipart import FORM, read_form
from langport.api.stored_call import StoredCall, find
from langport.errors import InvalidRequest, PayloadTooLarge, StoreUnavailable
from langport.settings.tree import StoreSettings
from langport.store.base import Query, Record, Store
from langport.wire.uploads import (
    COMPLETE_DECODER,
    REQUEST_DECODER,
    STORED_DECODER,
    CompleteRequest,
    StoredUpload,
    Upload,
    UploadPart,
)

KIND, PART = "upload", "upload.part"
LIFETIME_S = 3600
"""How long parts may come, as OpenAI has it."""
REMEMBERED_S = 24 * 3600
"""How long after that an upload is known, so that who comes late is told why it is refused."""
MAX_PART_BYTES = 64 * 1024 * 1024
_SIZE = "bytes"
_MAX_PARTS = 10_000


class Uploads:
    """The endpoints."""

    def __init__(self, store: Store, files: Files, settings: StoreSettings, clock: Callable[[], float]) -> None:
        self._store = store
        self._files = files
        self._settings = settings
        self._clock = clock

    async def create(self, call: StoredCall) -> None:
        asked, headers = await call.read(REQUEST_DECODER)
        check_purpose(asked.purpose)
        if asked.bytes > self._settings.max_file_bytes:
            raise PayloadTooLarge(
                f"bytes is {asked.bytes}; this server accepts files of up to {self._settings.max_file_bytes}. Send "
                "a smaller one, or start the server with a larger --max-file-size.",
                param="bytes",
            )
        now = int(self._clock())
        upload = Upload(
            id=f"upload_{secrets.token_hex(12)}",
            object="upload",
            bytes=asked.bytes,
            created_at=now,
            filename=base_name(asked.filename),
            purpose=asked.purpose,
            status="pending",
            expires_at=now + LIFETIME_S,
        )
        kept = StoredUpload(
            upload=upload, file_expires_after_s=asked.expires_after.seconds if asked.expires_after else None
        )
        await self._store.put(_record(kept, call.owner))
        await send_json(call.send, upload, headers)

    async def add_part(self, call: StoredCall) -> None:
        kept = await self._pending(call)
        upload = kept.upload
        id = f"part_{secrets.token_hex(12)}"
        room = 2 * upload.bytes - sum(_size(part) for part in await self._parts(upload.id, call.owner))
        async with aclosing(FileForm(id, self._files.blobs, "data")) as form:
            async for event in read_form(call.headers, call.receive):
                await form.add(event)
                _check_size(form.num_bytes, room, upload)
            headers = call.ignored(msgspec.json.encode(form.fields), _NoFields)
            if form.writer is None:
                raise InvalidRequest(f"data is required. {FORM}", param="data")
            await form.writer.commit()
        part = UploadPart(id=id, object="upload.part", created_at=int(self._clock()), upload_id=upload.id)
        record = Record(
            kind=PART,
            id=id,
            owner=call.owner,
            created_at=part.created_at,
            body=msgspec.json.encode(part),
            tag=upload.id,
            metadata={_SIZE: str(form.num_bytes)},
            expires_at=upload.expires_at + REMEMBERED_S,
        )
        try:
            await self._store.put(record)
        except StoreUnavailable:
            await self._files.blobs.delete(id)
            raise
        await send_json(call.send, part, headers)

    async def complete(self, call: StoredCall) -> None:
        asked, headers = await call.read(COMPLETE_DECODER)
        kept = await self._pending(call)
        upload = kept.upload
        known = await self._parts(upload.id, call.owner)
        parts = _chosen(asked, known, upload)
        id = new_file_id()
        await self._join(id, parts, asked.md5)
        try:
            upload.file = await self._files.add(
                id, call.owner, upload.filename, upload.bytes, upload.purpose, kept.file_expires_after_s
            )
        except StoreUnavailable:
            await self._files.blobs.delete(id)
            raise
        upload.status = "completed"
        if not await self._store.change(_record(kept, call.owner), if_status=("pending",)):
            await self._files.remove(id, call.owner)  # somebody else has ended it meanwhile
            await self._pending(call)
        await self._drop(known, call.owner)
        await send_json(call.send, upload, headers)

    async def cancel(self, call: StoredCall) -> None:
        kept = await self._pending(call)
        kept.upload.status = "cancelled"
        if not await self._store.change(_record(kept, call.owner), if_status=("pending",)):
            await self._pending(call)
        await self._drop(await self._parts(kept.upload.id, call.owner), call.owner)
        await send_json(call.send, kept.upload)

    async def _pending(self, call: StoredCall) -> StoredUpload:
        """The upload. Raises: NotFound; InvalidRequest when it has ended."""
        record = await find(self._store, KIND, call.ids["upload_id"], call.owner, what=KIND)
        kept = STORED_DECODER.decode(record.body)
        status = kept.upload.status
        if status == "pending" and self._clock() >= kept.upload.expires_at:
            status = "expired"
        if status != "pending":
            raise InvalidRequest(
                f"The upload {record.id} is {status}; begin another one with POST /v1/uploads.", param="upload_id"
            )
        return kept

    async def _parts(self, id: str, owner: str) -> list[Record]:
        found = await self._store.page(PART, owner, Query(limit=_MAX_PARTS, tag=id))
        return found[0] if found else []

    async def _join(self, id: str, parts: Sequence[Record], expected: str | None) -> None:
        """Write the parts as one content. Raises: InvalidRequest when its digest is another one; StoreUnavailable."""
        digest = md5(usedforsecurity=False)
        blobs = self._files.blobs
        writer = await blobs.create(id)
        try:
            for part in parts:
                async with aclosing(blobs.read(part.id)) as chunks:
                    async for chunk in chunks:
                        digest.update(chunk)
                        await writer.write(chunk)
            if expected is not None and expected.lower() != digest.hexdigest():
                raise InvalidRequest(
                    f"md5 is {expected[:100]!r}, but that of the parts together is {digest.hexdigest()!r}.", param="md5"
                )
            await writer.commit()
        except FileNotFoundError:
            raise InvalidRequest("The content of a part is gone from this server's disk.", param="part_ids") from None
        finally:
            await writer.discard()

    async def _drop(self, parts: Sequence[Record], owner: str) -> None:
        for part in parts:
            await self._store.delete(PART, part.id, owner)
            await self._files.blobs.delete(part.id)


class _NoFields(msgspec.Struct):
    """Of the form of a part, beside its data."""


def _record(kept: StoredUpload, owner: str) -> Record:
    upload = kept.upload
    return Record(
        kind=KIND,
        id=upload.id,
        owner=owner,
        created_at=upload.created_at,
        body=msgspec.json.encode(kept),
        status=upload.status,
        expires_at=upload.expires_at + REMEMBERED_S,
    )


def _size(part: Record) -> int:
    return int(part.metadata[_SIZE])


def _check_size(num_bytes: int, room: int, upload: Upload) -> None:
    """Raises: PayloadTooLarge for a part that is too large, or one too many."""
    if num_bytes > MAX_PART_BYTES:
        raise PayloadTooLarge(f"data: a part may hold {MAX_PART_BYTES} bytes; send more parts.", param="data")
    if num_bytes > room:
        raise PayloadTooLarge(
            f"data: the parts of the upload {upload.id} hold more than twice the {upload.bytes} bytes that it was made "
            "for.",
            param="data",
        )


def _chosen(asked: CompleteRequest, known: Sequence[Record], upload: Upload) -> list[Record]:
    """The parts of the file. Raises: InvalidRequest for one that there is not, and a size that is not the upload's."""
    by_id = {part.id: part for part in known}
    for index, id in enumerate(asked.part_ids):
        if id not in by_id:
            raise InvalidRequest(
                f"part_ids[{index}]: the upload {upload.id} has no part {id[:100]!r}.", param=f"part_ids[{index}]"
            )
    parts = [by_id[id] for id in asked.part_ids]
    num_bytes = sum(map(_size, parts))
    if num_bytes != upload.bytes:
        raise InvalidRequest(
            f"The parts hold {num_bytes} bytes together, but the upload was made for {upload.bytes}.", param="part_ids"
        )
    return parts
