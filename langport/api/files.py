"""`/v1/files`: uploads, their descriptions and contents."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from contextlib import aclosing
from urllib.parse import quote

import msgspec

from langport.api.http import send_json
from langport.api.multipart import FORM, Part, read_form
from langport.api.stored_call import StoredCall, expiry, find, missing, send_page
from langport.errors import InvalidRequest, NotFound, PayloadTooLarge, StoreUnavailable
from langport.settings.tree import StoreSettings
from langport.store.base import Query, Record, Store
from langport.store.blobs import Blobs, BlobWriter
from langport.wire.files import PURPOSES, FileListQuery, FileObject, FileUpload
from langport.wire.stored import Deleted, read_fields, read_query

KIND = "file"
MAX_FIELDS_BYTES = 64 * 1024
"""Of a form, beside its file."""
_MAX_FILENAME = 255
_NESTED = re.compile(r"(?P<name>\w+)\[(?P<key>\w+)\]")
_EXPIRING = frozenset(("batch", "batch_output"))
"""Purposes of files that retention removes; all others stay until they are deleted."""


class Files:
    """The endpoints, and what batches need of them."""

    def __init__(self, store: Store, blobs: Blobs, settings: StoreSettings, clock: Callable[[], float]) -> None:
        self._store = store
        self._settings = settings
        self._clock = clock
        self.blobs = blobs

    async def create(self, call: StoredCall) -> None:
        limit = self._settings.max_file_bytes
        declared = call.headers.get(b"content-length", b"")
        if declared.isdigit() and (len(declared) > 18 or int(declared) > limit + MAX_FIELDS_BYTES):
            raise self._too_large()
        id = new_file_id()
        async with aclosing(FileForm(id, self.blobs, "file")) as upload:
            async for event in read_form(call.headers, call.receive):
                await upload.add(event)
                if upload.num_bytes > limit:
                    raise self._too_large()
            asked = read_fields(FileUpload, upload.fields)
            headers = call.ignored(msgspec.json.encode(upload.fields), FileUpload)
            check_purpose(asked.purpose)
            if upload.writer is None:
                raise InvalidRequest(f"file is required. {FORM}", param="file")
            await upload.writer.commit()
        seconds = asked.expires_after.seconds if asked.expires_after else None
        try:
            document = await self.add(id, call.owner, upload.filename, upload.num_bytes, asked.purpose, seconds)
        except StoreUnavailable:
            await self.blobs.delete(id)
            raise
        await send_json(call.send, document, headers)

    async def list(self, call: StoredCall) -> None:
        asked = read_query(FileListQuery, call.query)
        query = Query(limit=asked.limit, after=asked.after, is_descending=asked.order == "desc", tag=asked.purpose)
        await send_page(call, self._store, KIND, query)

    async def retrieve(self, call: StoredCall) -> None:
        record = await self._find(call)
        await send_json(call.send, msgspec.Raw(record.body))

    async def delete(self, call: StoredCall) -> None:
        id = call.ids["file_id"]
        if not await self.remove(id, call.owner):
            raise missing(KIND, id)
        await send_json(call.send, Deleted(id=id, object="file"))

    async def content(self, call: StoredCall) -> None:
        record = await self._find(call)
        document = msgspec.json.decode(record.body, type=FileObject)
        try:
            async with aclosing(self.blobs.read(record.id)) as chunks:
                first = await anext(chunks, b"")
                await _start(call, document)
                await call.send({"type": "http.response.body", "body": first, "more_body": True})
                async for chunk in chunks:
                    await call.send({"type": "http.response.body", "body": chunk, "more_body": True})
        except FileNotFoundError:
            raise NotFound(f"The content of the file {record.id} is gone from this server's disk.") from None
        await call.send({"type": "http.response.body", "body": b"", "more_body": False})

    async def add(
        self, id: str, owner: str, filename: str, num_bytes: int, purpose: str, expires_after_s: int | None
    ) -> FileObject:
        """Describe a content that is on disk; one of the same id is replaced. Raises: StoreUnavailable."""
        created_at = int(self._clock())
        expires_at = expiry(created_at, self._settings.retention_days) if purpose in _EXPIRING else None
        if expires_after_s is not None:
            expires_at = created_at + expires_after_s
        document = FileObject(
            id=id,
            object="file",
            bytes=num_bytes,
            created_at=created_at,
            expires_at=expires_at,
            filename=filename,
            purpose=purpose,
            status="processed",
        )
        record = Record(
            kind=KIND,
            id=id,
            owner=owner,
            created_at=created_at,
            body=msgspec.json.encode(document),
            tag=purpose,
            expires_at=expires_at,
        )
        await self._store.put(record)
        return document

    async def remove(self, id: str, owner: str) -> bool:
        """Forget a file and its content; False when there is none. Raises: StoreUnavailable."""
        if not await self._store.delete(KIND, id, owner):
            return False
        await self.blobs.delete(id)
        return True

    async def _find(self, call: StoredCall) -> Record:
        return await find(self._store, KIND, call.ids["file_id"], call.owner, what=KIND)

    def _too_large(self) -> PayloadTooLarge:
        return PayloadTooLarge(
            f"The file is larger than the {self._settings.max_file_bytes} bytes that this server accepts. "
            "Send a smaller one, or start the server with a larger --max-file-size.",
            param="file",
        )


def check_purpose(purpose: str) -> None:
    """Raises: InvalidRequest for one that files do not have."""
    if purpose not in PURPOSES:
        raise InvalidRequest(f"purpose must be one of {', '.join(PURPOSES)}, not {purpose[:100]!r}.", param="purpose")


def new_file_id() -> str:
    return f"file-{secrets.token_hex(12)}"


def base_name(path: str) -> str:
    """A file's name without folders, or `file`."""
    return path.replace("\\", "/").rpartition("/")[2][:_MAX_FILENAME] or "file"


class FileForm:
    """A form while it is read: its fields, and its file on the way to the disk."""

    def __init__(self, id: str, blobs: Blobs, name: str) -> None:
        """`id`: of the content on the disk. `name`: of the field that holds the file."""
        self.fields: dict[str, object] = {}
        self.filename = ""
        self.writer: BlobWriter | None = None
        self._id = id
        self._blobs = blobs
        self._name = name
        self._part = Part("", None)
        self._texts: dict[str, bytes] = {}

    @property
    def num_bytes(self) -> int:
        return self.writer.num_bytes if self.writer else 0

    async def add(self, event: Part | bytes) -> None:
        """Raises: InvalidRequest, PayloadTooLarge, StoreUnavailable."""
        if isinstance(event, Part):
            await self._begin(event)
        elif self._part.name == self._name and self.writer is not None:
            await self.writer.write(event)
        else:
            self._add_text(event)

    async def _begin(self, part: Part) -> None:
        self._part = part
        if part.name == self._name:
            if self.writer is not None:
                raise InvalidRequest(f"{self._name} is there twice; send one file at a time.", param=self._name)
            self.filename = base_name(part.filename or "")
            self.writer = await self._blobs.create(self._id)
        else:
            self._add_text(b"")

    def _add_text(self, data: bytes) -> None:
        name = self._part.name
        self._texts[name] = self._texts.get(name, b"") + data
        if sum(len(key) + len(text) for key, text in self._texts.items()) > MAX_FIELDS_BYTES:
            raise InvalidRequest("The form's fields beside the file are too long.", param=name[:100])
        text = self._texts[name].decode("utf-8", "replace")
        nested = _NESTED.fullmatch(name)
        if nested is None:
            self.fields[name] = text
        else:
            group = self.fields.setdefault(nested["name"], {})
            if isinstance(group, dict):
                group[nested["key"]] = text

    async def aclose(self) -> None:
        if self.writer is not None:
            await self.writer.discard()


async def _start(call: StoredCall, document: FileObject) -> None:
    name = quote(document.filename, safe="").encode()
    headers = [
        (b"content-type", b"application/octet-stream"),
        (b"content-length", b"%d" % document.bytes),
        (b"content-disposition", b"attachment; filename*=UTF-8''" + name),
    ]
    await call.send({"type": "http.response.start", "status": 200, "headers": headers})
