"""`/v1/uploads`: a file that comes in parts."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from langport.wire.files import FileObject
from langport.wire.stored import ExpiresAfter

UploadStatus = Literal["pending", "completed", "cancelled", "expired"]


class UploadRequest(msgspec.Struct, kw_only=True):
    """The file that is to come."""

    bytes: Annotated[int, Meta(ge=0)]
    filename: Annotated[str, Meta(min_length=1)]
    mime_type: str
    purpose: str
    """One of `wire.files.PURPOSES`."""
    expires_after: ExpiresAfter | None = None
    """Of the file."""


class CompleteRequest(msgspec.Struct, kw_only=True):
    """What the file is made of."""

    part_ids: Annotated[list[str], Meta(min_length=1)]
    """In their order."""
    md5: str | None = None
    """Of the whole file, in hexadecimal digits."""


class Upload(msgspec.Struct, kw_only=True, omit_defaults=True):
    id: str
    object: Literal["upload"]
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: UploadStatus
    expires_at: int
    file: FileObject | None = None
    """Once it is whole."""


class StoredUpload(msgspec.Struct, kw_only=True):
    """An upload as it is kept."""

    upload: Upload
    file_expires_after_s: int | None


class UploadPart(msgspec.Struct, kw_only=True):
    id: str
    object: Literal["upload.part"]
    created_at: int
    upload_id: str


REQUEST_DECODER = msgspec.json.Decoder(UploadRequest)
COMPLETE_DECODER = msgspec.json.Decoder(CompleteRequest)
STORED_DECODER = msgspec.json.Decoder(StoredUpload)
