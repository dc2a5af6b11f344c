"""The four shapes in which OpenAI takes texts: a string, strings, token ids, lists of token ids."""

from __future__ import annotations

import re
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from langport.errors import InvalidRequest
from langport.wire.error import explain

_TokenIds = Annotated[list[Annotated[int, Meta(ge=0)]], Meta(min_length=1)]

_STRING: msgspec.json.Decoder[Any] = msgspec.json.Decoder(str)
_STRINGS: msgspec.json.Decoder[Any] = msgspec.json.Decoder(list[str])
_TOKEN_IDS: msgspec.json.Decoder[Any] = msgspec.json.Decoder(_TokenIds)
_TOKEN_LISTS: msgspec.json.Decoder[Any] = msgspec.json.Decoder(list[_TokenIds])

_FIRST_ITEM = re.compile(rb"\s*\[\s*(.)", re.DOTALL)


def decode_inputs(raw: msgspec.Raw, param: str) -> list[str] | list[list[int]]:
    """The texts, or the token lists, that a field holds; a single one as a list of one.

    Raises: InvalidRequest naming `param` for any other value, an empty list among them.
    """
    data = bytes(raw).strip()
    try:
        if data.startswith(b'"'):
            return [_STRING.decode(data)]
        first = _FIRST_ITEM.match(data)
        if first is None:
            raise InvalidRequest(_expected(param), param=param)
        if first[1] == b"]":
            raise InvalidRequest(f"{param} must not be an empty list.", param=param)
        if first[1] == b'"':
            texts: list[str] = _STRINGS.decode(data)
            return texts
        if first[1] == b"[":
            token_lists: list[list[int]] = _TOKEN_LISTS.decode(data)
            return token_lists
        return [_TOKEN_IDS.decode(data)]
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        problem = explain(error, param)
        raise InvalidRequest(f"{problem.message} {_expected(param)}", param=problem.param) from None


def _expected(param: str) -> str:
    return (
        f"{param} must be a string, a list of strings, a list of token ids, or a list of lists of token ids "
        f"(not mixed, token ids from 0)."
    )
