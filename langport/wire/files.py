"""`/v1/files`: the description of a file, and what is asked of uploads and lists."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from langport.wire.stored import ExpiresAfter

PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")


class FileObject(msgspec.Struct, kw_only=True, omit_defaults=True):
    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    expires_at: int | None = None
    filename: str
    purpose: str
    status: Literal["processed"]


class FileUpload(msgspec.Struct, kw_only=True):
    """The fields of the form beside the file itself."""

    purpose: str
    """One of PURPOSES."""
    expires_after: ExpiresAfter | None = None


class FileListQuery(msgspec.Struct, kw_only=True):
    after: str | None = None
    limit: Annotated[int, Meta(ge=1, le=10000)] = 10000
    order: Literal["asc", "desc"] = "desc"
    purpose: str | None = None
