"""What all stored objects share: query strings of lists, pages, deletions, metadata."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, TypeVar
from urllib.parse import parse_qsl

import msgspec
from msgspec import Meta

from langport.errors import InvalidRequest
from langport.wire.error import explain

T = TypeVar("T")

Metadata = Annotated[
    dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]], Meta(max_length=16)
]
"""Up to 16 pairs of a key of 64 and a value of 512 characters."""
_METADATA_KEY = re.compile(r"metadata\[(?P<key>[^\]]*)\]")
_MAX_QUERY_FIELDS = 100


class ListQuery(msgspec.Struct, kw_only=True):
    """The query of every list."""

    after: str | None = None
    limit: Annotated[int, Meta(ge=1, le=100)] = 20
    order: Literal["asc", "desc"] = "asc"


class RetrieveQuery(msgspec.Struct, kw_only=True):
    """The query of a retrieved response. What `include` names is in it already, if it was asked for when created."""

    stream: bool = False
    starting_after: Annotated[int, Meta(ge=0)] | None = None


class ItemsQuery(ListQuery, kw_only=True):
    """The query of the list of a response's input: newest first unless asked otherwise."""

    order: Literal["asc", "desc"] = "desc"


class ExpiresAfter(msgspec.Struct):
    """When an object is to be removed, counted from when it was made."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Meta(ge=3600, le=2592000)]


class MetadataUpdate(msgspec.Struct):
    """The body of an update: the metadata that replaces the old."""

    metadata: Metadata | None


UPDATE_DECODER = msgspec.json.Decoder(MetadataUpdate)


class Page(msgspec.Struct, kw_only=True):
    """One page of a list."""

    object: Literal["list"] = "list"
    data: list[msgspec.Raw]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Deleted(msgspec.Struct, kw_only=True):
    id: str
    object: str
    deleted: bool = True


def page(ids: Sequence[str], bodies: Sequence[bytes], has_more: bool) -> Page:
    """A page of documents that are JSON already."""
    first, last = (ids[0], ids[-1]) if ids else (None, None)
    return Page(data=[msgspec.Raw(body) for body in bodies], first_id=first, last_id=last, has_more=has_more)


def read_query(kind: type[T], query: bytes) -> T:
    """The query string as a struct; fields that are empty count as not given.

    Raises: InvalidRequest naming the field at fault.
    """
    return read_fields(kind, {name: text for name, text in _pairs(query) if text})


def read_fields(kind: type[T], fields: Mapping[str, object]) -> T:
    """Texts of a query or a form as a struct. Raises: InvalidRequest naming the field at fault."""
    try:
        return msgspec.convert(fields, kind, strict=False)
    except msgspec.ValidationError as error:
        raise explain(error) from None


def metadata_filter(query: bytes) -> dict[str, str]:
    """The pairs of `metadata[key]=value`."""
    found = [(_METADATA_KEY.fullmatch(name), text) for name, text in _pairs(query)]
    return {match["key"]: text for match, text in found if match}


def _pairs(query: bytes) -> list[tuple[str, str]]:
    try:
        return parse_qsl(query.decode("latin-1"), keep_blank_values=True, max_num_fields=_MAX_QUERY_FIELDS)
    except ValueError:
        raise InvalidRequest(f"The query string holds more than {_MAX_QUERY_FIELDS} fields.") from None
