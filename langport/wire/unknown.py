"""Fields of a request that no struct has, with their places: `colour`, `messages[0].foo`, `tools[0].function.bar`.

They are listed in a header of the answer, or refused where the server or the request is strict.

Decoding passes over them. They are found by comparing the body with the structs that it was decoded by, read by
`msgspec.inspect`; only fields below which structs stand are decoded for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import msgspec
from msgspec import inspect

from langport.errors import InvalidRequest
from langport.wire.error import decode_body

MAX_REFUSED = 10
"""Names of unknown fields in one message."""
MAX_IGNORED_BYTES = 1000
"""Of the header that names ignored fields; proxies refuse headers of several thousand."""

_BOOLEANS = {b"true": True, b"1": True, b"false": False, b"0": False}
_TOP_LEVEL = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ANYTHING: msgspec.json.Decoder[Any] = msgspec.json.Decoder()


@dataclass
class _Shape:
    """What stands below one place of a body, as far as there can be unknown fields; a place without one is free."""

    fields: dict[str, _Shape | None] | None = None
    """Of an object that a struct decodes."""
    variants: dict[Any, _Shape] = field(default_factory=dict)
    """By tag, where one of several structs decodes the object."""
    tag_field: str = ""
    items: _Shape | None = None
    """Of an array."""
    values: _Shape | None = None
    """Of an object whose keys are the client's own."""


def unknown_fields(body: bytes, known: type[msgspec.Struct]) -> list[str]:
    """The places of the fields that `known` and the structs in it do not have. The body was decoded as `known`."""
    fields = _shape_of(known).fields or {}
    found = []
    for name, raw in _TOP_LEVEL.decode(body).items():
        if name not in fields:
            found.append(name)
        elif (shape := fields[name]) is not None:
            found.extend(_unknown_in(decode_body(_ANYTHING, bytes(raw)), shape, name))
    return found


def ignored_header(names: Sequence[str], *, is_strict: bool) -> list[tuple[bytes, bytes]]:
    """`x-langport-ignored` with these names; no header where there are none.

    Raises: InvalidRequest naming them, in strict mode.
    """
    if names and is_strict:
        raise InvalidRequest(_refusal(names), param=names[0], code="unknown_parameter")
    shown = ", ".join(names).encode("unicode_escape")
    if len(shown) > MAX_IGNORED_BYTES:
        shown = shown[:MAX_IGNORED_BYTES] + b"..."
    return [(b"x-langport-ignored", shown)] if shown else []


def asks_strict(header: bytes | None, *, default: bool) -> bool:
    """What the client says in `x-langport-strict`, else the server's default. Raises: InvalidRequest."""
    if header is None:
        return default
    found = _BOOLEANS.get(header.strip().lower())
    if found is None:
        raise InvalidRequest("The header x-langport-strict must be true or false.")
    return found


def _refusal(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name[:100]) for name in names[:MAX_REFUSED])
    more = len(names) - MAX_REFUSED
    others = f" and {more} more" if more > 0 else ""
    return (
        f"Unknown parameter{'s' if len(names) > 1 else ''}: {shown}{others}. Leave what is not documented out, "
        "or send the header x-langport-strict: false to have it ignored."
    )


def _unknown_in(value: object, shape: _Shape | None, place: str) -> Iterator[str]:
    if shape is None:
        return
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _unknown_in(item, shape.items, f"{place}[{index}]")
    elif isinstance(value, dict):
        fields = shape.fields
        if shape.variants:
            variant = shape.variants.get(value.get(shape.tag_field))
            fields = variant.fields if variant else None
        for name, item in value.items():
            if fields is not None and name not in fields:
                yield f"{place}.{name}"
            else:
                yield from _unknown_in(item, shape.values if fields is None else fields[name], f"{place}.{name}")


@cache
def _shape_of(struct: type[msgspec.Struct]) -> _Shape:
    shape = _read(inspect.type_info(struct), {})
    assert shape is not None
    return shape


def _read(info: inspect.Type, seen: dict[type, _Shape]) -> _Shape | None:
    match info:
        case inspect.Metadata(type=inner):
            return _read(inner, seen)
        case inspect.StructType(cls=struct):
            return seen[struct] if struct in seen else _read_struct(info, seen)
        case inspect.ListType(item_type=inner) | inspect.VarTupleType(item_type=inner):
            items = _read(inner, seen)
            return _Shape(items=items) if items else None
        case inspect.DictType(value_type=inner):
            values = _read(inner, seen)
            return _Shape(values=values) if values else None
        case inspect.UnionType(types=types):
            return _union([shape for one in types if (shape := _read(one, seen))], types)
    return None


def _read_struct(info: inspect.StructType, seen: dict[type, _Shape]) -> _Shape:
    shape = seen[info.cls] = _Shape(fields={})  # before its fields, which may hold the struct itself
    fields = {one.encode_name: _read(one.type, seen) for one in info.fields}
    if info.tag_field is not None:
        fields[info.tag_field] = None
    shape.fields = fields
    return shape


def _union(shapes: list[_Shape], types: tuple[inspect.Type, ...]) -> _Shape | None:
    """The one shape of all: decoding tells an array, a struct and the tags of several structs apart."""
    if len(shapes) < 2:
        return shapes[0] if shapes else None
    union = _Shape()
    for shape in shapes:
        union.fields = union.fields or shape.fields
        union.items = union.items or shape.items
        union.values = union.values or shape.values
    structs = [one for one in types if isinstance(one, inspect.StructType)]
    if len(structs) > 1:
        union.variants = {one.tag: _read_struct(one, {}) for one in structs}
        union.tag_field = structs[0].tag_field or ""
    return union
